"""The Trainer as the scripts build it: what a step costs beside the network."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_data
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: PLC2701  torch documents it under this name

from cifar_resnet import build
from cifar_resnet.cli.compose import compose
from cifar_resnet.data.patches import patch_covariance
from cifar_resnet.models.whitening import PatchWhitening

LOGGED = 4


class Transfers(TorchDispatchMode):
    """Counts, by step, single values read from the device or sent to it; the host waits for a GPU at each."""

    def __init__(self) -> None:
        super().__init__()
        self.step = -1
        self.counts: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        read = func is torch.ops.aten._local_scalar_dense.default  # noqa: SLF001  the operator's name
        sent = func is torch.ops.aten.lift_fresh.default and isinstance(result, Tensor) and result.dim() == 0
        self.counts[self.step] = self.counts.get(self.step, 0) + (read or sent)
        return result


class CountSteps(Callback):
    def __init__(self, transfers: Transfers):
        self.transfers = transfers

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.transfers.step = trainer.global_step + 1


@pytest.mark.parametrize("in_terminal", [True, False])
def test_only_logged_steps_wait_for_the_device(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    in_terminal: bool,
) -> None:
    monkeypatch.setattr("rich._console", None)  # made anew when it is asked for
    if in_terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    config = compose(
        "train",
        "data=digits",
        "model.width=2",
        "schedule.lr_min=0.01",
        "schedule.lr_max=0.1",
        "schedule.peak_epoch=1",
        "trainer.max_epochs=2",
        f"trainer.log_every_n_steps={LOGGED}",
        f"trainer.default_root_dir={tmp_path}",
    )
    data, transfers = make_data(train=16 * 10), Transfers()
    trainer = build.build_trainer(config, [CountSteps(transfers)], "32-true")
    classifier = build.build_classifier(config, data)
    with transfers:
        trainer.fit(classifier, datamodule=data)
    inner = range(1, 10)  # an epoch's figures are read after its last step
    assert {step for step in inner if transfers.counts[step]} == {LOGGED, 2 * LOGGED}
    screen = capsys.readouterr().out
    assert ("accuracy:" in screen) == in_terminal
    assert ("epoch 2/2 " in screen) == in_terminal


def test_the_first_layer_is_whitened_by_the_training_images(tmp_path: Path) -> None:
    """Those that are trained on, normalized: neither those held out nor the test's."""
    data = make_data(train=60, val_size=30)
    config = compose("train", "data=digits", "model=resnet9", "model.width=2", "model.whiten=true")
    assert data.train is not None
    covariance = patch_covariance(data.train.images, data.std)
    filters = build.build_classifier(config, data).network.prep[0].filters
    assert torch.equal(filters, PatchWhitening(covariance).filters)
    everything = np.concatenate([data.train.images, data.val.images])
    assert not torch.allclose(filters, PatchWhitening(patch_covariance(everything, data.std)).filters)
