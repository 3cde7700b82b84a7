"""Batches: every training batch is a pure function of (seed, epoch, batch, rank), whoever makes it, and when."""

import itertools
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from cifar_resnet.data.augment import Augmentation
from cifar_resnet.interruption import SIGNALS

Batch = tuple[Tensor, Tensor]  # images, uint8 ``[N, S, S, 3]``, and labels, int64 ``[N]``
Key = tuple[int, int]  # which batch: epoch and place in it, both counted from 0

FEWEST_STEPS = 20  # of an epoch: with fewer, a schedule of rates has no time
LARGEST_BATCH = 512  # the assignment's


def batch_size_for(images: int, accumulated: int = 1, devices: int = 1) -> int:
    """Return a batch size that gives an epoch of so many images 20 optimizer steps or more: 512 at most.

    It is a multiple of the devices; where there are too few images, each device has two.
    """
    share = min(LARGEST_BATCH, images // (FEWEST_STEPS * accumulated)) // devices
    return devices * max(share, 2)


def shared_batch_size(asked: int, images: int, devices: int) -> int:
    """Return how many images a batch has: as many as asked for, if there are so many, and as many for each device.

    Only with shares of one size is the mean over the devices' gradients that over the images. 0: too few images.
    """
    return min(asked, images) // devices * devices


@dataclass(eq=False)
class TrainingBatches(Dataset[Batch]):
    """Augmented training batches by key.

    Args:
        padded: uint8 ``[N, S + S / 4, S + S / 4, 3]``, never copied; in shared memory where workers do not inherit it.
        labels: int64 ``[N]``, likewise.
        batch_size: the global batch size; each of ``world_size`` ranks gets its own share of every batch.
        seed: of order and draws.
        accumulated: batches in an optimizer step, of which an epoch has a multiple.
        alternating: mirror half of the images in the first epoch, the others in the next, and so on in turn, so that
            two epochs show both sides of every image (Jordan 2024, arXiv 2404.00498).
    """

    padded: Tensor
    labels: Tensor
    augmentation: Augmentation
    batch_size: int
    seed: int
    rank: int = 0
    world_size: int = 1
    accumulated: int = 1
    alternating: bool = False

    def __post_init__(self) -> None:
        self.batch_size = shared_batch_size(self.batch_size, len(self.labels), self.world_size)

    def __len__(self) -> int:
        """Return the number of whole batches in an epoch; the few images left over differ from epoch to epoch."""
        whole = len(self.labels) // self.batch_size
        return whole - whole % self.accumulated

    def __getitem__(self, key: Key) -> Batch:
        epoch, batch = key
        start = batch * self.batch_size
        order = _epoch_order(self.seed, epoch, len(self.labels))
        rows = order[start : start + self.batch_size][self.rank :: self.world_size]
        seeds = np.random.SeedSequence((self.seed, epoch, batch, self.rank))
        mirrored = _mirrored_first(self.seed, len(self.labels))[rows] ^ bool(epoch % 2) if self.alternating else None
        images = self.augmentation(self.padded.numpy(), rows, seeds, mirrored)
        return torch.from_numpy(images), self.labels[torch.from_numpy(rows)]


@lru_cache(maxsize=1)
def _epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)


@lru_cache(maxsize=1)
def _mirrored_first(seed: int, count: int) -> np.ndarray:
    """Return which images are mirrored in the first epoch, and in every other one after it: bool ``[count]``."""
    seeds = np.random.SeedSequence(seed, spawn_key=(0,))  # which no order and no batch is drawn from
    return np.random.default_rng(seeds).random(count) < 0.5


@dataclass(eq=False)
class EndlessKeys(Sampler[Key]):
    """The keys of all batches from ``first``, counted over all epochs, on."""

    batches: int
    epoch: int = 0
    first: int = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, counted from 0, that is iterated over next; Lightning does before each."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Key]:
        return (divmod(place, self.batches) for place in itertools.count(self.first))


class TrainingLoader:
    """Loads an epoch at a time, while its workers go on with the next one during evaluation and checkpoints.

    An epoch that does not follow on the last one, because that was cut short, starts anew. One that was interrupted
    goes on behind its last batch, which a checkpoint holds.

    Args:
        num_workers: processes that make the batches; they stay from epoch to epoch, until `stop`.
        pin_memory: put batches where a GPU can fetch them without waiting.
    """

    def __init__(self, batches: TrainingBatches, num_workers: int, pin_memory: bool):
        self.batches = batches
        self.sampler = EndlessKeys(len(batches))
        self.loader = DataLoader(
            batches,
            batch_size=None,
            sampler=self.sampler,
            num_workers=num_workers,
            pin_memory=pin_memory,
            worker_init_fn=_leave_signals_to_the_run,
            generator=torch.Generator(),  # else starting workers anew draws from the network's random numbers
        )
        self._resumed = 0  # which batch to begin at, counted over all epochs, where it is one of the epoch
        self.stop()

    def __len__(self) -> int:
        return len(self.batches)

    def stop(self) -> None:
        """Let the workers go, which end with the last reference to the stream that they fill."""
        self._stream: Iterator[Batch] = iter(())
        self._due = -1  # which batch the stream gives next, counted over all epochs

    def __iter__(self) -> Iterator[Batch]:
        # All of this runs at the first batch, not earlier: Lightning asks for an iterator before it sets the epoch.
        epoch = range(self.sampler.epoch * len(self), (self.sampler.epoch + 1) * len(self))
        first = self._resumed if self._resumed in epoch else epoch.start
        if self._due != first:
            self.sampler.first = first
            self.stop()
            self._stream = iter(self.loader)
        for batch in range(first, epoch.stop):
            self._due = batch + 1
            yield next(self._stream)

    def state_dict(self) -> dict[str, int]:
        """Return which batch comes next, counted over all epochs."""
        return {"next": self._due}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the epoch that was interrupted go on where it was."""
        self._resumed = state["next"]


def _leave_signals_to_the_run(_worker: int) -> None:
    """Ignore what ends a run: it needs its workers for the step that it finishes."""
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
