"""LRMIN and LRMAX from one short sweep.

The sweep
    A copy of the classifier is trained for ``num_training`` steps while the rate climbs an exponential ladder, by
    Lightning's ``Tuner`` (the range test of Smith 2017, arXiv 1506.01186, section 3.3). The raw loss of each step is
    recorded here: the figures that Lightning keeps are debiased wrongly (its issue 14167), and its ``suggestion()``
    differentiates against the linear rate (its issue 21141). The curve is then smoothed symmetrically over log rate.

The rule
    The loss stays at its start while the rate is too small to matter, falls, and ends in a floor, which is flat and
    ragged for a network with batch norm: it often does not diverge at any rate of the ladder, so neither "the lowest
    point" nor "just before it diverges" (Smith 2018, arXiv 1803.09820) is a place that one finds twice. The slope is.
    LRMAX is twice the rate at which three quarters of the descent are done, which is where the descent ends; LRMIN is
    the rate at which a twentieth is done (Smith 2017's "when the accuracy starts to increase"), but at most LRMAX / 10
    (Smith 2018 has a tenth to a twentieth). In five sweeps with different seeds (SGD, width
    16, batch size 512, CIFAR-10 as JPEG) the place on the slope lay between the rates 0.11 and 0.17.
"""

import contextlib
import copy
import io
import json
import math
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.tuner import Tuner
from lightning.pytorch.utilities.seed import isolate_rng
from matplotlib.figure import Figure
from rich import get_console
from rich.progress import Progress
from torch import Tensor
from torch.optim import Optimizer

from cifar_resnet.classifier import ImageClassifier
from cifar_resnet.datamodule import Batch, ImageDataModule
from cifar_resnet.errors import InputError

DESCENT_ON_SLOPE = 0.75
"""Share of the descent that is done at a place on the slope that one finds again."""
SLOPE_TO_LR_MAX = 2
"""LRMAX is this multiple of the rate there."""
DESCENT_AT_LR_MIN = 0.05
LEAST_RATIO = 10
"""LRMAX / LRMIN is at least this."""
SMOOTHING = 0.05
"""Standard deviation of the Gaussian that smooths the curve, as a share of the ladder's steps."""
LEAST_DESCENT = 0.02
"""A sweep whose smoothed loss falls by less than this share of its start has found nothing."""


@dataclass(frozen=True)
class LrSearch:
    """The bounds, and all that they were derived from.

    Attributes:
        lr_min, lr_max: the bounds of the One Cycle schedule.
        slope: the rate at which three quarters of the descent are done.
        rates, losses: rate and raw training loss of each step of the sweep.
        smoothed: the loss smoothed over the neighbouring steps, before and after alike.
        start, floor: smoothed loss at the first step and at its lowest.
        seconds: how long the sweep took.
    """

    lr_min: float
    lr_max: float
    slope: float
    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    start: float
    floor: float
    seconds: float


class Probe(LightningModule):
    """A copy of a classifier that is trained in its place, and remembers the rate and the raw loss of each step."""

    def __init__(self, classifier: ImageClassifier, on_step: Any):
        super().__init__()
        self.classifier = copy.deepcopy(classifier)
        self.rates: list[float] = []
        self.losses: list[float] = []
        self._micro_losses: list[Tensor] = []
        self._on_step = on_step

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the classifier's training loss."""
        images, labels = batch
        loss = self.classifier.criterion(self.classifier(images), labels)
        self._micro_losses.append(loss.detach())
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Record the step, whose loss is the mean over the accumulated batches; stop once the loss is not finite."""
        self.rates.append(optimizer.param_groups[0]["lr"])
        self.losses.append(float(sum(self._micro_losses)) / len(self._micro_losses))
        self._micro_losses.clear()
        self._on_step()
        if not math.isfinite(self.losses[-1]):
            self.trainer.should_stop = True

    def configure_optimizers(self) -> Optimizer:
        """Return the classifier's optimizer; the Tuner sets its rates."""
        return self.classifier.make_optimizer(lr=1.0)


def search(
    classifier: ImageClassifier,
    data: ImageDataModule,
    *,
    num_training: int,
    lowest: float,
    highest: float,
    trainer_options: dict[str, Any],
) -> LrSearch:
    """Derive the bounds for this classifier, optimizer and data.

    It leaves no trace: a copy is trained, on one device, and the random number generators are put back.

    Args:
        classifier: what will be trained; not changed.
        data: its training batches are swept, with augmentation, from the first epoch on.
        num_training: optimizer steps of the sweep.
        lowest: rate of the first step.
        highest: rate of the last step.
        trainer_options: the Trainer options of the run that change a step: accelerator, precision, accumulation.

    Raises:
        InputError: the loss never fell.
    """
    started = time.perf_counter()
    console = get_console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("learning-rate search", total=num_training)
        probe = Probe(classifier, on_step=lambda: progress.advance(task))
        _sweep(probe, data, num_training, lowest, highest, trainer_options)
    return derive(probe.rates, probe.losses, time.perf_counter() - started)


