"""Checkpoints from which training goes on exactly: every few minutes, and where a signal asks for an end."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from cifar_resnet import interruption
from cifar_resnet.callbacks.history import divergence
from cifar_resnet.interruption import Interrupted
from cifar_resnet.training.classifier import ImageClassifier


class ResumableCheckpoint(Callback):
    """Replaces ``last.ckpt`` within an epoch, which Lightning's ModelCheckpoint writes at the end of each.

    What is saved is never beyond what the loggers have on disk, and never without a finite loss behind it.

    Args:
        minutes: from one checkpoint to the next.
        source: the call of what reads the images, for who evaluates the checkpoint.
    """

    def __init__(self, minutes: float, source: Mapping[str, Any]):
        self.minutes = minutes
        self.source = dict(source)
        self._saved_at = time.monotonic()
        self._saved_step = -1
        self._ending: int | None = None  # the signal that all devices have agreed to follow
        self._unwritten = False
        self._progress: dict[str, Tensor] | None = None  # of the checkpoint that is gone on from

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep what `on_save_checkpoint` has added until training starts; older versions did not add it."""
        self._progress = checkpoint.get("progress")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with the figures and the random numbers of a checkpoint; begin to count the minutes."""
        assert isinstance(pl_module, ImageClassifier)
        if self._progress is not None:
            _restore(self._progress, pl_module, trainer)
            self._progress = None
        interruption.keep_listening()
        self._saved_at = time.monotonic()

    def on_train_batch_end(  # type: ignore[no-untyped-def]
        self, trainer: Trainer, pl_module: LightningModule, outputs, batch: Any, batch_idx: int
    ) -> None:
        """Save where it is time to, and where the optimizer's last step is complete."""
        if not trainer.checkpoint_callbacks or batch_idx + 1 >= trainer.num_training_batches:
            return  # the end of the epoch saves
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return  # gradients are not saved
        steps, interval = trainer.global_step, trainer.log_every_n_steps  # type: ignore[attr-defined]
        if interval > 1 and steps % interval == 0:
            return  # its figures are logged after this
        if trainer.world_size > 1 and interval > 1 and steps % interval != 1:
            return  # asking all devices is a wait
        if self._is_ending(trainer) or self._is_time(trainer):
            trainer.save_checkpoint(_last_checkpoint(trainer))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add what makes the rest of an epoch exact, and let the loggers write what belongs before it.

        Raises:
            RunError: the weights are not finite; the checkpoint before this one stays.
        """
        if not all(weights.isfinite().all() for weights in pl_module.parameters()):
            raise divergence(trainer, "the weights are not finite any more")
        assert isinstance(pl_module, ImageClassifier)
        checkpoint |= {"devices": trainer.world_size, "precision": trainer.precision}
        checkpoint["source"] = self.source | trainer.datamodule.source.settled()  # type: ignore[attr-defined]
        checkpoint["progress"] = {
            name: trainer.strategy.all_gather(state.to(pl_module.device))
            for name, state in (_figures(pl_module) | _random_states(pl_module.device)).items()
        }
        self._write_log(trainer)
        self._saved_at, self._saved_step, self._unwritten = time.monotonic(), trainer.global_step, True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """End here if a signal asked for it and all that was trained is saved."""
        self._go_on_or_end(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End here if a signal asked for it during the evaluation."""
        self._is_ending(trainer)
        self._go_on_or_end(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End before the test if a signal asked for it."""
        self._is_ending(trainer)
        self._go_on_or_end(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on taking signals."""
        interruption.keep_listening()

    def _is_ending(self, trainer: Trainer) -> bool:
        asked = interruption.requested()
        if trainer.strategy.reduce_boolean_decision(asked is not None, all=False):
            self._ending = asked or interruption.SIGNALS[1]
        return self._ending is not None

    def _is_time(self, trainer: Trainer) -> bool:
        is_time = time.monotonic() - self._saved_at >= 60 * self.minutes
        return trainer.strategy.reduce_boolean_decision(is_time, all=False)

    def _go_on_or_end(self, trainer: Trainer) -> None:
        if self._unwritten:  # the figures of the step or epoch that the checkpoint ends with are logged after it
            self._write_log(trainer)
            self._unwritten = False
        if self._ending is not None and self._saved_step == trainer.global_step:
            raise Interrupted(self._ending)

    def _write_log(self, trainer: Trainer) -> None:
        for logger in trainer.loggers:
            logger.save()


def _last_checkpoint(trainer: Trainer) -> Path:
    callback = trainer.checkpoint_callback
    assert isinstance(callback, ModelCheckpoint)
    assert callback.dirpath is not None
    return Path(callback.dirpath, "last.ckpt")


def _figures(classifier: ImageClassifier) -> dict[str, Tensor]:
    """Return the figures of the epoch so far, of this device's images."""
    classifier.train_metrics.persistent(True)
    figures = classifier.train_metrics.state_dict()
    classifier.train_metrics.persistent(False)
    return figures


def _random_states(device: torch.device) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    return states | {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else states


def _restore(progress: dict[str, Tensor], classifier: ImageClassifier, trainer: Trainer) -> None:
    """Take this device's share of what all devices had saved."""
    several, rank = trainer.world_size > 1, trainer.global_rank
    own = {name: states[rank].clone() if several else states for name, states in progress.items()}
    torch.set_rng_state(own.pop("cpu").cpu())
    if "cuda" in own:
        torch.cuda.set_rng_state(own.pop("cuda").cpu(), classifier.device)
    classifier.train_metrics.persistent(True)
    classifier.train_metrics.load_state_dict(own)
    classifier.train_metrics.persistent(False)
