"""Where images come from: each source gives its training and its test images when asked, in memory or as files."""

from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cifar_resnet.data.decode import decode
from cifar_resnet.data.files import printable
from cifar_resnet.data.images import fit, read_whole
from cifar_resnet.errors import InputError
from cifar_resnet.messages import say


@dataclass(frozen=True)
class ImageSet:
    """Labelled images in memory: RGB, uint8 ``[N, H, W, 3]``, and indices into the class names, int64 ``[N]``.

    Where the images come from files, ``files`` names them, one for each image, below the folder ``root``.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    files: tuple[str, ...] | None = None
    root: Path | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def class_counts(self) -> list[int]:
        """How many images each class has, by label."""
        return np.bincount(self.labels, minlength=len(self.classes)).tolist()

    def subset(self, indices: np.ndarray) -> "ImageSet":
        """Return the images at ``indices``, in that order."""
        files = None if self.files is None else tuple(self.files[index] for index in indices)
        return replace(self, images=self.images[indices], labels=self.labels[indices], files=files)

    def whole(self, index: int, longest: int) -> np.ndarray:
        """Return a picture as its file shows it, RGB, uint8 ``[H, W, 3]``, of ``longest`` pixels a side at most.

        Where there is no file, or not any more, it is the image in memory.
        """
        if self.files is not None and self.root is not None:
            with suppress(InputError):
                return read_whole(self.root / self.files[index], longest)
        return self.images[index]

    def read(self, side: int) -> "ImageSet":
        """Return these images, uint8 ``[N, side, side, 3]``, scaled where they are of another size."""
        if self.images.shape[1:3] == (side, side):
            return self
        scaled = np.empty((len(self), side, side, 3), np.uint8)
        for index, image in enumerate(self.images):
            scaled[index] = np.asarray(fit(Image.fromarray(image), side))
        return replace(self, images=scaled)


@dataclass(frozen=True)
class ImageFiles:
    """Labelled images in files, none of which is opened before `read`: what a split leaves out costs no time.

    Args:
        root: the folder that their names are relative to.
        files: the names, one for each image.
        labels: indices into the class names, int64 ``[N]``.
        classes: the class names.
        resize: scale images of other sizes, centre-cropping the longer side, instead of refusing them.
    """

    root: Path
    files: tuple[str, ...]
    labels: np.ndarray
    classes: tuple[str, ...]
    resize: bool = True

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: np.ndarray) -> "ImageFiles":
        """Return the files at ``indices``, in that order."""
        return replace(self, files=tuple(self.files[index] for index in indices), labels=self.labels[indices])

    def read(self, side: int) -> ImageSet:
        """Read the images, uint8 ``[N, side, side, 3]``; `InputError` for the first of them that cannot be used."""
        say(f"reading {len(self):,} images from {printable(self.root)}")
        images = decode([self.root / name for name in self.files], side, self.resize)
        return ImageSet(images, self.labels, self.classes, self.files, self.root)


Examples = ImageSet | ImageFiles
"""Labelled images: in memory, or to be read when it is known which are used."""


class Source(ABC):
    """A data set, of which nothing is read before it is asked for: who only evaluates needs no training images."""

    def prepare(self) -> None:
        """Fetch what is not on this machine yet, or raise `InputError`; processes may call it at the same time."""
        return

    @abstractmethod
    def train(self) -> Examples:
        """Return the training images; `InputError` where they are missing or cannot be used."""

    @abstractmethod
    def test(self) -> Examples:
        """Return the test images, of the same classes; `InputError` where they are missing or cannot be used."""

    def settled(self) -> dict[str, Any]:
        """Return arguments that, beside its own, make a source whose test images are the same again."""
        return {}


class SplitSource(Source):
    """A source that gives both of its parts alike."""

    def train(self) -> Examples:
        """Return the training images."""
        return self._part("train")

    def test(self) -> Examples:
        """Return the test images."""
        return self._part("test")

    @abstractmethod
    def _part(self, split: str) -> Examples: ...


class InMemory(SplitSource):
    """Images that the caller has already: ``InMemory(train, test)``."""

    def __init__(self, train: ImageSet, test: ImageSet):
        self._splits = {"train": train, "test": test}

    def _part(self, split: str) -> ImageSet:
        return self._splits[split]


class Digits(SplitSource):
    """scikit-learn's 1,797 handwritten digits as 32×32 RGB: the first 898 to train, the last 899 to test.

    Each of the 8×8 pixels becomes a square of 4×4, so that pictures show what there is to be seen. The set comes with
    scikit-learn, so it needs no download, and is halved as in its example "Recognizing hand-written digits".
    """

    def _part(self, split: str) -> ImageSet:
        from sklearn.datasets import load_digits  # noqa: PLC0415  (a second of imports that no other source needs)

        bunch = load_digits()
        half = len(bunch.target) // 2
        rows = slice(half) if split == "train" else slice(half, None)
        grey = np.round(bunch.images[rows] * (255 / 16)).astype(np.uint8)
        square = grey.repeat(4, axis=1).repeat(4, axis=2)
        images = np.repeat(square[..., None], 3, axis=3)
        return ImageSet(images, bunch.target[rows].astype(np.int64), tuple(map(str, bunch.target_names)))
