"""Where images come from: each source reads its training and its test images, decoded, into memory, when asked."""

import sys
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from cifar_resnet.data.files import SUFFIXES, first_of, is_special, printable
from cifar_resnet.data.images import IMAGE_SIZE, read
from cifar_resnet.errors import InputError


@dataclass(frozen=True)
class ImageSet:
    """Labelled images in memory: RGB, uint8 ``[N, 32, 32, 3]``, and indices into the class names, int64 ``[N]``.

    Where the images come from files, ``files`` names them, one for each image.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    files: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: np.ndarray) -> "ImageSet":
        """Return the images at ``indices``, in that order."""
        files = None if self.files is None else tuple(self.files[index] for index in indices)
        return ImageSet(self.images[indices], self.labels[indices], self.classes, files)


class Source(ABC):
    """A data set, of which nothing is read before it is asked for: who only evaluates needs no training images."""

    def prepare(self) -> None:
        """Fetch what is not on this machine yet, or raise `InputError`; processes may call it at the same time."""
        return

    @abstractmethod
    def train(self) -> ImageSet:
        """Read the training images; `InputError` where they are missing or cannot be used."""

    @abstractmethod
    def test(self) -> ImageSet:
        """Read the test images, of the same classes; `InputError` where they are missing or cannot be used."""


class SplitSource(Source):
    """A source that reads both of its parts alike."""

    def train(self) -> ImageSet:
        """Read the training images."""
        return self._read("train")

    def test(self) -> ImageSet:
        """Read the test images."""
        return self._read("test")

    @abstractmethod
    def _read(self, split: str) -> ImageSet: ...


class InMemory(SplitSource):
    """Images that the caller has already: ``InMemory(train, test)``."""

    def __init__(self, train: ImageSet, test: ImageSet):
        self._splits = {"train": train, "test": test}

    def _read(self, split: str) -> ImageSet:
        return self._splits[split]


class Digits(SplitSource):
    """scikit-learn's 1,797 handwritten digits, enlarged from 8×8 to 32×32 RGB: 1,437 to train, 360 to test.

    The set comes with scikit-learn, so it needs no download. The split is stratified and always the same.
    """

    def _read(self, split: str) -> ImageSet:
        from sklearn.datasets import load_digits  # noqa: PLC0415  (a second of imports that no other source needs)
        from sklearn.model_selection import train_test_split  # noqa: PLC0415

        bunch = load_digits()
        labels = bunch.target.astype(np.int64)
        train, test = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0)
        rows = train if split == "train" else test
        grey = np.round(bunch.images[rows] * (255 / 16)).astype(np.uint8)
        large = [Image.fromarray(image).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC) for image in grey]
        images = np.stack([np.asarray(image.convert("RGB")) for image in large])
        return ImageSet(images, labels[rows], tuple(map(str, bunch.target_names)))


@dataclass
class Folder(SplitSource):
    """The images of ``root/train/CLASS/*`` and ``root/test/CLASS/*``; the folder names are the classes.

    Files that end in one of `SUFFIXES` are read, in the order of their names, as `cifar_resnet.data.images.read` does.

    Args:
        root: the folder that holds ``train`` and ``test``; of these only what is asked for need be there.
        resize: scale images of other sizes to 32×32, centre-cropping the longer side, instead of refusing them.

    Reading raises `InputError` if a folder is missing or empty, the classes of ``train`` and ``test`` differ where both
    are there, or an image cannot be used.
    """

    root: str
    resize: bool = False

    def _read(self, split: str) -> ImageSet:
        # Both are listed, where both are there, before the slow part begins.
        both = Path(self.root, "train"), Path(self.root, "test")
        try:
            splits = [path for path in both if path.name == split or path.is_dir()]
            found = [_classes(path) for path in splits]
            classes = found[0]
            odd = ", ".join(sorted(set(classes) ^ set(found[-1])))
            if odd:
                raise InputError(
                    f"{self.root}: train/ and test/ need the same class folders; only in one of them: {odd}"
                )
            if len(classes) < 2:
                raise InputError(f"{splits[0]} has only the class {classes[0]!r}: a classifier needs two or more")
            files, special = {path.name: _files(path, classes) for path in splits}[split]
        except OSError as error:
            raise InputError(f"data.root={self.root} cannot be read ({error}): check its permissions") from error
        if special:
            _say(f"{first_of(special)}: a pipe, socket or device, skipped")
        images = np.empty((len(files), IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        with ThreadPoolExecutor() as pool:  # Pillow decodes outside the interpreter lock
            for index, image in enumerate(pool.map(self._pixels, [file for file, _ in files])):
                images[index] = image
        names = tuple(file.relative_to(self.root).as_posix() for file, _ in files)
        return ImageSet(images, np.array([label for _, label in files], np.int64), classes, names)

    def _pixels(self, file: Path) -> np.ndarray:
        try:
            picture = read(file)
        except InputError as error:
            raise InputError(f"{error}: repair or remove it") from error
        width, height = picture.size
        if not self.resize and (width, height) != (IMAGE_SIZE, IMAGE_SIZE):
            raise InputError(
                f"{printable(file)} is {width}×{height} pixels, not {IMAGE_SIZE}×{IMAGE_SIZE}: "
                "scale the images, or set data.resize=true"
            )
        return picture.pixels


def _classes(split: Path) -> tuple[str, ...]:
    if not split.is_dir():
        raise InputError(
            f"{split}: no such folder; data=folder needs data.root/train and data.root/test, one folder a class"
        )
    visible = sorted(path for path in split.iterdir() if not path.name.startswith("."))
    for path in visible:
        if not path.exists():  # a class may be missing
            raise InputError(f"{printable(path)} is a link that leads nowhere: repair or remove it")
    classes = tuple(path.name for path in visible if path.is_dir())
    if not classes:
        raise InputError(f"{split} has no class folders; put the images of each class into a folder of its own")
    for name in classes:
        if not name.isprintable():  # figures cannot be drawn with it, which shows only after training
            raise InputError(f"{printable(split / name)}: the name of a class cannot be printed: rename the folder")
    return classes


def _files(split: Path, classes: tuple[str, ...]) -> tuple[list[tuple[Path, int]], list[Path]]:
    """List each image file with its label, in the order of the classes and then of the names; and what is no file."""
    labelled, special = [], []
    for label, name in enumerate(classes):
        named = sorted(path for path in (split / name).iterdir() if path.suffix.lower() in SUFFIXES)
        odd = [path for path in named if is_special(path)]
        found = [(path, label) for path in named if path not in odd]
        if not found:
            raise InputError(f"{split / name} has no images ({' '.join(SUFFIXES)}); add some, or remove the folder")
        labelled += found
        special += odd
    return labelled, special


def _say(line: str) -> None:
    """Write a line to standard error, once however many devices there are."""
    from lightning.pytorch.utilities import rank_zero_only  # noqa: PLC0415  (reading alone does not wait for it)

    rank_zero_only(print)(line, file=sys.stderr)
