"""The gallery: misclassified test images, and where the network looked when it was wrong."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from rich import get_console

from cifar_resnet.analysis.drawing import LONGEST_CAPTION, LONGEST_SIDE, Card, columns_of, draw_cards, percent, shorten
from cifar_resnet.analysis.gradcam import Explanation, explain_images
from cifar_resnet.analysis.misclassified import Misclassified, choose
from cifar_resnet.analysis.road import Faithfulness, measure_faithfulness
from cifar_resnet.callbacks.outputs import OutputCollector
from cifar_resnet.errors import InputError
from cifar_resnet.training.classifier import ImageClassifier

PARTS = ("predicted", "true")
"""The classes of an error that have a map, in the order of the maps."""

Falls = dict[str, Faithfulness]
"""How far the maps of an image are to be believed, by the names in `PARTS`."""

NO_BETTER = "no better than chance"
"""What a map is labelled with that marks nothing that matters more than other parts of the image."""


@dataclass(eq=False)
class MisclassifiedGallery(Callback):
    """After a test run, shows misclassified images with maps for the predicted and, beside it, for the true class.

    They go to TensorBoard and to ``gallery.png`` and ``gallery.json`` in the run's folder. Where the network cannot be
    explained, the images are shown without maps; the pictures, the file and a line in the terminal say why. A map that
    marks nothing that matters more than other parts of the image is labelled so.

    Args:
        outputs: keeps what the network says; the Trainer has to have it among its callbacks.
        count: how many images at most; with 0 nothing is written.
        order: see `cifar_resnet.analysis.misclassified.choose`.
        layer: see `cifar_resnet.analysis.gradcam.find_layer`.
        method: a key of `cifar_resnet.analysis.gradcam.METHODS`.
        seed: of the order ``random``, and of what maps are compared with.
    """

    outputs: OutputCollector
    count: int = 10
    order: str = "varied"
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
        test = trainer.datamodule.test  # type: ignore[attr-defined]
        errors, classes = self.outputs.misclassified(test.files), pl_module.classes
        chosen = choose(errors, self.count, self.order, self.seed)
        explanation, falls = self._explain(pl_module, test.images[[error.index for error in chosen]], chosen)
        shown = list(zip(chosen, falls, strict=True))
        maps = [()] * len(chosen) if explanation.maps is None else explanation.maps.swapaxes(0, 1)
        cards = [
            Card(test.whole(error.index, LONGEST_SIDE), _caption(error, classes), heats, _remarks(fall))
            for (error, fall), heats in zip(shown, maps, strict=True)
        ]
        record = {
            "errors": len(errors),
            "of": len(self.outputs.labels),
            "maps": explanation.layer and {"method": self.method, "layer": explanation.layer},
            "reason": explanation.reason,
            "columns": columns_of(cards) if cards else 0,
            "shown": [_describe(*each, classes) for each in shown],
        }
        folder = Path(log_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "gallery.json").write_text(json.dumps(record, indent=1) + "\n")
        if cards:
            self._draw(cards, explanation, trainer, folder)

    def _explain(
        self, classifier: ImageClassifier, images: np.ndarray, chosen: Sequence[Misclassified]
    ) -> tuple[Explanation, Sequence[Falls | None]]:
        if not chosen:
            return Explanation(None, None, "no test image was misclassified"), []
        targets = [[getattr(error, part) for error in chosen] for part in PARTS]
        explanation = explain_images(classifier, images, targets, self.layer, self.method)
        if explanation.maps is None:
            return explanation, [None] * len(chosen)
        return explanation, _measure_falls(classifier, images, explanation.maps, targets, self.seed)

    def _draw(self, cards: list[Card], explanation: Explanation, trainer: Trainer, folder: Path) -> None:
        title = "image  |  map for the predicted class  |  map for the true class"
        if explanation.maps is None:
            title = f"images without maps: {explanation.reason}"
            get_console().print(f"gallery: {title}", highlight=False, markup=False, soft_wrap=True)
        else:
            title += f"      ({self.method}, {explanation.layer})"
        draw_cards(cards, title).savefig(folder / "gallery.png", transparent=True)
        if isinstance(trainer.logger, TensorBoardLogger):
            for place, card in enumerate(cards, start=1):
                trainer.logger.experiment.add_figure(
                    f"gallery/{place:02}", draw_cards([card], title), trainer.global_step
                )


def _measure_falls(
    classifier: ImageClassifier, images: np.ndarray, maps: np.ndarray, targets: Sequence[Sequence[int]], seed: int
) -> list[Falls]:
    """Return how far each image's maps are to be believed; a map that is zero everywhere marks nothing."""
    falls = [Falls() for _ in images]
    for part, heats, classes in zip(PARTS, maps, targets, strict=True):
        measured = measure_faithfulness(classifier, images, heats, classes, seed)
        for found, heat, fall in zip(falls, heats, measured, strict=True):
            if heat.any():
                found[part] = fall
    return falls


def _describe(error: Misclassified, falls: Falls | None, classes: Sequence[str]) -> dict[str, Any]:
    """Return what ``gallery.json`` says of an error: as the attributes of `Misclassified`, with the classes' names.

    ``faithfulness`` is by the names in `PARTS`, without those whose map is zero everywhere, which are ``zero_maps``.
    """
    names = {part: classes[getattr(error, part)] for part in PARTS}
    zero_maps = [part for part in PARTS if falls is not None and part not in falls]
    faithfulness = None if falls is None else {part: asdict(fall) for part, fall in falls.items()}
    return vars(error) | names | {"zero_maps": zero_maps, "faithfulness": faithfulness}


def _remarks(falls: Falls | None) -> list[str]:
    known = {part: NO_BETTER for part, fall in (falls or {}).items() if not fall.better_than_chance}
    return [known.get(part, "") for part in PARTS]


def _caption(error: Misclassified, classes: Sequence[str]) -> tuple[str, ...]:
    place = f"test image {error.index}" if error.file is None else error.file
    return (
        f"predicted {shorten(classes[error.predicted])} · {percent(error.predicted_probability)}",
        f"true {shorten(classes[error.true])} · {percent(error.true_probability)}",
        place if len(place) <= LONGEST_CAPTION else f"…{place[1 - LONGEST_CAPTION :]}",
    )
