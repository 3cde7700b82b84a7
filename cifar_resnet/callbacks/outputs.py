"""The one place that keeps what the network says of the test images, for all that is made of it afterwards."""

from collections.abc import Sequence

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn.functional import cross_entropy

from cifar_resnet.analysis.misclassified import Misclassified, find_misclassified
from cifar_resnet.errors import InputError


class OutputCollector(Callback):
    """Keeps the network's outputs and the labels of a test run, in the order of the test images, of all devices.

    Give it to the Trainer beside the callbacks that read it, which do so when the test epoch ends; it may stand before
    or behind them.

    Args:
        flip: classify the mirror images as well.
    """

    def __init__(self, flip: bool = False):
        self.flip = flip
        self._logits, self._mirrored, self._labels = list[Tensor](), list[Tensor](), list[Tensor]()

    @property
    def probabilities(self) -> Tensor:
        """The probability of each class, float32 ``[N, classes]`` in 0 to 1, on the CPU; `InputError` for NaN."""
        return _probabilities(self._logits)

    @property
    def mirrored(self) -> Tensor | None:
        """As `probabilities`, those of the mirror images; None without ``flip``."""
        return _probabilities(self._mirrored) if self.flip else None

    @property
    def labels(self) -> Tensor:
        """The true classes, int64 ``[N]``, on the CPU."""
        return torch.cat(self._labels).cpu()

    def misclassified(self, files: Sequence[str] | None) -> list[Misclassified]:
        """Return every error, the most confident first; ``files`` names the images' files, where they have any."""
        losses = cross_entropy(torch.cat(self._logits).float().cpu(), self.labels, reduction="none")
        losses = losses.nan_to_num()  # JSON has no infinity
        return find_misclassified(self.probabilities.numpy(), losses.numpy(), self.labels.numpy(), files)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier run."""
        self._logits, self._mirrored, self._labels = [], [], []

    def on_test_batch_end(  # type: ignore[no-untyped-def]
        self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep the logits; they stay on the device until they are asked for."""
        images, labels = batch
        self._logits.append(outputs)
        self._labels.append(labels)
        if self.flip:
            with trainer.precision_plugin.forward_context():  # that of the test step, which is over by now
                self._mirrored.append(pl_module(images.flip(2)))
        if trainer.world_size > 1 and batch_idx + 1 == trainer.num_test_batches[dataloader_idx]:
            for kept in filter(None, (self._logits, self._labels, self._mirrored)):
                kept[:] = [_of_all_devices(torch.cat(kept), trainer)]


def _of_all_devices(own: Tensor, trainer: Trainer) -> Tensor:
    """Return the rows of all devices, in the order of the devices, which may have different numbers of them."""
    counts = trainer.strategy.all_gather(torch.tensor(len(own), device=own.device)).flatten()
    filled = own.new_zeros(int(counts.max()), *own.shape[1:])
    filled[: len(own)] = own
    parts = trainer.strategy.all_gather(filled)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def _probabilities(logits: Sequence[Tensor]) -> Tensor:
    probabilities = torch.cat(list(logits)).float().softmax(dim=1).cpu()
    if probabilities.isnan().any():
        raise InputError("the network's outputs are not numbers: its training diverged; take another checkpoint")
    return probabilities
