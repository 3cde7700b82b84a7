"""Where images come from: each source reads its whole train and test set once, decoded, into memory."""

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cifar_resnet.errors import InputError

IMAGE_SIZE = 32
"""Height and width in pixels of every image, whatever its source."""

ELSEWHERE = "or run without it: experiment=quickstart (needs no download), data=folder data.root=DIR (your own images)"


@dataclass(frozen=True)
class ImageSet:
    """Labelled images in memory.

    Attributes:
        images: uint8 ``[N, 32, 32, 3]``, RGB, 0 to 255.
        labels: int64 ``[N]``, indices into ``classes``.
        classes: the class names.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: np.ndarray) -> "ImageSet":
        """Return the images at ``indices``, in that order."""
        return ImageSet(self.images[indices], self.labels[indices], self.classes)


def cifar10(root: str) -> tuple[ImageSet, ImageSet]:
    """Return CIFAR-10's 50,000 training and 10,000 test images (Krizhevsky 2009, the official python archive).

    The archive is looked for in ``root`` and downloaded there, checksum verified, when it is not.

    Raises:
        InputError: the archive is corrupt, or absent and cannot be downloaded.
    """
    from torchvision.datasets import CIFAR10  # noqa: PLC0415  (a second of imports that the other sources do not need)
    from torchvision.datasets.utils import check_integrity  # noqa: PLC0415

    folder = Path(root)
    archive = folder / CIFAR10.filename
    if archive.exists() and not check_integrity(str(archive), CIFAR10.tgz_md5):
        raise InputError(f"{archive} is corrupt (its checksum is wrong): delete it and run again to download it anew")
    with _undone_on_failure(folder, archive):
        try:
            train = CIFAR10(root, train=True, download=True)
            test = CIFAR10(root, train=False)
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"CIFAR-10 is not in {folder}/ and could not be downloaded ({error}): "
                f"put {CIFAR10.filename} there by hand, {ELSEWHERE}"
            ) from error
    return _image_set(train), _image_set(test)


def _image_set(part: Any) -> ImageSet:
    return ImageSet(part.data, np.asarray(part.targets, np.int64), tuple(part.classes))


@contextmanager
def _undone_on_failure(folder: Path, archive: Path) -> Iterator[None]:
    """Bound the wait for a silent network, and leave no part of a download behind."""
    had_folder, had_archive, timeout = folder.exists(), archive.exists(), socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)
    try:
        yield
    except BaseException:
        if not had_archive:
            archive.unlink(missing_ok=True)
        if not had_folder and folder.exists() and not any(folder.iterdir()):
            folder.rmdir()
        raise
    finally:
        socket.setdefaulttimeout(timeout)


def folder(root: str, resize: bool = False) -> tuple[ImageSet, ImageSet]:
    """Return the images of ``root/train/CLASS/*`` and ``root/test/CLASS/*``; the folder names are the classes.

    JPEG and PNG files are read, in the order of their names. Grey and palette images become RGB.

    Args:
        root: the folder that holds ``train`` and ``test``.
        resize: scale images of other sizes to 32×32, centre-cropping the longer side, instead of refusing them.

    Raises:
        InputError: a folder is missing or empty, the classes of train and test differ, or an image cannot be used.
    """
    train_classes, test_classes = _classes(Path(root) / "train"), _classes(Path(root) / "test")
    if train_classes != test_classes:
        odd = sorted(set(train_classes) ^ set(test_classes))
        raise InputError(
            f"{root}: train/ and test/ must have the same class folders; only in one of them: {', '.join(odd)}"
        )
    if len(train_classes) < 2:
        raise InputError(f"{root}/train has only the class {train_classes[0]!r}: a classifier needs two or more")
    return _read_split(Path(root) / "train", train_classes, resize), _read_split(
        Path(root) / "test", test_classes, resize
    )


def _classes(split: Path) -> tuple[str, ...]:
    if not split.is_dir():
        raise InputError(
            f"{split}: no such folder; data=folder needs data.root/train and data.root/test, one folder a class"
        )
    classes = sorted(path.name for path in split.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not classes:
        raise InputError(f"{split} has no class folders; put the images of each class into a folder of its own")
    return tuple(classes)


def _read_split(split: Path, classes: tuple[str, ...], resize: bool) -> ImageSet:
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        of_class = sorted(path for path in (split / name).iterdir() if path.suffix.lower() in {".jpg", ".jpeg", ".png"})
        if not of_class:
            raise InputError(f"{split / name} has no JPEG or PNG images; add some, or remove the folder")
        files += of_class
        labels += [label] * len(of_class)
    images = np.empty((len(files), IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)

    def read(index: int) -> None:
        images[index] = _read_image(files[index], resize)

    with ThreadPoolExecutor() as pool:
        for _ in pool.map(read, range(len(files)), chunksize=256):
            pass
    return ImageSet(images, np.array(labels, np.int64), classes)


def _read_image(file: Path, resize: bool) -> np.ndarray:
    try:
        with Image.open(file) as image:
            if image.mode not in {"RGB", "L", "1", "P"}:
                raise InputError(f"{file} is a {image.mode} image: convert it to RGB, grey or palette colours")
            rgb = image.convert("RGB")
    except (OSError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise InputError(f"{file} cannot be read as an image ({error}): repair or remove it") from error
    if rgb.size != (IMAGE_SIZE, IMAGE_SIZE):
        if not resize:
            width, height = rgb.size
            raise InputError(f"{file} is {width}×{height} pixels, not 32×32: scale the images, or set data.resize=true")
        rgb = ImageOps.fit(rgb, (IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
    return np.asarray(rgb)


def digits() -> tuple[ImageSet, ImageSet]:
    """Return scikit-learn's 1,797 handwritten digits, enlarged from 8×8 to 32×32 RGB: 1,437 to train, 360 to test.

    The set comes with scikit-learn, so it needs no download. The split is stratified and always the same.
    """
    from sklearn.datasets import load_digits  # noqa: PLC0415  (a second of imports that the other sources do not need)
    from sklearn.model_selection import train_test_split  # noqa: PLC0415

    bunch = load_digits()
    grey = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    size = (IMAGE_SIZE, IMAGE_SIZE)
    large = [np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)) for image in grey]
    images = np.repeat(np.stack(large)[..., None], 3, axis=-1)
    labels = bunch.target.astype(np.int64)
    every = ImageSet(images, labels, tuple(str(name) for name in bunch.target_names))
    train, test = train_test_split(np.arange(len(every)), test_size=0.2, stratify=labels, random_state=0)
    return every.subset(train), every.subset(test)
