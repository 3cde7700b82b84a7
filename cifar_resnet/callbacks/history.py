"""What happened in each epoch: a line in the terminal, the train and test curves, and the time that training took."""

import time
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from rich import get_console

from cifar_resnet.callbacks.pictures import write_picture
from cifar_resnet.errors import RunError
from cifar_resnet.lr.figure import BLUE, ORANGE
from cifar_resnet.training.classifier import ImageClassifier


@dataclass(frozen=True)
class Epoch:
    """Figures of one epoch; those of the validation are None where it was not followed by an evaluation."""

    number: int
    train_loss: float
    train_accuracy: float
    val_loss: float | None
    val_accuracy: float | None
    seconds: float


class History(Callback):
    """Times the optimizer's work, reports each epoch and keeps its figures; a checkpoint holds them.

    Attributes:
        epochs: one entry an epoch of this run.
        images: images trained on, over all devices.
        seconds: time of the optimizer's epochs alone, evaluation left out.
        resumed: how often the run was gone on with after an interruption.
    """

    def __init__(self) -> None:
        self.epochs: list[Epoch] = []
        self.images = 0
        self.seconds = 0.0
        self.resumed = 0
        self._clock: float | None = None  # when it was started; None while it stands still
        self._before = 0.0  # seconds, when the epoch began
        self._images_before = 0
        self._evaluated = False

    def state_dict(self) -> dict[str, Any]:
        """Return all of it; the clock goes on."""
        if self._clock is not None:
            self._stop()
            self._start()
        kept = {name: getattr(self, name) for name in ("images", "seconds", "resumed", "_before", "_images_before")}
        return kept | {"epochs": [asdict(epoch) for epoch in self.epochs]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a checkpoint was made."""
        vars(self).update(state_dict)
        self.epochs = [Epoch(**epoch) for epoch in state_dict["epochs"]]
        self.resumed += 1

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note where the epoch begins."""
        self._before, self._images_before, self._evaluated = self.seconds, self.images, False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock; stop a training that has diverged, as seen from the last step whose loss was logged.

        Raises:
            RunError: the loss is not finite any more.
        """
        if self._clock is None:
            self._start()
        loss = trainer.logged_metrics.get("step/loss")
        if loss is not None and trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._check(loss.item(), trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int) -> None:  # type: ignore[no-untyped-def]
        """Count the images."""
        self.images += len(batch[1]) * trainer.world_size

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock during the validation."""
        self._stop()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that there was one."""
        self._evaluated = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep, print and log the epoch's figures.

        Raises:
            RunError: the loss is not finite any more.
        """
        assert isinstance(pl_module, ImageClassifier)
        self._stop()
        train = {name: value.item() for name, value in pl_module.train_metrics.compute().items()}
        name = pl_module.hparams["validation_name"]
        seen = trainer.callback_metrics if self._evaluated else {}  # Lightning keeps those of earlier epochs
        values = (seen.get(f"{name}/{figure}") for figure in ("loss", "accuracy"))
        val_loss, val_accuracy = (None if value is None else value.item() for value in values)
        number, seconds = trainer.current_epoch + 1, self.seconds - self._before
        epoch = Epoch(number, train["loss"], train["accuracy"], val_loss, val_accuracy, seconds)
        self.epochs.append(epoch)
        pl_module.log("speed/images_per_second", (self.images - self._images_before) / max(seconds, 1e-9))
        if trainer.is_global_zero:
            get_console().print(_line(epoch, trainer.max_epochs, name), highlight=False, soft_wrap=True)
        self._check(epoch.train_loss, trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the curves, and leave them in ``curves.png`` in the run's folder."""
        if trainer.is_global_zero and self.epochs and isinstance(trainer.logger, TensorBoardLogger):
            figure = draw_curves(self.epochs, pl_module.hparams["validation_name"])
            file = Path(trainer.logger.log_dir) / "curves.png"
            write_picture(figure, file, trainer.logger, "curves", trainer.global_step)

    def _check(self, loss: float, trainer: Trainer) -> None:
        if not isfinite(loss):
            raise divergence(trainer, f"the loss is {loss}")

    def _start(self) -> None:
        _synchronize()
        self._clock = time.perf_counter()

    def _stop(self) -> None:
        if self._clock is not None:
            _synchronize()
            self.seconds += time.perf_counter() - self._clock
            self._clock = None


def divergence(trainer: Trainer, what: str) -> RunError:
    """Return the error that says where training diverged, by what one sees it, and what to do."""
    rate = trainer.optimizers[0].param_groups[0]["lr"]
    return RunError(
        f"training diverged at step {trainer.global_step} (epoch {trainer.current_epoch + 1}), at a rate of {rate:.3g} "
        f"({what}): lower schedule.lr_max, or try trainer.gradient_clip_val=1 optimizer.fused=false"
    )


def _synchronize() -> None:
    """Wait for an accelerator's queue, so that its work is timed rather than its launches."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def _line(epoch: Epoch, epochs: int | None, name: str) -> str:
    def figures(part: str, loss: float, accuracy: float) -> str:
        return f"{part} loss {loss:#9.4g}  accuracy {accuracy:7.2%}"  # of one width, whatever the loss is

    line = f"epoch {epoch.number:>3}/{epochs}  {figures('train', epoch.train_loss, epoch.train_accuracy)}"
    if epoch.val_loss is not None and epoch.val_accuracy is not None:
        line += f"   {figures(name, epoch.val_loss, epoch.val_accuracy)}"
    return f"{line}  {epoch.seconds:7.1f} s"


def draw_curves(epochs: list[Epoch], validation_name: str) -> Figure:
    """Draw loss and accuracy of the training and the validation images against the epoch."""
    figure = Figure(figsize=(7, 3), dpi=120, layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for part, label, style, colour in (("train", "train", "o-", BLUE), ("val", validation_name, "s-", ORANGE)):
            values = [(epoch.number, getattr(epoch, f"{part}_{name}")) for epoch in epochs]
            known = np.array([point for point in values if point[1] is not None]).reshape(-1, 2)
            axes.plot(*known.T, style, ms=3, color=colour, label=label)
        axes.set(xlabel="epoch", title=name)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    loss, accuracy = figure.axes
    losses = np.concatenate([line.get_ydata() for line in loss.lines])
    if losses.max() > 10 * losses.min() > 0:  # as where the first epoch's hides all others
        loss.set_yscale("log")
        loss.yaxis.set_major_formatter("{x:g}")
        loss.yaxis.set_minor_formatter(NullFormatter())
    loss.legend(frameon=False)
    accuracy.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")
    return figure
