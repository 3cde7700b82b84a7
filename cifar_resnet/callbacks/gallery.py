"""The gallery: misclassified test images, and where the network looked when it was wrong."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from rich import get_console

from cifar_resnet.analysis.drawing import LONGEST_CAPTION, LONGEST_SIDE, Caption, draw_cards, percent, shorten
from cifar_resnet.analysis.gradcam import Explanation, explain_images
from cifar_resnet.analysis.misclassified import Misclassified, choose
from cifar_resnet.callbacks.outputs import OutputCollector
from cifar_resnet.errors import InputError
from cifar_resnet.training.classifier import ImageClassifier


@dataclass(eq=False)
class MisclassifiedGallery(Callback):
    """After a test run, shows misclassified images with maps for the predicted and, beside it, for the true class.

    They go to TensorBoard and to ``gallery.png`` and ``gallery.json`` in the run's folder. Where the network cannot be
    explained, the images are shown without maps; the pictures, the file and a line in the terminal say why.

    Args:
        outputs: keeps what the network says; the Trainer has to have it among its callbacks.
        count: how many images at most; with 0 nothing is written.
        order: see `cifar_resnet.analysis.misclassified.choose`.
        layer: see `cifar_resnet.analysis.gradcam.find_layer`.
        method: a key of `cifar_resnet.analysis.gradcam.METHODS`.
        seed: of the order ``random``.
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
        errors = self.outputs.misclassified(test.files)
        chosen = choose(errors, self.count, self.order, self.seed)
        images = test.images[[error.index for error in chosen]]
        explanation = Explanation(None, None, "no test image was misclassified")
        if chosen:
            targets = [[error.predicted for error in chosen], [error.true for error in chosen]]
            explanation = explain_images(pl_module, images, targets, self.layer, self.method)
        folder = Path(log_dir)
        folder.mkdir(parents=True, exist_ok=True)
        record = {
            "errors": len(errors),
            "of": len(self.outputs.labels),
            "maps": explanation.layer and {"method": self.method, "layer": explanation.layer},
            "reason": explanation.reason,
            "shown": _describe(chosen, pl_module.classes, explanation.maps),
        }
        (folder / "gallery.json").write_text(json.dumps(record, indent=1) + "\n")
        if chosen:
            captions = [_caption(error, pl_module.classes) for error in chosen]
            pictures = [test.whole(error.index, LONGEST_SIDE) for error in chosen]
            self._draw(pictures, explanation, captions, trainer, folder)

    def _draw(
        self,
        pictures: list[np.ndarray],
        explanation: Explanation,
        captions: list[Caption],
        trainer: Trainer,
        folder: Path,
    ) -> None:
        maps, title = explanation.maps, "image  |  map for the predicted class  |  map for the true class"
        if maps is None:
            title = f"images without maps: {explanation.reason}"
            get_console().print(f"gallery: {title}", highlight=False, markup=False, soft_wrap=True)
        else:
            title += f"      ({self.method}, {explanation.layer})"
        draw_cards(pictures, maps, captions, title).savefig(folder / "gallery.png")
        if not isinstance(trainer.logger, TensorBoardLogger):
            return
        for place in range(len(captions)):
            one = slice(place, place + 1)
            card = draw_cards(pictures[one], None if maps is None else maps[:, one], captions[one], title)
            trainer.logger.experiment.add_figure(f"gallery/{place + 1:02}", card, trainer.global_step)


def _describe(chosen: Sequence[Misclassified], classes: Sequence[str], maps: np.ndarray | None) -> list[dict[str, Any]]:
    """Return what ``gallery.json`` says of each: as the attributes of `Misclassified`, with the classes' names.

    ``zero_maps`` has those of ``predicted`` and ``true`` for which the map is zero everywhere.
    """
    described = []
    for place, error in enumerate(chosen):
        pair = () if maps is None else zip(("predicted", "true"), maps[:, place], strict=True)
        zero_maps = [name for name, heat in pair if not heat.any()]
        names = {"predicted": classes[error.predicted], "true": classes[error.true], "zero_maps": zero_maps}
        described.append(vars(error) | names)
    return described


def _caption(error: Misclassified, classes: Sequence[str]) -> Caption:
    place = f"test image {error.index}" if error.file is None else error.file
    return (
        f"predicted {shorten(classes[error.predicted])} · {percent(error.predicted_probability)}",
        f"true {shorten(classes[error.true])} · {percent(error.true_probability)}",
        place if len(place) <= LONGEST_CAPTION else f"…{place[1 - LONGEST_CAPTION :]}",
    )
