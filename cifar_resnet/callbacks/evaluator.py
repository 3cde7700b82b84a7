"""The evaluation of a test run: its figures, its confusion matrix and its reliability diagram."""

import json
from dataclasses import asdict
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from cifar_resnet.analysis.drawing import draw_confusion_matrix, draw_reliability
from cifar_resnet.analysis.metrics import Evaluation, evaluate_predictions
from cifar_resnet.callbacks.outputs import OutputCollector
from cifar_resnet.callbacks.pictures import write_picture
from cifar_resnet.training.classifier import ImageClassifier


class Evaluator(Callback):
    """After a test run, logs a confusion matrix and a reliability diagram to TensorBoard.

    They go to ``confusion_matrix.png`` and ``reliability.png`` in the run's folder too, and all figures to
    ``evaluation.json``.

    Args:
        outputs: keeps what is evaluated; the Trainer has to have it among its callbacks.

    Attributes:
        evaluation: the figures; None before a test run.
    """

    def __init__(self, outputs: OutputCollector):
        self.outputs = outputs
        self.evaluation: Evaluation | None = None

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Derive the figures, draw and log."""
        assert isinstance(pl_module, ImageClassifier)
        self.evaluation = evaluate_predictions(
            self.outputs.probabilities, self.outputs.labels, pl_module.classes, self.outputs.mirrored
        )
        log_dir = trainer.log_dir  # asks every device, so it comes before the others leave
        if not trainer.is_global_zero or log_dir is None:
            return
        folder = Path(log_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "evaluation.json").write_text(json.dumps(asdict(self.evaluation), indent=1) + "\n")
        for name, draw in (("confusion_matrix", draw_confusion_matrix), ("reliability", draw_reliability)):
            write_picture(draw(self.evaluation), folder / f"{name}.png", trainer.logger, name, trainer.global_step)
