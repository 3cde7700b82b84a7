"""The gallery: misclassified test images, and where the network looked when it was wrong."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from torch import Tensor

from cifar_resnet.analysis.gradcam import METHODS, class_activation_maps, find_layer
from cifar_resnet.errors import InputError, one_line
from cifar_resnet.training.classifier import ImageClassifier

if TYPE_CHECKING:
    from cifar_resnet.data.datamodule import Batch


@dataclass(frozen=True)
class Misclassified:
    """One error: position in the test set, class names, and their probabilities (0 to 1)."""

    index: int
    predicted: str
    predicted_probability: float
    true: str
    true_probability: float


def choose(probabilities: np.ndarray, labels: np.ndarray, count: int, order: str, seed: int = 0) -> np.ndarray:
    """Return the indices of at most ``count`` misclassified images.

    Args:
        probabilities: ``[N, classes]``.
        labels: ``[N]``.
        count: how many at most.
        order: ``confident``, the most probable wrong predictions first; ``first``, as they stand in the test set; or
            ``random``, drawn with ``seed``.
        seed: of the random draw.
    """
    predicted = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    if order == "confident":
        wrong = wrong[np.argsort(-probabilities[wrong, predicted[wrong]], kind="stable")]
    if order == "random":
        wrong = np.random.default_rng(seed).permutation(wrong)
    return wrong[:count]


class MisclassifiedGallery(Callback):
    """After a test run, shows misclassified images with maps for the predicted and, beside it, for the true class.

    They go to TensorBoard and to ``gallery.png`` and ``gallery.json`` in the run's folder.

    Args:
        count: how many images at most.
        order: see `choose`.
        layer: see `cifar_resnet.analysis.gradcam.find_layer`.
        method: a key of `cifar_resnet.analysis.gradcam.METHODS`.
        seed: of the order ``random``.

    Attributes:
        errors: how many test images were misclassified; None before a test run.
    """

    def __init__(
        self,
        count: int = 10,
        order: str = "confident",
        layer: str | None = None,
        method: str = "gradcam",
        seed: int = 0,
    ):
        self.count = count
        self.order = order
        self.layer = layer
        self.method = method
        self.seed = seed
        self.errors: int | None = None
        self._logits: list[Tensor] = []
        self._labels: list[Tensor] = []

    def check(self, classifier: ImageClassifier) -> None:
        """Raise `InputError`, before anything is trained, if the layer or the method cannot be explained."""
        if self.method not in METHODS:
            raise InputError(f"gallery.method={self.method}: no such method; choose one of {', '.join(METHODS)}")
        layer = find_layer(classifier, self.layer)
        try:
            maps = class_activation_maps(classifier, classifier.example_input_array, [0], layer, self.method)
        except Exception as error:  # the library raises whatever a layer without height and width provokes
            raise InputError(f"gallery.layer={layer}: {self.method} cannot explain it ({one_line(error)})") from error
        if maps is None:  # the library swallows an IndexError
            raise InputError(f"gallery.layer={layer}: {self.method} cannot explain it")

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget an earlier run."""
        self._logits, self._labels = [], []

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: "Batch",
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the logits; they stay on the device until the end."""
        self._logits.append(outputs)
        self._labels.append(batch[1])

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose, explain, draw and log."""
        assert isinstance(pl_module, ImageClassifier)
        probabilities = torch.cat(self._logits).float().softmax(dim=1).cpu().numpy()
        labels = torch.cat(self._labels).cpu().numpy()
        self.errors = int((probabilities.argmax(axis=1) != labels).sum())
        log_dir = trainer.log_dir  # asks every device, so it comes before the others leave
        if not trainer.is_global_zero or log_dir is None:
            return
        chosen = choose(probabilities, labels, self.count, self.order, self.seed)
        entries = _describe(chosen, probabilities, labels, pl_module.classes)
        folder = Path(log_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "gallery.json").write_text(
            json.dumps(
                {"errors": self.errors, "of": len(labels), "shown": [asdict(entry) for entry in entries]}, indent=1
            )
            + "\n"
        )
        if not entries:
            return
        images = trainer.datamodule.test.images[chosen]  # type: ignore[attr-defined]
        layer = find_layer(pl_module, self.layer)
        predicted, true = (
            class_activation_maps(pl_module, torch.from_numpy(images), targets, layer, self.method)
            for targets in (probabilities[chosen].argmax(axis=1), labels[chosen])
        )
        source = f"{self.method}, {layer}"
        draw_sheet(images, predicted, true, entries, source).savefig(folder / "gallery.png")
        if isinstance(trainer.logger, TensorBoardLogger):
            for number, error in enumerate(zip(images, predicted, true, entries, strict=True), start=1):
                trainer.logger.experiment.add_figure(f"gallery/{number:02}", draw_card(*error), trainer.global_step)


