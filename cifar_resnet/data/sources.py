"""Where images come from: each source reads its whole train and test set once, decoded, into memory."""

import os
import shutil
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image, ImageOps

from cifar_resnet.errors import InputError

IMAGE_SIZE = 32
"""Height and width in pixels of every image, whatever its source."""

SUFFIXES = {".jpg", ".jpeg", ".png"}

PATIENCE = 30
"""Seconds to wait for a silent network."""

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

    They are looked for in ``root``, unpacked or as the archive, and downloaded there, checksum verified, when they
    are not.

    Raises:
        InputError: the archive is corrupt, or absent and cannot be downloaded; nothing is left behind then.
    """
    from torchvision.datasets import CIFAR10  # noqa: PLC0415  (a second of imports that the other sources do not need)

    if os.path.isfile(root):
        raise InputError(f"data.root={root} is a file: name the folder that holds {CIFAR10.filename}, or will hold it")
    try:
        return _read_cifar10(root)
    except (RuntimeError, OSError):  # absent, corrupt or unreadable
        _fetch_cifar10(Path(root))
        return _read_cifar10(root)


def _read_cifar10(root: str) -> tuple[ImageSet, ImageSet]:
    from torchvision.datasets import CIFAR10  # noqa: PLC0415

    train, test = (
        # torchvision's array is a transposed view: copied once here, it need not be gathered anew for every batch
        ImageSet(np.ascontiguousarray(part.data), np.asarray(part.targets, np.int64), tuple(part.classes))
        for part in (CIFAR10(root, train=True), CIFAR10(root, train=False))
    )
    return train, test


def _fetch_cifar10(folder: Path) -> None:
    """Unpack the archive into ``folder``, downloading it first where need be; all or nothing."""
    from torchvision.datasets import CIFAR10  # noqa: PLC0415
    from torchvision.datasets.utils import check_integrity, download_url, extract_archive  # noqa: PLC0415

    archive = folder / CIFAR10.filename
    try:
        if archive.exists() and not check_integrity(str(archive), CIFAR10.tgz_md5):
            raise InputError(f"{archive} is corrupt (wrong checksum): delete it and run again to download it anew")
        with _staging(folder) as staging, _bounded_wait():
            if not archive.exists():
                download_url(CIFAR10.url, staging, CIFAR10.filename, CIFAR10.tgz_md5)
                (staging / CIFAR10.filename).replace(archive)
            extract_archive(str(archive), str(staging))
            shutil.rmtree(folder / CIFAR10.base_folder, ignore_errors=True)
            (staging / CIFAR10.base_folder).replace(folder / CIFAR10.base_folder)
    except (OSError, RuntimeError, HTTPException) as error:
        reason = getattr(error, "reason", error)  # what a URLError wraps
        raise InputError(
            f"CIFAR-10 is not in {folder}/, or not intact, and could not be downloaded ({reason}): "
            f"put {CIFAR10.filename} there by hand, {ELSEWHERE}"
        ) from error


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """Offer an empty folder inside ``folder``; after a failure remove it and the parents that were made for it."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with TemporaryDirectory(dir=folder) as staging:
            yield Path(staging)
    finally:
        for path in made:
            if not any(path.iterdir()):
                path.rmdir()


@contextmanager
def _bounded_wait() -> Iterator[None]:
    """Give up on a silent network, for which torchvision would wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def folder(root: str, resize: bool = False) -> tuple[ImageSet, ImageSet]:
    """Return the images of ``root/train/CLASS/*`` and ``root/test/CLASS/*``; the folder names are the classes.

    JPEG and PNG files are read, in the order of their names. Grey and palette images become RGB.

    Args:
        root: the folder that holds ``train`` and ``test``.
        resize: scale images of other sizes to 32×32, centre-cropping the longer side, instead of refusing them.

    Raises:
        InputError: a folder is missing or empty, the classes of train and test differ, or an image cannot be used.
    """
    train, test = Path(root) / "train", Path(root) / "test"
    try:
        classes, test_classes = _classes(train), _classes(test)
        if classes != test_classes:
            odd = ", ".join(sorted(set(classes) ^ set(test_classes)))
            raise InputError(f"{root}: train/ and test/ need the same class folders; only in one of them: {odd}")
        if len(classes) < 2:
            raise InputError(f"{train} has only the class {classes[0]!r}: a classifier needs two or more")
        files = [_files(split, classes) for split in (train, test)]  # both, before the slow part begins
    except OSError as error:
        raise InputError(f"data.root={root} cannot be read ({error}): check its permissions") from error
    train_images, test_images = (_decode(split, classes, resize) for split in files)
    return train_images, test_images


def _classes(split: Path) -> tuple[str, ...]:
    if not split.is_dir():
        raise InputError(
            f"{split}: no such folder; data=folder needs data.root/train and data.root/test, one folder a class"
        )
    classes = sorted(path.name for path in split.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not classes:
        raise InputError(f"{split} has no class folders; put the images of each class into a folder of its own")
    return tuple(classes)


def _files(split: Path, classes: tuple[str, ...]) -> list[tuple[Path, int]]:
    """List each image file with its label, in the order of the classes and then of the names."""
    labelled: list[tuple[Path, int]] = []
    for label, name in enumerate(classes):
        found = sorted(path for path in (split / name).iterdir() if path.suffix.lower() in SUFFIXES)
        if not found:
            raise InputError(f"{split / name} has no JPEG or PNG images; add some, or remove the folder")
        labelled += [(path, label) for path in found]
    return labelled


def _decode(files: list[tuple[Path, int]], classes: tuple[str, ...], resize: bool) -> ImageSet:
    images = np.empty((len(files), IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    with ThreadPoolExecutor() as pool:  # Pillow decodes outside the interpreter lock
        for index, image in enumerate(pool.map(lambda file: read_image(file[0], resize), files)):
            images[index] = image
    return ImageSet(images, np.array([label for _, label in files], np.int64), classes)


def read_image(file: Path, resize: bool = False) -> np.ndarray:
    """Return a JPEG or PNG file as uint8 ``[32, 32, 3]``, RGB.

    Args:
        file: grey and palette images become RGB.
        resize: scale an image of another size to 32×32, centre-cropping its longer side, instead of refusing it.

    Raises:
        InputError: the file is broken, of another size, or has transparency, CMYK colours or 16 bits.
    """
    try:
        with Image.open(file, formats=("JPEG", "PNG")) as image:
            mode = image.mode
            upright = ImageOps.exif_transpose(image) if resize else image  # photographs may lie on their side
            rgb = upright.convert("RGB")
    except Exception as error:  # Pillow raises whatever the bytes of a broken file provoke
        raise InputError(f"{file} cannot be read as a JPEG or PNG image ({error}): repair or remove it") from error
    if mode not in {"RGB", "L", "1", "P"}:
        raise InputError(f"{file} is a {mode} image: convert it to RGB, grey or palette colours of 8 bits")
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
