"""From image sets to loaders: splits, the statistics of normalization, padding, workers."""

import multiprocessing
from dataclasses import replace

import numpy as np
import torch
from lightning.fabric.utilities import suggested_max_num_workers
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from cifar_resnet.data.augment import PADDING, Augmentation, pad
from cifar_resnet.data.batches import Batch, EvaluationBatches, TrainingBatches, TrainingLoader
from cifar_resnet.data.sources import IMAGE_SIZE, ImageSet
from cifar_resnet.errors import InputError

MOST_WORKERS = 8
"""Workers of a device unless told otherwise; each augments some 50,000 images a second."""


def channel_statistics(images: np.ndarray) -> tuple[list[float], list[float]]:
    """Return the mean and the (population) standard deviation of each channel, in units of the full range 0 to 1.

    Args:
        images: uint8 ``[N, H, W, 3]``. The figures are exact: they come from the 256-bin histogram of each channel.
    """
    levels = np.arange(256) / 255
    means, deviations = [], []
    for channel in range(images.shape[-1]):
        share = np.bincount(images[..., channel].ravel(), minlength=256) / images[..., channel].size
        mean = float(share @ levels)
        means.append(mean)
        # One constant image has no deviation; a floor of one grey level keeps the division finite.
        deviations.append(max(float(np.sqrt(share @ (levels - mean) ** 2)), 1 / 255))
    return means, deviations


class ImageDataModule(LightningDataModule):
    """Batches of uint8 images for training, validation and test.

    Training batches are shuffled and augmented. Without a validation split the validation loop watches the test
    images, so that there is a test curve; nothing is chosen by it. Every device evaluates all images.

    Args:
        train: the training images.
        test: the test images.
        batch_size: images in an optimizer step over all devices together, if gradients are not accumulated.
        num_workers: processes that augment; None takes none on a CPU, where the network is what one waits for, and one
            for each spare core, eight at most, beside an accelerator.
        padding: ``reflect`` or ``mean``.
        flip: mirror half of the training images.
        cutout: side in pixels of the square cut out of each training image; 0 for none.
        val_size: images split from the training images for validation, class proportions kept.
        train_size: train on this many of the remaining images only, class proportions kept; None for all.
        test_statistics: normalize validation and test images with the statistics of ``train`` or of ``test``.
        seed: of the splits, the order and the augmentation.

    Attributes:
        mean, std: of the training images that are trained on, ``[3]`` in 0 to 1.
        test_mean, test_std: used for evaluation.

    Raises:
        InputError: a split asks for more images than there are.
    """

    def __init__(
        self,
        train: ImageSet,
        test: ImageSet,
        *,
        batch_size: int = 512,
        num_workers: int | None = None,
        padding: str = "reflect",
        flip: bool = True,
        cutout: int = 8,
        val_size: int = 0,
        train_size: int | None = None,
        test_statistics: str = "train",
        seed: int = 0,
    ):
        super().__init__()
        self.train, self.val = _split(train, val_size, train_size, seed)
        self.test = test
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.padding = padding
        self.flip = flip
        self.cutout = cutout
        self.seed = seed
        self.mean, self.std = channel_statistics(self.train.images)
        self.test_mean, self.test_std = self.mean, self.std
        if test_statistics == "test":
            self.test_mean, self.test_std = channel_statistics(test.images)
        self._padded: Tensor | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, by label."""
        return self.train.classes

    @property
    def watched(self) -> str:
        """What the validation loop evaluates: ``val`` where there is a validation split, else ``test``."""
        return "val" if self.val is not None else "test"

    def train_dataloader(self) -> TrainingLoader:
        """Return the shuffled, augmented training batches."""
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        if self.batch_size % world_size:
            raise InputError(
                f"data.batch_size={self.batch_size} is shared by {world_size} devices: choose a multiple of it"
            )
        fill = np.round(np.array(self.mean) * 255).astype(np.uint8)
        workers = self._workers()
        batches = TrainingBatches(
            self._padded_images(fill, workers),
            self.train.labels,
            Augmentation(IMAGE_SIZE, self.flip, self.cutout, fill),
            self.batch_size,
            self.seed,
            rank,
            world_size,
        )
        return TrainingLoader(batches, workers, pin_memory=self._on_gpu())

    def _padded_images(self, fill: np.ndarray, workers: int) -> Tensor:
        """Return the padded training images, which exist once in memory, however many processes read them."""
        if self._padded is None:
            self._padded = torch.from_numpy(pad(self.train.images, self.padding, fill))
            if workers and multiprocessing.get_start_method() != "fork":  # forked ones read the parent's memory
                self._padded.share_memory_()
            inside = self._padded[:, PADDING:-PADDING, PADDING:-PADDING]
            self.train = replace(self.train, images=inside.numpy())
        return self._padded

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return the images that are watched during training: the validation split, else the test images."""
        return self._evaluation_loader(self.test if self.val is None else self.val)

    def test_dataloader(self) -> DataLoader[Batch]:
        """Return the test images, in order."""
        return self._evaluation_loader(self.test)

    def _evaluation_loader(self, images: ImageSet) -> DataLoader[Batch]:
        # Slices of an array in memory: a worker would only add a copy.
        return DataLoader(EvaluationBatches(images), batch_size=None, pin_memory=self._on_gpu())

    def _on_gpu(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    def _workers(self) -> int:
        if self.num_workers is not None:
            return self.num_workers
        if self.trainer is None or self.trainer.strategy.root_device.type == "cpu":
            return 0
        return min(MOST_WORKERS, suggested_max_num_workers(self.trainer.num_devices))


def _split(images: ImageSet, val_size: int, train_size: int | None, seed: int) -> tuple[ImageSet, ImageSet | None]:
    wanted = val_size + (train_size or 1)
    if wanted > len(images):
        raise InputError(
            f"data.val_size={val_size} and data.train_size={train_size} together ask for more than the "
            f"{len(images):,} training images that there are"
        )
    rows = np.arange(len(images))
    val = None
    if val_size:
        rows, val_rows = _stratified(rows, images.labels, val_size, seed)
        val = images.subset(val_rows)
    if train_size is not None and train_size < len(rows):
        _, rows = _stratified(rows, images.labels, train_size, seed)
    return (images if len(rows) == len(images) else images.subset(rows)), val


def _stratified(rows: np.ndarray, labels: np.ndarray, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split ``size`` of ``rows`` off, class proportions kept; both parts stay in order."""
    from sklearn.model_selection import train_test_split  # noqa: PLC0415  (a second of imports that most runs do not need)

    classes = len(np.unique(labels[rows]))
    if min(size, len(rows) - size) < classes:
        raise InputError(
            f"data.val_size and data.train_size must leave at least one image of each of the {classes} classes"
        )
    rest, taken = train_test_split(rows, test_size=size, stratify=labels[rows], random_state=seed)
    return np.sort(rest), np.sort(taken)
