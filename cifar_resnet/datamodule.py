"""From image sets to batches: every training batch is a pure function of (seed, epoch, batch, rank)."""

import math
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from cifar_resnet.augment import Augmentation, pad
from cifar_resnet.errors import InputError
from cifar_resnet.sources import IMAGE_SIZE, ImageSet

EVALUATION_BATCH_SIZE = 1000

Batch = tuple[Tensor, Tensor]
"""Images, uint8 ``[N, 32, 32, 3]``, and labels, int64 ``[N]``."""


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


class TrainingBatches(Dataset[Batch]):
    """Augmented training batches by key ``(epoch, batch)``.

    The order of an epoch and the draws of a batch come from the key and the seed alone, so it does not matter which
    worker makes a batch, or whether training was interrupted before it.

    Args:
        padded: uint8 ``[N, 40, 40, 3]``, shared, never copied.
        labels: int64 ``[N]``.
        augmentation: applied to each batch.
        batch_size: the global batch size; each of ``world_size`` ranks gets its own share of every batch.
        seed: of order and draws.
    """

    def __init__(
        self,
        padded: np.ndarray,
        labels: np.ndarray,
        augmentation: Augmentation,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.padded = padded
        self.labels = labels
        self.augmentation = augmentation
        self.batch_size = min(batch_size, len(labels))
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self._order: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        """Return the number of whole batches in an epoch; the few images left over differ from epoch to epoch."""
        return len(self.labels) // self.batch_size

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        epoch, batch = key
        start = batch * self.batch_size
        rows = self._epoch_order(epoch)[start : start + self.batch_size][self.rank :: self.world_size]
        seeds = np.random.SeedSequence((self.seed, epoch, batch, self.rank))
        images = self.augmentation(self.padded, rows, seeds)
        return torch.from_numpy(images), torch.from_numpy(self.labels[rows])

    def _epoch_order(self, epoch: int) -> np.ndarray:
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, np.random.default_rng((self.seed, epoch)).permutation(len(self.labels))
        return self._order[1]


class EpochKeys(Sampler[tuple[int, int]]):
    """The keys ``(epoch, batch)`` of one epoch in order; Lightning calls `set_epoch` before each."""

    def __init__(self, batches: int):
        self.batches = batches
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, counted from 0, that the next iteration is for."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((self.epoch, batch) for batch in range(self.batches))


class EvaluationBatches(Dataset[Batch]):
    """Consecutive slices of an image set, unchanged and in order."""

    def __init__(self, images: ImageSet):
        self.images = images

    def __len__(self) -> int:
        return math.ceil(len(self.images) / EVALUATION_BATCH_SIZE)

    def __getitem__(self, batch: int) -> Batch:
        part = slice(batch * EVALUATION_BATCH_SIZE, (batch + 1) * EVALUATION_BATCH_SIZE)
        return torch.from_numpy(self.images.images[part]), torch.from_numpy(self.images.labels[part])


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
        self._padded: np.ndarray | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, by label."""
        return self.train.classes

    @property
    def watched(self) -> str:
        """What the validation loop evaluates: ``val`` where there is a validation split, else ``test``."""
        return "val" if self.val is not None else "test"

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the shuffled, augmented training batches."""
        fill = np.round(np.array(self.mean) * 255).astype(np.uint8)
        if self._padded is None:
            self._padded = pad(self.train.images, self.padding, fill)
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        if self.batch_size % world_size:
            raise InputError(
                f"data.batch_size={self.batch_size} is shared by {world_size} devices: choose a multiple of it"
            )
        augmentation = Augmentation(IMAGE_SIZE, self.flip, self.cutout, fill)
        batches = TrainingBatches(
            self._padded, self.train.labels, augmentation, self.batch_size, self.seed, rank, world_size
        )
        workers = self._workers()
        return DataLoader(
            batches,
            batch_size=None,
            sampler=EpochKeys(len(batches)),
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=self._on_accelerator(),
        )

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return the images that are watched during training: the validation split, else the test images."""
        return self._evaluation_loader(self.test if self.val is None else self.val)

    def test_dataloader(self) -> DataLoader[Batch]:
        """Return the test images, in order."""
        return self._evaluation_loader(self.test)

    def _evaluation_loader(self, images: ImageSet) -> DataLoader[Batch]:
        # Slices of an array in memory: a worker would only add a copy.
        return DataLoader(EvaluationBatches(images), batch_size=None, pin_memory=self._on_accelerator())

    def _on_accelerator(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type != "cpu"

    def _workers(self) -> int:
        if self.num_workers is not None:
            return self.num_workers
        return min(8, max(1, (os.cpu_count() or 1) - 1)) if self._on_accelerator() else 0


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


def describe(data: ImageDataModule) -> dict[str, Any]:
    """Return how many images and classes there are, for the terminal and the records."""
    return {
        "classes": len(data.classes),
        "train": len(data.train),
        "val": len(data.val) if data.val is not None else 0,
        "test": len(data.test),
    }
