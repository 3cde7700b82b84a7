"""The search derives its bounds from the raw losses by its rule, and leaves no trace."""

import copy
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_classifier, make_data, make_trainer
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import seed_everything
from PIL import Image

from cifar_resnet.errors import InputError
from cifar_resnet.lr_search import LEAST_RATIO, derive, search, write

LADDER = np.geomspace(1e-3, 10, 100).tolist()


def valley(rates: list[float], onset: float, floor: float, start: float = 2.3, low: float = 1.6) -> np.ndarray:
    """A smooth descent in log rate from ``start``, begun at ``onset`` and ended at ``floor``."""
    done = (np.log(rates) - np.log(onset)) / (np.log(floor) - np.log(onset))
    return start - (start - low) * np.clip(done, 0, 1)


def quick_search(classifier: Any, data: Any, **options: Any) -> Any:
    settings = {"num_training": 20, "lowest": 1e-3, "highest": 1.0, "trainer_options": {"accelerator": "cpu"}} | options
    return search(classifier, data, **settings)


@given(onset=st.floats(2e-3, 2e-2), length=st.floats(3, 100), noise=st.floats(0, 0.03), seed=st.integers(0, 1000))
@settings(deadline=None)
def test_bounds_are_where_the_descent_begins_and_ends(onset: float, length: float, noise: float, seed: int) -> None:
    floor = onset * length
    losses = valley(LADDER, onset, floor) + np.random.default_rng(seed).normal(0, noise, len(LADDER))
    found = derive(LADDER, losses.tolist())
    assert floor / 3 < found.lr_max < floor * 3
    assert found.lr_min <= found.lr_max / LEAST_RATIO
    assert LADDER[0] * 0.99 / LEAST_RATIO <= found.lr_min


def test_what_follows_the_floor_does_not_matter() -> None:
    losses = valley(LADDER, 5e-3, 0.2)
    diverging = losses.copy()
    diverging[85:] = np.linspace(3, 300, 15)
    assert derive(LADDER, diverging.tolist()).lr_max == pytest.approx(derive(LADDER, losses.tolist()).lr_max, rel=0.1)
    cut = [*losses[:85].tolist(), float("nan"), 5.0]
    assert derive(LADDER[:87], cut).lr_max == pytest.approx(derive(LADDER, losses.tolist()).lr_max, rel=0.1)


@pytest.mark.parametrize("losses", [[2.3] * 100, np.linspace(2.3, 9, 100).tolist(), [float("nan")] * 100])
def test_a_loss_that_never_falls_is_an_error(losses: list[float]) -> None:
    with pytest.raises(InputError, match="the loss never fell"):
        derive(LADDER, losses)


def test_raw_losses_are_those_of_a_loop_by_hand() -> None:
    """The recorded figures are the plain losses of plain SGD on the ladder, not Lightning's debiased ones."""
    data = make_data()
    classifier = make_classifier(data)
    found = quick_search(classifier, data)
    network = copy.deepcopy(classifier)
    optimizer = network.make_optimizer(lr=1.0)
    batches = data.train_dataloader()
    expected = []
    for step, rate in enumerate(found.rates):
        epoch, batch = divmod(step, len(batches))
        images, labels = batches.dataset[epoch, batch]
        loss = network.criterion(network(images), labels)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    assert found.losses == pytest.approx(expected, rel=1e-4)
    assert len(found.rates) == 20
    assert found.rates[0] == pytest.approx(1e-3)
    assert found.rates[-1] == pytest.approx(1.0)


def test_found_bounds_train_as_the_same_bounds_given(tmp_path: Path) -> None:
    def train(given: dict[str, float] | None) -> Any:
        data = make_data()
        classifier = make_classifier(data, **(given or {"lr_min": None, "lr_max": None}))
        if given is None:
            found = quick_search(classifier, data)
            classifier.hparams.update(lr_min=found.lr_min, lr_max=found.lr_max)
        make_trainer(tmp_path).fit(classifier, datamodule=data)
        return classifier

    found = train(None)
    given = train({name: json.loads(json.dumps(found.hparams[name])) for name in ("lr_min", "lr_max")})
    for name, value in found.state_dict().items():
        assert torch.equal(value, given.state_dict()[name]), name


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"trainer_options": {"accelerator": "cpu", "accumulate_grad_batches": 2}},
        {"trainer_options": {"accelerator": "cpu", "precision": "16-mixed"}},
        {"num_training": 50},  # many times the data set
        {"highest": 1e12},  # diverges
    ],
)
def test_no_trace_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    monkeypatch.chdir(tmp_path)
    data = make_data()
    classifier = make_classifier(data)
    weights = {name: value.clone() for name, value in classifier.state_dict().items()}
    hparams = copy.deepcopy(dict(classifier.hparams))
    seed_everything(7, verbose=False)
    expected = (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random())
    seed_everything(7, verbose=False)
    quick_search(classifier, data, **options)
    assert (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()) == expected
    for name, value in classifier.state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert all(parameter.grad is None for parameter in classifier.parameters())
    assert dict(classifier.hparams) == hparams
    assert classifier._trainer is None
    assert list(tmp_path.iterdir()) == []


def test_steps_count_optimizer_steps_under_accumulation() -> None:
    data = make_data()
    found = quick_search(
        make_classifier(data), data, trainer_options={"accelerator": "cpu", "accumulate_grad_batches": 3}
    )
    assert len(found.losses) == 20


def test_picture_and_record(tmp_path: Path) -> None:
    losses = valley(LADDER, 5e-3, 0.2)
    found = derive(LADDER, losses.tolist(), seconds=1.5)
    write(found, {"optimizer": "sgd"}, tmp_path)
    record = json.loads((tmp_path / "lr_find.json").read_text())
    assert record["rates"] == LADDER
    assert record["losses"] == losses.tolist()
    assert (record["lr_min"], record["lr_max"]) == (found.lr_min, found.lr_max)
    assert record["optimizer"] == "sgd"
    with Image.open(tmp_path / "lr_find.png") as picture:
        assert picture.width > 600