def _describe(
    chosen: np.ndarray, probabilities: np.ndarray, labels: np.ndarray, classes: Sequence[str]
) -> list[Misclassified]:
    entries = []
    for index in chosen.tolist():
        row, true = probabilities[index], labels[index]
        predicted = int(row.argmax())
        entries.append(Misclassified(index, classes[predicted], float(row[predicted]), classes[true], float(row[true])))
    return entries


def draw_sheet(
    images: np.ndarray, predicted: np.ndarray, true: np.ndarray, entries: Sequence[Misclassified], source: str
) -> Figure:
    """Draw each image beside its two maps, two images to a row.

    Args:
        images: uint8 ``[N, H, W, 3]``.
        predicted: maps for the predicted class, ``[N, H, W]`` in 0 to 1.
        true: maps for the true class, likewise.
        entries: what the captions say, ``[N]``.
        source: method and layer, for the title.
    """
    columns = min(2, len(entries))
    rows = math.ceil(len(entries) / columns)
    figure = Figure(figsize=(4.6 * columns, 1.85 * rows + 0.4), dpi=110)
    title, body = figure.subfigures(2, 1, squeeze=False, height_ratios=(0.4, 1.85 * rows)).flat
    title.text(0.5, 0.5, f"image  |  map for the predicted class  |  map for the true class      ({source})",
               ha="center", va="center", fontsize=9, color="#555555")  # fmt: skip
    panels: np.ndarray = body.subfigures(rows, columns, squeeze=False)
    for panel, image, its_predicted, its_true, entry in zip(
        panels.flat, images, predicted, true, entries, strict=False
    ):
        _draw_error(panel, image, its_predicted, its_true, entry, fontsize=10)
    return figure


def draw_card(image: np.ndarray, predicted: np.ndarray, true: np.ndarray, entry: Misclassified) -> Figure:
    """Draw one image beside its two maps, to be read at the 350 pixels that TensorBoard's image tab gives to a card."""
    figure = Figure(figsize=(4.6, 1.95), dpi=150)
    _draw_error(figure, image, predicted, true, entry, fontsize=11)
    return figure


def _draw_error(
    panel: FigureBase, image: np.ndarray, predicted: np.ndarray, true: np.ndarray, entry: Misclassified, fontsize: float
) -> None:
    caption = (
        f"predicted {shorten(entry.predicted)} {percent(entry.predicted_probability)} / "
        f"true {shorten(entry.true)} {percent(entry.true_probability)}"
    )
    panel.suptitle(caption, fontsize=fontsize, y=0.985, parse_math=False)
    axes = panel.subplots(1, 3, gridspec_kw={"left": 0.01, "right": 0.99, "bottom": 0.02, "top": 0.87, "wspace": 0.03})
    show(axes[0], image)
    show(axes[1], image, predicted)
    show(axes[2], image, true)


def show(axes: Axes, image: np.ndarray, heat: np.ndarray | None = None) -> None:
    """Draw an image, uint8 ``[H, W, 3]``, or in its place a map over it, ``[H, W]`` in 0 to 1."""
    axes.set_axis_off()
    extent = (0, image.shape[1], image.shape[0], 0)
    if heat is None:
        axes.imshow(image, interpolation="nearest", extent=extent)
        return
    axes.imshow(image.mean(axis=2), cmap="gray", vmin=0, vmax=255, interpolation="nearest", extent=extent)
    colours = matplotlib.colormaps["inferno"](heat)
    colours[..., 3] = 0.25 + 0.5 * heat
    axes.imshow(colours, interpolation="bilinear", extent=extent)


def shorten(name: str, longest: int = 16) -> str:
    """Return a name of at most ``longest`` characters for a caption."""
    return name if len(name) <= longest else name[: longest - 1] + "…"


def percent(probability: float) -> str:
    """Return a probability as text, with a decimal where that does not round it to 0 or 100 %."""
    return f"{100 * probability:.1f}%" if 0.0005 <= probability < 0.9995 else f"{100 * probability:.0f}%"
