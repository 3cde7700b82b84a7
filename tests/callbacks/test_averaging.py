"""The moving average of the weights: what is evaluated and saved is the mean, and what is trained is not."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_classifier, make_data, make_trainer
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from cifar_resnet import train
from cifar_resnet.callbacks.averaging import MovingAverage
from cifar_resnet.errors import InputError
from cifar_resnet.training.checkpoint import load_classifier
from cifar_resnet.training.classifier import ImageClassifier

SMALL = [
    *("data=digits", "data.train_size=200", "data.batch_size=32", "model.width=2", "trainer.accelerator=cpu"),
    *("trainer.max_epochs=2", "schedule.peak_epoch=1", "schedule.lr_min=0.01", "schedule.lr_max=0.3"),
    *("gallery.count=0", "errors.limit=0"),
]


class Steps(Callback):
    """Keeps the weights after each step, and what is there while there is a validation."""

    def __init__(self) -> None:
        self.after: list[dict[str, Tensor]] = []
        self.validated: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.after.append(weights_of(pl_module))

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.validated.append(weights_of(pl_module))


def weights_of(module: LightningModule) -> dict[str, Tensor]:
    assert isinstance(module, ImageClassifier)
    return {name: value.clone() for name, value in module.network.state_dict().items() if value.is_floating_point()}


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], msg=name)


def test_the_mean_is_what_is_validated_saved_and_left(tmp_path: Path) -> None:
    """Steps 1, 3, 5, ... are averaged; the first mean is the first step's weights."""
    data, steps = make_data(), Steps()
    classifier = make_classifier(data, max_epochs=2)
    trainer = make_trainer(tmp_path, max_epochs=2, callbacks=[MovingAverage(0.9, every=2), steps])
    trainer.fit(classifier, datamodule=data)
    mean, means = steps.after[0], []
    for place, weights in enumerate(steps.after):
        if place and place % 2 == 0:
            mean = {name: 0.81 * mean[name] + 0.19 * value for name, value in weights.items()}
        means.append(mean)
    assert len(steps.after) == 6
    assert_close(means[2], steps.validated[0])
    assert_close(means[5], steps.validated[1])
    assert_close(means[5], weights_of(classifier))
    trainer.save_checkpoint(tmp_path / "mean.ckpt")
    assert_close(means[5], weights_of(load_classifier(str(tmp_path / "mean.ckpt"))))


def test_a_mean_changes_nothing_in_what_is_trained(tmp_path: Path) -> None:
    trained = []
    for callbacks in ([], [MovingAverage(0.9, every=1)]):
        data, steps = make_data(), Steps()
        make_trainer(tmp_path, callbacks=[*callbacks, steps]).fit(make_classifier(data), datamodule=data)
        trained.append(steps.after[-1])
    assert all(torch.equal(value, trained[1][name]) for name, value in trained[0].items())


@pytest.fixture(scope="module")
def averaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("averaged")
    train(*SMALL, "averaging.decay=0.9", f"trainer.default_root_dir={folder}")
    return folder / "lightning_logs" / "version_0" / "checkpoints" / "last.ckpt"


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("averaging.decay=null", r"averaging=\{'decay': 0.9, 'every': 5\}, not null"),
        ("averaging.decay=0.8", r"averaging=\{'decay': 0.9, 'every': 5\}, not \{'decay': 0.8"),
        ("averaging.decay=0.9 averaging.every=1", r"averaging=\{'decay': 0.9, 'every': 5\}, not \{'decay': 0.9, 'ev"),
    ],
)
def test_a_training_goes_on_with_the_same_mean_alone(averaged: Path, typed: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        train(*SMALL, f"ckpt_path={averaged}", f"trainer.default_root_dir={tmp_path}", *typed.split())
