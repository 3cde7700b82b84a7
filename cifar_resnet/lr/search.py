"""LRMIN and LRMAX from short sweeps of the learning rate.

A copy of the classifier is trained for ``num_training`` steps while the rate climbs an exponential ladder, by
Lightning's ``Tuner`` (the range test of Smith 2017, arXiv 1506.01186, section 3.3). The raw loss of each step is
recorded here: the figures that Lightning keeps are debiased wrongly (its issue 14167), and its ``suggestion()``
differentiates against the linear rate (its issue 21141). `cifar_resnet.lr.bounds` turns the losses into the bounds and
a verdict.

A sweep that leaves a doubt is followed up once: by as many sweeps again where noise is the doubt, by a wider one where
an end of the ladder is. No bounds come out where the loss never fell: that is an error.
"""

import contextlib
import copy
import io
import json
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.tuner import Tuner
from lightning.pytorch.utilities.seed import isolate_rng
from rich import get_console
from rich.progress import Progress
from torch import Tensor
from torch.optim import Optimizer

from cifar_resnet.data.batches import Batch
from cifar_resnet.data.datamodule import ImageDataModule
from cifar_resnet.errors import InputError
from cifar_resnet.lr.bounds import LEAST_SIGNIFICANCE, Bounds, Doubt, derive, diverged
from cifar_resnet.messages import say
from cifar_resnet.training.classifier import ImageClassifier

TRIED_STEPS = 3  # of a search that only shows that it runs: too few for bounds
WIDENING = 100  # a ladder that ends too early is extended by this factor, with as many steps a decade as it has


@dataclass(frozen=True)
class LrSearch:
    """The bounds, and what they were found by.

    Attributes:
        bounds: derived from the mean of the last sweeps.
        sweeps: raw training loss of each step of each of them.
        first_doubt: why there was a second attempt; None where there was none.
        seconds: how long all of it took.
    """

    bounds: Bounds
    sweeps: list[list[float]]
    first_doubt: Doubt | None
    seconds: float

    @property
    def summary(self) -> str:
        """``clear``, or ``noisy``, why, and where LRMAX may lie; and why there was a second attempt."""
        low, high = self.bounds.lr_max_interval
        text = f"noisy: {self.bounds.doubt} ({low:.2g} to {high:.2g})" if self.bounds.doubt else "clear"
        return f"{text}; a second attempt, since at first {self.first_doubt}" if self.first_doubt else text


class Probe(LightningModule):
    """Trains a classifier in its place, and remembers the rate, the raw loss and the images of each optimizer step.

    The Tuner replaces all callbacks, so a module has to do it.
    """

    def __init__(self, classifier: ImageClassifier, on_step: Callable[[], object] = lambda: None):
        super().__init__()
        self.classifier = classifier
        self.rates: list[float] = []
        self.losses: list[float] = []
        self.batch_size = self._images = 0
        self._micro_losses: list[Tensor] = []
        self._shares: list[float] = []
        self._on_step = on_step

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the classifier's training loss."""
        images, labels = batch
        self._images += len(labels)
        loss = self.classifier.criterion(self.classifier(images), labels)
        self._micro_losses.append(loss.detach())
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Record the step, whose loss is the mean over the accumulated batches; stop once there is nothing to see."""
        self.rates.append(optimizer.param_groups[0]["lr"])
        for group, share in zip(optimizer.param_groups, self._shares, strict=True):
            group["lr"] *= share  # the Tuner has set all groups to one rate
        self.losses.append(float(sum(self._micro_losses)) / len(self._micro_losses))
        self._micro_losses.clear()
        self.batch_size, self._images = self._images, 0
        self._on_step()
        if diverged(self.rates, self.losses):
            self.trainer.should_stop = True

    def configure_optimizers(self) -> Optimizer:
        """Return the classifier's optimizer; the Tuner sets its rates."""
        optimizer = self.classifier.make_optimizer(lr=1.0)
        self._shares = [group["lr"] / optimizer.param_groups[0]["lr"] for group in optimizer.param_groups]
        return optimizer


