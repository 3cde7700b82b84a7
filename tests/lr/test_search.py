"""The search derives its bounds from the raw losses by its rule, and leaves no trace."""

import copy
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_classifier, make_data, make_trainer
from lightning.pytorch import seed_everything

from cifar_resnet.data.datamodule import ImageDataModule
from cifar_resnet.errors import InputError
from cifar_resnet.lr.bounds import Doubt
from cifar_resnet.lr.search import search, write_lr_search
from cifar_resnet.training.classifier import ImageClassifier


def calm_data() -> ImageDataModule:
    """Images enough for losses so calm that one sweep leaves no doubt."""
    return make_data(train=96, batch_size=48)


def quick_search(classifier: Any, data: Any, **options: Any) -> Any:
    settings = {
        "num_training": 20,
        "lowest": 1e-3,
        "highest": 1.0,
        "lr_max_factor": 0.5,
        "trainer_options": {"accelerator": "cpu", "devices": 1},
    } | options
    return search(classifier, data, **settings)


def test_raw_losses_are_those_of_a_loop_by_hand() -> None:
    """The recorded figures are the plain losses of plain SGD on the ladder, not Lightning's debiased ones."""
    data = calm_data()
    classifier = make_classifier(data)
    found = quick_search(classifier, data)
    network = copy.deepcopy(classifier)
    optimizer = network.make_optimizer(lr=1.0)
    batches = data.train_dataloader()
    expected = []
    rates, (losses,) = found.bounds.rates, found.sweeps
    for step, rate in enumerate(rates):
        epoch, batch = divmod(step, len(batches))
        images, labels = batches.batches[epoch, batch]
        loss = network.criterion(network(images), labels)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    assert losses == pytest.approx(expected, rel=1e-4)
    assert found.bounds.losses == losses
    assert len(rates) == 20
    assert rates[0] == pytest.approx(1e-3)
    assert rates[-1] == pytest.approx(1.0)


def test_found_bounds_train_as_the_same_bounds_given(tmp_path: Path) -> None:
    def train(given: dict[str, float] | None) -> Any:
        data = calm_data()
        classifier = make_classifier(data, **(given or {"lr_min": None, "lr_max": None}))
        if given is None:
            found = quick_search(classifier, data)
            classifier.hparams.update(lr_min=found.bounds.lr_min, lr_max=found.bounds.lr_max)
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
        {"trainer_options": {"accelerator": "cpu", "devices": 1, "accumulate_grad_batches": 2}},
        {"trainer_options": {"accelerator": "cpu", "devices": 1, "precision": "16-mixed"}},
        {"num_training": 50},  # many times the data set
        {"highest": 1e12},  # diverges
        {"repeats": 2},
    ],
)
def test_no_trace_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    monkeypatch.chdir(tmp_path)
    data = calm_data()
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
    with pytest.raises(RuntimeError, match="not attached"):
        _ = classifier.trainer
    assert list(tmp_path.iterdir()) == []


def test_steps_count_optimizer_steps_under_accumulation() -> None:
    data = calm_data()
    found = quick_search(
        make_classifier(data), data, trainer_options={"accelerator": "cpu", "devices": 1, "accumulate_grad_batches": 2}
    )
    assert len(found.sweeps[0]) == 20
    assert found.bounds.most_over_middle == pytest.approx(0.5 * (2 * data.batch_size_in_effect) ** 0.5)


def test_repeats_differ_and_are_averaged() -> None:
    data = calm_data()
    classifier = make_classifier(data)
    once, thrice = quick_search(classifier, data), quick_search(classifier, data, repeats=3)
    assert len(thrice.sweeps) == 3
    assert thrice.sweeps[0] == once.sweeps[0]
    assert len({losses[0] for losses in thrice.sweeps}) == 3
    assert thrice.bounds.losses == pytest.approx(np.mean(thrice.sweeps, axis=0).tolist())
    assert quick_search(classifier, data, repeats=3).sweeps == thrice.sweeps


def test_parameter_groups_keep_their_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Spy(torch.optim.SGD):
        def step(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().step(*args, **kwargs)
            seen.append([group["lr"] for group in self.param_groups])
            return loss

    def two_groups(self: ImageClassifier, lr: float) -> Spy:
        first, *rest = self.network.parameters()
        return Spy([{"params": [first], "lr": lr}, {"params": rest, "lr": lr / 2}], lr=lr)

    monkeypatch.setattr(ImageClassifier, "make_optimizer", two_groups)
    data = calm_data()
    found = quick_search(make_classifier(data), data)
    assert [first for first, _ in seen] == pytest.approx(found.bounds.rates)
    assert [second for _, second in seen] == pytest.approx([rate / 2 for rate in found.bounds.rates])


@pytest.mark.parametrize(
    ("options", "doubt", "ends"),
    [
        ({"lowest": 1e-4, "highest": 1e-2}, Doubt.HIGHEST, (1e-4, 1.0)),
        ({"lowest": 0.05, "highest": 1.0}, Doubt.LOWEST, (5e-4, 1.0)),
    ],
)
def test_a_ladder_that_ends_too_early_is_widened_once(
    options: dict[str, float], doubt: Doubt, ends: tuple[float, float]
) -> None:
    data = calm_data()
    found = quick_search(make_classifier(data), data, num_training=40, **options)
    assert found.first_doubt == doubt
    assert len(found.sweeps) == 1
    assert (found.bounds.rates[0], found.bounds.rates[-1]) == pytest.approx(ends)
    assert f"a second attempt, since at first {doubt}" in found.summary


def test_a_sweep_stops_where_it_diverges() -> None:
    data = calm_data()
    found = quick_search(make_classifier(data), data, num_training=60, highest=1e12)
    assert len(found.sweeps[0]) < 60
    assert all(np.isfinite(found.sweeps[0]))


def test_labels_without_meaning_are_refused_after_a_second_attempt() -> None:
    data = make_data(batch_size=2)
    labels = torch.randint(len(data.classes), (len(data.train),), generator=torch.Generator().manual_seed(0))
    data.train = replace(data.train, labels=labels.numpy())
    with pytest.raises(
        InputError, match=r"the learning-rate search failed: the loss (never fell|fell .* no more than)"
    ):
        quick_search(make_classifier(data), data, num_training=40)


def test_the_record(tmp_path: Path) -> None:
    data = calm_data()
    found = quick_search(make_classifier(data), data, repeats=2)
    write_lr_search(found, {"optimizer": "sgd"}, tmp_path)
    record = json.loads((tmp_path / "lr_find.json").read_text())
    assert record["rates"] == found.bounds.rates
    assert record["sweeps"] == found.sweeps
    assert (record["lr_min"], record["lr_max"]) == (found.bounds.lr_min, found.bounds.lr_max)
    assert record["verdict"] == found.bounds.verdict
    assert record["optimizer"] == "sgd"
