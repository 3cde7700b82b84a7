"""The gallery: misclassified test images, and where the network looked when it was wrong."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from rich import get_console

from cifar_resnet.analysis.drawing import draw_cards, percent, shorten
from cifar_resnet.analysis.gradcam import Explanation, explain_images
from cifar_resnet.callbacks.outputs import OutputCollector
from cifar_resnet.errors import InputError
from cifar_resnet.training.classifier import ImageClassifier


@dataclass(frozen=True)
class Misclassified:
    """One error.

    Attributes:
        index: position in the test set, from 0.
        predicted, true: the names of the two classes.
        predicted_probability, true_probability: what the network gives them, 0 to 1.
        zero_maps: for which of the two, ``predicted`` or ``true``, the map is zero everywhere.
    """

    index: int
    predicted: str
    predicted_probability: float
    true: str
    true_probability: float
    zero_maps: tuple[str, ...] = ()


def choose(probabilities: np.ndarray, labels: np.ndarray, count: int, order: str, seed: int = 0) -> np.ndarray:
    """Return the indices of at most ``count`` misclassified images, int64.

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


@dataclass(eq=False)
class MisclassifiedGallery(Callback):
    """After a test run, shows misclassified images with maps for the predicted and, beside it, for the true class.

    They go to TensorBoard and to ``gallery.png`` and ``gallery.json`` in the run's folder. Where the network cannot be
    explained, the images are shown without maps; the pictures, the file and a line in the terminal say why.

    Args:
        outputs: keeps what the network says; the Trainer has to have it among its callbacks.
        count: how many images at most; with 0 nothing is written.
        order: see `choose`.
        layer: see `cifar_resnet.analysis.gradcam.find_layer`.
        method: a key of `cifar_resnet.analysis.gradcam.METHODS`.
        seed: of the order ``random``.
    """

    outputs: OutputCollector
    count: int = 10
    order: str = "confident"
    layer: str | None = None
    method: str = "gradcam"
    seed: int = 0

    def check(self, classifier: ImageClassifier) -> None:
        """Raise `InputError` if the user has named a layer that does not exist or cannot be explained."""
        if self.layer is None:
            return
        blank = classifier.example_input_array.cpu().numpy()
        reason = explain_images(classifier, blank, [[0]], self.layer, self.method).reason
        if reason is not None:
            raise InputError(f"gallery.layer={reason}")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose, explain, draw and log."""
        assert isinstance(pl_module, ImageClassifier)
        log_dir = trainer.log_dir  # asks every device, so it comes before the others leave
        if not self.count or not trainer.is_global_zero or log_dir is None:
            return
        probabilities, labels = self.outputs.probabilities.numpy(), self.outputs.labels.numpy()
        predicted = probabilities.argmax(axis=1)
        chosen = choose(probabilities, labels, self.count, self.order, self.seed)
        images = trainer.datamodule.test.images[chosen]  # type: ignore[attr-defined]
        explanation = Explanation(None, None, "no test image was misclassified")
        if chosen.size:
            pair = (predicted[chosen], labels[chosen])
            explanation = explain_images(pl_module, images, pair, self.layer, self.method)
        entries = _describe(chosen, probabilities, labels, pl_module.classes, explanation.maps)
        folder = Path(log_dir)
        folder.mkdir(parents=True, exist_ok=True)
        record = {
            "errors": int((predicted != labels).sum()),
            "of": len(labels),
            "maps": explanation.layer and {"method": self.method, "layer": explanation.layer},
            "reason": explanation.reason,
            "shown": [asdict(entry) for entry in entries],
        }
        (folder / "gallery.json").write_text(json.dumps(record, indent=1) + "\n")
        if entries:
            self._draw(images, explanation, entries, trainer, folder)

    def _draw(
        self, images: np.ndarray, explanation: Explanation, entries: list[Misclassified], trainer: Trainer, folder: Path
    ) -> None:
        maps, title = explanation.maps, "image  |  map for the predicted class  |  map for the true class"
        if maps is None:
            title = f"images without maps: {explanation.reason}"
            get_console().print(f"gallery: {title}", highlight=False, markup=False, soft_wrap=True)
        else:
            title += f"      ({self.method}, {explanation.layer})"
        captions = [
            (
                f"predicted {shorten(entry.predicted)} {percent(entry.predicted_probability)}",
                f"true {shorten(entry.true)} {percent(entry.true_probability)}",
            )
            for entry in entries
        ]
        draw_cards(images, maps, captions, title).savefig(folder / "gallery.png")
        if not isinstance(trainer.logger, TensorBoardLogger):
            return
        for place in range(len(entries)):
            one = slice(place, place + 1)
            card = draw_cards(images[one], None if maps is None else maps[:, one], captions[one], title)
            trainer.logger.experiment.add_figure(f"gallery/{place + 1:02}", card, trainer.global_step)


def _describe(
    chosen: np.ndarray, probabilities: np.ndarray, labels: np.ndarray, classes: Sequence[str], maps: np.ndarray | None
) -> list[Misclassified]:
    entries = []
    for place, index in enumerate(chosen.tolist()):
        row, true = probabilities[index], labels[index]
        predicted = int(row.argmax())
        pair = () if maps is None else zip(("predicted", "true"), maps[:, place], strict=True)
        zero_maps = tuple(name for name, heat in pair if not heat.any())
        entries.append(
            Misclassified(index, classes[predicted], float(row[predicted]), classes[true], float(row[true]), zero_maps)
        )
    return entries
