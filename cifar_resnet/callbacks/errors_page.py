"""Every error of a test run: the table of all, and the page to look through them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer

from cifar_resnet.analysis.drawing import middle_square
from cifar_resnet.analysis.errors_page import LARGEST_SIDE, write_errors_page
from cifar_resnet.analysis.gradcam import explain_images
from cifar_resnet.analysis.labels import check_labels
from cifar_resnet.analysis.misclassified import write_errors_table
from cifar_resnet.callbacks.outputs import OutputCollector
from cifar_resnet.messages import say
from cifar_resnet.training.classifier import ImageClassifier


@dataclass(eq=False)
class ErrorsPage(Callback):
    """After a test run, writes ``errors.csv`` and, where there are errors, ``errors.html`` into the run's folder.

    Args:
        outputs: keeps what the network says; the Trainer has to have it among its callbacks.
        limit: how many errors the page has at most, the most confident ones; with 0 there is no page.
        layer, method: of the maps, as in `cifar_resnet.callbacks.gallery.MisclassifiedGallery`.
    """

    outputs: OutputCollector
    limit: int = 5000
    layer: str | None = None
    method: str = "gradcam"

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find, explain and write."""
        assert isinstance(pl_module, ImageClassifier)
        log_dir = trainer.log_dir  # asks every device, so it comes before the others leave
        if not trainer.is_global_zero or log_dir is None:
            return
        test = trainer.datamodule.test  # type: ignore[attr-defined]
        errors = self.outputs.misclassified(test.files)
        folder = Path(log_dir)
        folder.mkdir(parents=True, exist_ok=True)
        images = test.images[[error.index for error in errors]]
        labels = [error.true for error in errors]
        say(f"looking through {len(errors):,} errors and their labels")
        training = trainer.datamodule.train  # type: ignore[attr-defined]
        with trainer.precision_plugin.forward_context():  # in which it looks at all training images
            checks = check_labels(pl_module, images, labels, training) if errors else []
        write_errors_table(errors, checks, pl_module.classes, folder / "errors.csv")
        shown = errors[: self.limit]
        if not shown:
            return
        targets = [[error.predicted for error in shown], [error.true for error in shown]]
        explanation = explain_images(pl_module, images[: self.limit], targets, self.layer, self.method, enlarge=False)
        confusion = np.zeros((len(pl_module.classes),) * 2, np.int64)
        np.add.at(confusion, (self.outputs.labels, self.outputs.probabilities.argmax(dim=1)), 1)
        pictures = [middle_square(test.whole(error.index, 2 * LARGEST_SIDE)) for error in shown]
        write_errors_page(
            folder / "errors.html", shown, checks[: self.limit], pictures, explanation, confusion, pl_module.classes
        )
