"""The evaluation of a test run: its figures, its confusion matrix and its reliability diagram."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from torch import Tensor

from cifar_resnet.analysis.metrics import Evaluation, evaluate
from cifar_resnet.callbacks.gallery import shorten
from cifar_resnet.data.batches import Batch
from cifar_resnet.errors import InputError
from cifar_resnet.training.classifier import ImageClassifier


class Evaluator(Callback):
    """After a test run, logs a confusion matrix and a reliability diagram to TensorBoard.

    They go to ``confusion_matrix.png`` and ``reliability.png`` in the run's folder too, and all figures to
    ``evaluation.json``.

    Args:
        flip: classify the mirror images as well, for the accuracy of the averaged probabilities.

    Attributes:
        evaluation: the figures; None before a test run.
    """

    def __init__(self, flip: bool = False):
        self.flip = flip
        self.evaluation: Evaluation | None = None
        self._logits: list[Tensor] = []
        self._mirrored: list[Tensor] = []
        self._labels: list[Tensor] = []

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier run."""
        self._logits, self._mirrored, self._labels = [], [], []

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the logits; they stay on the device until the end."""
        images, labels = batch
        self._logits.append(outputs)
        self._labels.append(labels)
        if self.flip:
            with trainer.precision_plugin.forward_context():  # that of the test step, which is over by now
                self._mirrored.append(pl_module(images.flip(2)))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Derive the figures, draw and log.

        Raises:
            InputError: the network's outputs are not numbers.
        """
        assert isinstance(pl_module, ImageClassifier)
        probabilities = _probabilities(self._logits)
        if probabilities.isnan().any():
            raise InputError("the network's outputs are not numbers: its training diverged; take another checkpoint")
        mirrored = _probabilities(self._mirrored) if self.flip else None
        self.evaluation = evaluate(probabilities, torch.cat(self._labels).cpu(), pl_module.classes, mirrored)
        log_dir = trainer.log_dir  # asks every device, so it comes before the others leave
        if trainer.is_global_zero and log_dir is not None:
            self._write(self.evaluation, trainer, Path(log_dir))

    @staticmethod
    def _write(evaluation: Evaluation, trainer: Trainer, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "evaluation.json").write_text(json.dumps(asdict(evaluation), indent=1) + "\n")
        for name, draw in (("confusion_matrix", draw_confusion), ("reliability", draw_reliability)):
            figure = draw(evaluation)
            figure.savefig(folder / f"{name}.png")
            if isinstance(trainer.logger, TensorBoardLogger):
                trainer.logger.experiment.add_figure(name, figure, trainer.global_step)


def _probabilities(logits: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(logits)).float().softmax(dim=1).cpu()


def draw_confusion(evaluation: Evaluation) -> Figure:
    """Draw how many images of each true class were taken for which; right ones in blue, errors in vermilion.

    The colour is the share of the true class, on a square-root scale, so that one error in a hundred is seen.
    """
    counts = np.array(evaluation.confusion)
    cell = float(np.clip(10 / len(counts), 0.14, 0.42))  # inches
    side = max(3.0, cell * len(counts)) + 1.5
    figure = Figure(figsize=(side, side), dpi=140, layout="constrained")
    axes = figure.add_subplot()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    right = np.eye(len(counts), dtype=bool)
    for others, colours in ((~right, "Blues"), (right, "Oranges")):
        axes.imshow(np.ma.array(shares, mask=others | (counts == 0)), cmap=colours, norm=PowerNorm(0.5, 0, 1))
    _write_counts(axes, counts, shares, cell)
    _name_classes(axes, [shorten(figures.name) for figures in evaluation.classes], cell)
    axes.set_title(f"{evaluation.errors:,} of {evaluation.images:,} test images misclassified", fontsize=11)
    return figure


def _write_counts(axes: Axes, counts: np.ndarray, shares: np.ndarray, cell: float) -> None:
    size = min(11.0, cell * 72 / (0.75 * len(str(counts.max()))))
    if size < 5:  # too small to be read: the colour has to do
        return
    for row, column in np.argwhere(counts):
        ink = "white" if shares[row, column] > 0.4 else "black"
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=size, color=ink)


def _name_classes(axes: Axes, names: Sequence[str], cell: float) -> None:
    size = float(np.clip(cell * 50, 5, 11))
    ticks, borders = range(len(names)), np.arange(len(names) - 1) + 0.5
    axes.set_xticks(ticks, names, fontsize=size, parse_math=False)
    axes.set_yticks(ticks, names, fontsize=size, parse_math=False)
    if max(map(len, names)) > 3:
        for label in axes.get_xticklabels():
            label.set(rotation=45, ha="right", rotation_mode="anchor")
    axes.set_xticks(borders, minor=True)
    axes.set_yticks(borders, minor=True)
    axes.grid(which="minor", color="#dddddd", linewidth=0.5)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_color("#dddddd")
    axes.set_xlabel("predicted class", fontsize=11)
    axes.set_ylabel("true class", fontsize=11)


def draw_reliability(evaluation: Evaluation) -> Figure:
    """Draw how often the network is right against how sure it is, and how many images are how sure."""
    figure = Figure(figsize=(4.8, 5.4), dpi=140, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    bins = evaluation.calibration
    upper.plot([0, 1], [0, 1], "--", color="#777777", linewidth=1, label="calibrated")
    filled = [(bin.confidence, bin.accuracy) for bin in bins if bin.accuracy is not None]
    confidence = [confidence for confidence, _ in filled]
    share, low, high = np.array([(accuracy.value, accuracy.low, accuracy.high) for _, accuracy in filled]).T
    upper.vlines(confidence, low, high, color="#0072B2", linewidth=1, label="95% Wilson interval")
    upper.vlines(confidence, confidence, share, color="#D55E00", linewidth=4, alpha=0.7, label="gap")
    upper.plot(confidence, share, "o", color="#0072B2", ms=5, label="images of one bin")
    upper.set(ylabel="share of images that is right", xlim=(0, 1), ylim=(-0.02, 1.02))
    upper.set_title(f"Expected calibration error (mean gap) {evaluation.calibration_error:.2%}", fontsize=11)
    upper.legend(loc="best", frameon=False)
    edges = [bin.low for bin in bins]
    lower.bar(edges, [bin.images for bin in bins], bins[0].high, align="edge", color="#999999", edgecolor="white")
    lower.set(xlabel="confidence: probability of the predicted class", ylabel="images")
    for axes in (upper, lower):
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure
