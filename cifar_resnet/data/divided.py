"""Labelled images that nobody has divided into those to train with and those for the test."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from cifar_resnet.data.files import printable
from cifar_resnet.data.sources import Examples, SplitSource
from cifar_resnet.errors import InputError


def draw_test(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Return the indices of a share of each class, at least one image and not all; int64, in ascending order."""
    generator = np.random.default_rng(seed)
    drawn = []
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        drawn.append(members[: min(max(1, round(share * len(members))), len(members) - 1)])
    return np.sort(np.concatenate(drawn))


@dataclass(kw_only=True)
class Divided(SplitSource):
    """A source that splits the test off, unless its images come divided.

    They are looked for once: images that are added later belong to neither part.

    Args:
        test_share: of each class, which is split off for the test; above 0 and below 1.
        seed: of that split.
        test_files: the test images by their names, whatever share and seed say; all others are to train with.
    """

    test_share: float = 0.2
    seed: int = 0
    test_files: Sequence[str] | None = None

    def settled(self) -> dict[str, Any]:
        """Return the names of the test images that were split off, where they have names."""
        if self._undivided is None:
            return {}
        files = self.test().files
        return {} if files is None else {"test_files": list(files)}

    def _part(self, split: str) -> Examples:
        if (images := self._undivided) is None:
            part = self._given(split)
        else:
            rest = np.setdiff1d(np.arange(len(images)), self._chosen)
            part = images.subset(self._chosen if split == "test" else rest)
        missing = np.setdiff1d(np.arange(len(part.classes)), part.labels)
        if split == "train" and len(missing):
            name = part.classes[missing[0]]
            raise InputError(f"the class {name!r} has no image to train with: give it some that are not for the test")
        return part

    @cached_property
    def _undivided(self) -> Examples | None:
        return self._all()

    @cached_property
    def _chosen(self) -> np.ndarray:
        """The indices of the test images."""
        images = self._undivided
        assert images is not None, "these come divided"
        if self.test_files is not None:
            return _find(self.test_files, images.files or ())
        labels, counts = np.unique(images.labels, return_counts=True)
        if counts.min() == 1:
            name = images.classes[labels[counts.argmin()]]
            raise InputError(
                f"data.test_share={self.test_share} cannot split the class {name!r}, which has one image: add more, or "
                "say yourself which are for the test"
            )
        return draw_test(images.labels, self.test_share, self.seed)

    @abstractmethod
    def _all(self) -> Examples | None:
        """Return all images together; None where they come divided, and `_given` has them."""

    @abstractmethod
    def _given(self, split: str) -> Examples:
        """Return the images of a part that comes divided."""


def _find(wanted: Sequence[str], files: Sequence[str]) -> np.ndarray:
    place = {name: index for index, name in enumerate(files)}
    missing = [name for name in wanted if name not in place]
    if missing:
        raise InputError(
            f"{printable(missing[0])}: no such image; of the {len(wanted):,} that were split off for the test "
            f"{len(missing):,} are not there: put them back"
        )
    return np.array(sorted(place[name] for name in wanted), np.int64)