def _sweep(
    probe: Probe, data: ImageDataModule, num_training: int, lowest: float, highest: float, options: dict[str, Any]
) -> None:
    with isolate_rng(), tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            **options,
            devices=1,
            max_epochs=-1,  # the sweep may need several epochs of a small data set
            max_steps=num_training,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=folder,  # the Tuner's own checkpoint goes there, and goes with it
        )
        with contextlib.redirect_stderr(io.StringIO()):  # the Tuner's own progress bar
            Tuner(trainer).lr_find(
                probe,
                datamodule=data,
                min_lr=lowest,
                max_lr=highest,
                num_training=num_training,
                early_stop_threshold=None,
                update_attr=False,
            )


def derive(rates: list[float], losses: list[float], seconds: float = 0.0) -> LrSearch:
    """Apply the rule of this module to the rates and raw losses of a sweep.

    Raises:
        InputError: the loss never fell.
    """
    finite = [math.isfinite(loss) for loss in losses]
    end = finite.index(False) if False in finite else len(losses)
    rates, losses = rates[:end], losses[:end]
    smoothed = _smooth(np.array(losses)) if losses else np.array([math.nan])
    start, floor = float(smoothed[0]), float(smoothed.min())
    if not start - floor > LEAST_DESCENT * start:
        raise InputError(
            f"the learning-rate search failed: the loss never fell from its start of {start:.3f}; "
            "check the labels, try other lr_search rates, or give schedule.lr_min and schedule.lr_max"
        )
    slope = _rate_at(DESCENT_ON_SLOPE, rates, smoothed)
    lr_max = min(SLOPE_TO_LR_MAX * slope, rates[-1])
    lr_min = min(_rate_at(DESCENT_AT_LR_MIN, rates, smoothed), lr_max / LEAST_RATIO)
    return LrSearch(_written(lr_min), _written(lr_max), slope, rates, losses, smoothed.tolist(), start, floor, seconds)


def _smooth(losses: np.ndarray) -> np.ndarray:
    """Gaussian mean over the neighbouring steps, weights renormalized where the ladder ends."""
    steps = np.arange(len(losses))
    weights = np.exp(-0.5 * ((steps[:, None] - steps) / max(SMOOTHING * len(losses), 1e-9)) ** 2)
    return (weights @ losses) / weights.sum(axis=1)


def _rate_at(share: float, rates: list[float], smoothed: np.ndarray) -> float:
    """Return the first rate at which this share of the descent is done."""
    level = smoothed[0] - share * (smoothed[0] - smoothed.min())
    return rates[int(np.argmax(smoothed <= level))]


def _written(rate: float) -> float:
    """Return the rate to four digits, as one would write it down."""
    return float(f"{rate:.3e}")


def write(result: LrSearch, facts: dict[str, Any], folder: Path) -> Figure:
    """Write ``lr_find.json`` and ``lr_find.png`` into ``folder``, and return the picture."""
    record = {"lr_min": result.lr_min, "lr_max": result.lr_max} | facts | asdict(result)
    (folder / "lr_find.json").write_text(json.dumps(record, indent=1) + "\n")
    figure = draw(result)
    figure.savefig(folder / "lr_find.png")
    return figure


def draw(result: LrSearch) -> Figure:
    """Draw the raw and the smoothed loss against the rate, with the bounds marked."""
    figure = Figure(figsize=(7, 4.6), dpi=120, layout="constrained")
    axes = figure.add_subplot(xscale="log", xlabel="learning rate", ylabel="training loss")
    axes.axvspan(result.lr_min, result.lr_max, color="#0072B2", alpha=0.10, label="rates of the One Cycle schedule")
    axes.scatter(result.rates, result.losses, s=12, color="#999999", label="raw loss of each step")
    axes.plot(result.rates, result.smoothed, color="#D55E00", linewidth=2, label="smoothed")
    descent = result.start - result.floor
    axes.plot(
        result.slope, result.start - DESCENT_ON_SLOPE * descent, "o", ms=9, mfc="white", mec="#D55E00", mew=2, zorder=3,
        label=f"{DESCENT_ON_SLOPE:.0%} of the descent, at LRMAX / {SLOPE_TO_LR_MAX}",
    )  # fmt: skip
    for name, rate in (("LRMIN", result.lr_min), ("LRMAX", result.lr_max)):
        axes.axvline(rate, color="#0072B2", linewidth=1.5)
        axes.annotate(
            f"{name} {rate:.2g}", (rate, 1), xycoords=("data", "axes fraction"), xytext=(5, -14),
            textcoords="offset points", color="#0072B2", weight="bold",
        )  # fmt: skip
    axes.set_ylim(result.floor - 0.15 * descent, result.start + 0.35 * descent)
    axes.set_title(f"the smoothed loss falls from {result.start:.2f} to {result.floor:.2f}")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
