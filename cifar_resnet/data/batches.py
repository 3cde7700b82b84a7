"""Batches: every training batch is a pure function of (seed, epoch, batch, rank), whoever makes it, and when."""

import itertools
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from cifar_resnet.data.augment import Augmentation
from cifar_resnet.data.sources import ImageSet

EVALUATION_BATCH_SIZE = 1000

Batch = tuple[Tensor, Tensor]
"""Images, uint8 ``[N, 32, 32, 3]``, and labels, int64 ``[N]``."""

Key = tuple[int, int]
"""Which batch: epoch and place in it, both counted from 0."""


class TrainingBatches(Dataset[Batch]):
    """Augmented training batches by key.

    The order of an epoch and the draws of a batch come from the key and the seed alone, so it does not matter which
    worker makes a batch, or whether training was interrupted before it.

    Args:
        padded: uint8 ``[N, 40, 40, 3]``, never copied; in shared memory where workers do not inherit it.
        labels: int64 ``[N]``.
        augmentation: applied to each batch.
        batch_size: the global batch size; each of ``world_size`` ranks gets its own share of every batch.
        seed: of order and draws.
    """

    def __init__(
        self,
        padded: Tensor,
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

    def __getitem__(self, key: Key) -> Batch:
        epoch, batch = key
        start = batch * self.batch_size
        rows = self._epoch_order(epoch)[start : start + self.batch_size][self.rank :: self.world_size]
        seeds = np.random.SeedSequence((self.seed, epoch, batch, self.rank))
        images = self.augmentation(self.padded.numpy(), rows, seeds)
        return torch.from_numpy(images), torch.from_numpy(self.labels[rows])

    def _epoch_order(self, epoch: int) -> np.ndarray:
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, np.random.default_rng((self.seed, epoch)).permutation(len(self.labels))
        return self._order[1]


class EndlessKeys(Sampler[Key]):
    """The keys of all batches from the start of an epoch on; its length is that of one epoch."""

    def __init__(self, batches: int):
        self.batches = batches
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, counted from 0, that is iterated over next; Lightning does before each."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Key]:
        return ((epoch, batch) for epoch in itertools.count(self.epoch) for batch in range(self.batches))


class TrainingLoader(DataLoader[Batch]):
    """Loads an epoch at a time, while its workers go on with the next one during evaluation and checkpoints.

    An epoch that does not follow on the last one, because that was cut short or training was resumed, starts anew.

    Args:
        batches: what to load.
        num_workers: processes that make the batches; they stay from epoch to epoch.
        pin_memory: put batches where a GPU can fetch them without waiting.
    """

    sampler: EndlessKeys

    def __init__(self, batches: TrainingBatches, num_workers: int, pin_memory: bool):
        super().__init__(
            batches,
            batch_size=None,
            sampler=EndlessKeys(len(batches)),
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=pin_memory,
        )
        self._stream: Iterator[Batch] = iter(())
        self._due = -1  # which batch the stream gives next, counted over all epochs

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        # All of this runs at the first batch, not earlier: Lightning asks for an iterator before it sets the epoch.
        first = self.sampler.epoch * len(self)
        if self._iterator is None or self._due != first:  # Lightning clears _iterator when it stops the workers
            self._stream = super().__iter__()
        for batch in range(first, first + len(self)):
            self._due = batch + 1
            yield next(self._stream)


class EvaluationBatches(Dataset[Batch]):
    """Consecutive slices of an image set, unchanged and in order."""

    def __init__(self, images: ImageSet):
        self.images = images

    def __len__(self) -> int:
        return math.ceil(len(self.images) / EVALUATION_BATCH_SIZE)

    def __getitem__(self, batch: int) -> Batch:
        part = slice(batch * EVALUATION_BATCH_SIZE, (batch + 1) * EVALUATION_BATCH_SIZE)
        return torch.from_numpy(self.images.images[part]), torch.from_numpy(self.images.labels[part])
