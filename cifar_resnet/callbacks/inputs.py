"""What goes in: a picture of the first training batch and of some test images, there while one waits."""

from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from cifar_resnet.analysis.inputs import Group, draw_inputs
from cifar_resnet.callbacks.pictures import write_picture
from cifar_resnet.data.batches import TrainingBatches
from cifar_resnet.data.datamodule import ImageDataModule
from cifar_resnet.data.sources import ImageSet

TRAINING_IMAGES = 32
TEST_IMAGES = 8


class InputPreview(Callback):
    """Before training begins, logs what the network gets to TensorBoard and to ``batch.png`` in the run's folder.

    A batch is a function of its key, so making those of the first epoch once more draws nothing from the run.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw and log, unless a run goes on that has the picture already."""
        if not trainer.is_global_zero or not isinstance(trainer.logger, TensorBoardLogger):
            return
        file = Path(trainer.logger.log_dir, "batch.png")
        if file.exists():
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, ImageDataModule)
        assert trainer.train_dataloader is not None
        assert data.test is not None
        groups = [_first_of_training(trainer.train_dataloader.batches), _some_of(data.test)]
        write_picture(draw_inputs(groups, data.classes), file, trainer.logger, "batch", trainer.global_step)


def _first_of_training(batches: TrainingBatches) -> Group:
    """Return the first images of the first epoch, from as many of its batches as it takes."""
    images, labels = [], []
    for batch in range(len(batches)):
        made = batches[0, batch]
        images.append(made[0])
        labels.append(made[1])
        if sum(map(len, labels)) >= TRAINING_IMAGES:
            break
    shown = torch.cat(images)[:TRAINING_IMAGES].numpy(), torch.cat(labels)[:TRAINING_IMAGES].numpy()
    return "Training images", "as the network gets them in the first epoch; each epoch augments them anew", *shown


def _some_of(test: ImageSet) -> Group:
    """Return test images from all over the set, for neighbours are often of one class."""
    rows = np.linspace(0, len(test) - 1, min(TEST_IMAGES, len(test))).round().astype(int)
    return "Test images", "as the network gets them, never augmented", test.images[rows], test.labels[rows]
