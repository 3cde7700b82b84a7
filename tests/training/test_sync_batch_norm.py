"""Batch norm over several processes is batch norm over the whole batch: values, gradients, statistics, training."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import free_port, make_classifier, make_data, make_trainer, start
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, distributed, nn

from cifar_resnet.data.augment import Augmentation
from cifar_resnet.data.batches import TrainingBatches, TrainingLoader
from cifar_resnet.training.sync_batch_norm import CPUSyncBatchNorm

BOUNDS = (0, 2, 7)  # two processes share seven images: two and five
LAYERS: dict[str, nn.Module] = {
    "2d": nn.BatchNorm2d(3),
    "1d": nn.BatchNorm1d(3),
    "3d": nn.BatchNorm3d(3, eps=0.1),
    "average": nn.BatchNorm2d(3, momentum=None),
    "plain": nn.BatchNorm2d(3, affine=False),
    "forgetful": nn.BatchNorm2d(3, track_running_stats=False),
}
SIDES = {"1d": (), "3d": (2, 3, 2)}


def passed(layer: nn.Module, name: str, share: slice, steps: int = 2) -> dict[str, Tensor]:
    """What a layer makes of a share of seven images, twice in training and once in evaluation."""
    draw = torch.Generator().manual_seed(0)
    found: dict[str, Tensor] = {}
    for parameter in layer.parameters():
        parameter.data = torch.randn(3, generator=draw)
    for step in range(steps):
        shape = (7, 3, *SIDES.get(name, (4, 5)))
        whole, weights = torch.randn(shape, generator=draw) * 3 + 100, torch.randn(shape, generator=draw)
        x = whole[share].clone().requires_grad_()
        y = layer(x)
        (weights[share] * y.square()).sum().backward()
        found |= {f"output {step}": y.detach(), f"gradient {step}": x.grad}  # type: ignore[dict-item]
    gradients = {f"gradient of {key}": value.grad for key, value in layer.named_parameters()}
    state = {key: value.clone() for key, value in layer.state_dict().items()}
    if layer.running_mean is not None:  # else it has the statistics of its share alone
        found["evaluated"] = layer.eval()(whole[share]).detach()
    return found | gradients | state  # type: ignore[return-value]


def pass_share(rank: int, folder: Path) -> None:
    """What one of two processes does with the synchronized layers."""
    distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    share = slice(BOUNDS[rank], BOUNDS[rank + 1])
    layers = {name: CPUSyncBatchNorm().apply(layer) for name, layer in LAYERS.items()}
    torch.save({name: passed(layer, name, share) for name, layer in layers.items()}, folder / f"{rank}.pt")
    distributed.barrier()  # so that none has ended while another still looks for it
    distributed.destroy_process_group()


class Losses(Callback):
    """The mean loss of every step over all processes."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        loss = trainer.strategy.reduce(outputs["loss"], reduce_op="mean")
        assert isinstance(loss, Tensor)
        self.seen.append(loss.item())
        if len(self.seen) % trainer.log_every_n_steps == 0:
            assert trainer.logged_metrics["step/loss"].item() == pytest.approx(loss.item())


def fit(rank: int, folder: Path, devices: int, synchronized: bool, port: int = 0) -> None:
    """Take 50 steps without augmentation as one of several processes; the first leaves losses and weights.

    In float64, for what rounding does to a max-pool or a ReLU that is about to switch grows from step to step.
    """
    several: dict[str, Any] = {}
    if devices > 1:
        os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        several = {"devices": devices, "strategy": "ddp", "plugins": [CPUSyncBatchNorm()] * synchronized}
    data, losses = make_data(train=120), Losses()
    assert data.train is not None
    trainer = make_trainer(
        folder, max_epochs=10, limit_val_batches=0, precision="64-true", callbacks=[losses], **several
    )
    unchanged = Augmentation(32, flip=False, cutout=0, fill=np.zeros(3, np.uint8))
    arrays = torch.from_numpy(data.train.images), torch.from_numpy(data.train.labels)
    batches = TrainingBatches(*arrays, unchanged, 24, 0, trainer.global_rank, trainer.world_size)
    classifier = make_classifier(data, max_epochs=10, peak_epoch=2)
    before = [*map(type, classifier.modules())]
    trainer.fit(classifier, TrainingLoader(batches, num_workers=0, pin_memory=False))
    assert [*map(type, classifier.modules())] == before
    if trainer.is_global_zero:
        torch.save([losses.seen, classifier.state_dict()], folder / "fitted.pt")
    trainer.strategy.barrier()  # so that none has ended while another still looks for it


def test_two_processes_normalize_as_one_does_the_whole_batch(tmp_path: Path) -> None:
    start(pass_share, 2, tmp_path)
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for name, layer in LAYERS.items():
        whole = passed(layer, name, slice(0, 7))
        assert one[name].keys() == whole.keys()
        for key, expected in whole.items():
            shares = one[name][key], other[name][key]
            if key.startswith("gradient of"):
                assert torch.allclose(sum(shares), expected, rtol=1e-4, atol=1e-4), (name, key)  # type: ignore[arg-type]
            elif key.startswith(("output", "gradient", "evaluated")):
                assert torch.allclose(torch.cat(shares), expected, rtol=1e-4, atol=1e-4), (name, key)
            else:
                assert torch.equal(*shares)
                assert torch.allclose(shares[0], expected, rtol=1e-5), (name, key)


def fitted(folder: Path, devices: int, synchronized: bool = True) -> tuple[list[float], dict[str, Tensor]]:
    """The losses of 50 steps by so many processes, and the weights that they lead to."""
    if devices == 1:
        fit(0, folder, 1, synchronized)
    else:
        start(fit, devices, folder, devices, synchronized, free_port())
    losses, weights = torch.load(folder / "fitted.pt", weights_only=True)
    assert len(losses) == 50
    return losses, weights


def gap(one: list[float], other: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def test_fifty_steps_have_the_losses_of_one_process(tmp_path: Path) -> None:
    alone, weights = fitted(tmp_path, 1)
    assert alone[-1] < alone[0] / 2
    for devices in (2, 3):
        losses, shared = fitted(tmp_path, devices)
        assert gap(alone, losses) < 1e-9
        assert shared.keys() == weights.keys()
        assert all(torch.allclose(shared[name], values, rtol=1e-6) for name, values in weights.items())
    apart, _ = fitted(tmp_path, 3, synchronized=False)
    assert gap(alone, apart) > 1e-2


def test_revert_gives_back_the_layers() -> None:
    class Own(nn.BatchNorm2d):
        pass

    network = nn.Sequential(nn.BatchNorm1d(2), nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm3d(2)), Own(2), nn.ReLU())
    before, keys = [*map(type, network.modules())], [*network.state_dict()]
    applied = CPUSyncBatchNorm().apply(network)
    assert sum(type(layer) is not kind for layer, kind in zip(applied.modules(), before, strict=True)) == 3
    assert [*applied.state_dict()] == keys
    assert [*map(type, CPUSyncBatchNorm().revert(applied).modules())] == before