def search(
    classifier: ImageClassifier,
    data: ImageDataModule,
    *,
    num_training: int,
    repeats: int = 1,
    lowest: float,
    highest: float,
    lr_max_factor: float,
    trainer_options: Mapping[str, Any],
) -> LrSearch:
    """Derive the bounds for this classifier, optimizer and data.

    It leaves no trace: copies are trained, and the random number generators are put back.

    Args:
        classifier: what will be trained; not changed.
        data: its training batches are swept, with augmentation, from the first epoch on.
        num_training: optimizer steps of a sweep.
        repeats: sweeps whose losses are averaged, step by step; each after the first has weights, an order and an
            augmentation of its own.
        lowest: rate of the first step.
        highest: rate of the last step.
        lr_max_factor: what LRMAX is over the rate at which half of the descent is done, and over the square root of the
            images in a step.
        trainer_options: ``devices``, the one to search on, and the Trainer options of the run that change a step.

    Raises:
        InputError: the loss never fell, or by no more than its noise.
    """
    started, console = time.perf_counter(), get_console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:

        def sweep(repeat: int) -> Probe:
            title = f"learning-rate sweep {repeat + 1}"
            if not console.is_terminal:
                say(f"{title}: {num_training} steps")
            task = progress.add_task(title, total=num_training)
            with isolate_rng():
                trained, images = _variant(classifier, data, repeat)
                probe = Probe(trained, on_step=lambda: progress.advance(task))
                _sweep(probe, images, num_training, lowest, highest, trainer_options)
            return probe

        probes = [sweep(repeat) for repeat in range(repeats)]
        first_doubt = _derive_mean(probes, lr_max_factor).doubt
        if first_doubt is Doubt.NOISE:
            probes += [sweep(repeat) for repeat in range(repeats, 2 * repeats)]
        elif first_doubt is not None:
            num_training += round(num_training * math.log(WIDENING) / math.log(highest / lowest))
            lowest /= WIDENING if first_doubt is Doubt.LOWEST else 1
            highest *= WIDENING if first_doubt is Doubt.HIGHEST else 1
            probes = [sweep(repeat) for repeat in range(repeats)]
    bounds = _derive_mean(probes, lr_max_factor)
    if bounds.significance < LEAST_SIGNIFICANCE:
        raise InputError(
            f"the learning-rate search failed: the loss fell from {bounds.start:.3f} to {bounds.floor:.3f}, no more "
            "than its noise does; check the labels, raise data.batch_size, lr_search.num_training or "
            "lr_search.repeats, or give schedule.lr_min and schedule.lr_max"
        )
    sweeps = [[loss for loss in probe.losses if math.isfinite(loss)] for probe in probes]
    return LrSearch(bounds, sweeps, first_doubt, time.perf_counter() - started)


def try_sweep(classifier: ImageClassifier, data: ImageDataModule, trainer_options: Mapping[str, Any]) -> None:
    """Make the first `TRIED_STEPS` steps of a search, to see whether it runs; arguments as those of `search`."""
    with isolate_rng():
        probe = Probe(copy.deepcopy(classifier))
        _sweep(probe, data, TRIED_STEPS, 1e-4, 1e-2, trainer_options)


def _variant(
    classifier: ImageClassifier, data: ImageDataModule, repeat: int
) -> tuple[ImageClassifier, ImageDataModule]:
    """Return a copy of the classifier, and the data; each after the first has initial weights and a seed of its own."""
    if repeat == 0:
        return copy.deepcopy(classifier), data
    data = copy.copy(data)  # it shares the images, which the first sweep has padded
    data.seed += repeat
    torch.manual_seed(data.seed)
    return type(classifier)(**classifier.hparams), data


def _derive_mean(probes: list[Probe], lr_max_factor: float) -> Bounds:
    """Derive the bounds from the losses averaged over the sweeps, as far as all of them went."""
    steps = min(len(probe.losses) for probe in probes)
    losses = np.mean([probe.losses[:steps] for probe in probes], axis=0).tolist()
    return derive(probes[0].rates[:steps], losses, lr_max_factor * math.sqrt(probes[0].batch_size))


def _sweep(
    probe: Probe, data: ImageDataModule, num_training: int, lowest: float, highest: float, options: Mapping[str, Any]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            **options,
            plugins=[LightningEnvironment()],  # one process, whoever started it: torchrun's variables mean the run
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


def write_lr_search(found: LrSearch, facts: Mapping[str, Any], folder: Path) -> None:
    """Write ``lr_find.json`` into ``folder``."""
    bounds = asdict(found.bounds)
    first = {key: bounds.pop(key) for key in ("lr_min", "lr_max")} | {"verdict": found.bounds.verdict}
    first |= {"doubt": bounds.pop("doubt"), "first_doubt": found.first_doubt, **facts, "seconds": found.seconds}
    record = first | bounds | {"sweeps": found.sweeps}
    (folder / "lr_find.json").write_text(json.dumps(record, indent=1) + "\n")
