"""From any image file that Pillow reads to the 32×32 RGB pixels that a classifier takes."""

import glob
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from cifar_resnet.errors import InputError, one_line

IMAGE_SIZE = 32  # height and width in pixels of every image that is trained on, evaluated or predicted


@dataclass(frozen=True)
class Picture:
    """What was read of a file: RGB, uint8 ``[32, 32, 3]``.

    ``size`` is the width and height of the picture as it is seen, upright, before it was scaled. The ``note`` says what
    was done to it; it is empty for a 32×32 picture that was taken as it is.
    """

    file: Path
    pixels: np.ndarray
    size: tuple[int, int]
    note: str


def find(pattern: str) -> tuple[list[Path], list[Path]]:
    """Return the files and the folders that a name or a glob (``**`` goes into folders) matches, sorted.

    `InputError` where no file does.
    """
    path = Path(pattern)
    if path.is_dir():
        raise InputError(f"images={pattern} is a folder: give images='{path / '*'}' for what is in it")
    found = {path} if path.is_file() else {Path(name) for name in glob.glob(str(path), recursive=True)}
    folders = {path for path in found if path.is_dir()}
    files = sorted(found - folders)
    if not files:
        raise InputError(f"images={pattern}: no file matches; give a file or a quoted pattern such as 'photos/*.jpg'")
    return files, sorted(folders)


def read_batches(files: Sequence[Path], size: int) -> Iterator[list[Picture | InputError]]:
    """Yield each file's picture, or the error why there is none, ``size`` at a time, so that memory does not grow."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(files), size):
            yield list(pool.map(_read_or_error, files[start : start + size]))


def _read_or_error(file: Path) -> Picture | InputError:
    try:
        return read(file)
    except InputError as error:
        return error


def read(file: Path) -> Picture:
    """Return a picture as it is meant to be seen: upright, on white where transparent, its first frame if it moves.

    The file is of any format that Pillow knows, whatever its suffix. It becomes RGB of 8 bits: grey of 16 bits is
    divided by 257, and grey levels of unknown range (32 bits, floats) are stretched to 0 to 255. The shorter side is
    scaled to 32 pixels; of the longer side the middle is kept. Training images and images to predict are read by this
    function alone, so both see the same pixels. `InputError` where the file cannot be read as an image.
    """
    try:
        if file.exists() and not file.is_file():  # opening a pipe would wait for ever
            raise OSError("it is not a regular file")
        with Image.open(file) as image:
            notes = ["first frame only"] if getattr(image, "is_animated", False) else []
            if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
                notes.append("turned upright")
                ImageOps.exif_transpose(image, in_place=True)
            if image.mode in {"I", "F"}:
                notes.append("grey levels stretched")
            rgb = _to_rgb(image)
    except Exception as error:  # Pillow's readers raise whatever the bytes of a broken file provoke
        unknown = isinstance(error, UnidentifiedImageError) and "Pillow knows no such format"
        reason = unknown or getattr(error, "strerror", None) or one_line(error)
        raise InputError(f"{printable(file)} cannot be read as an image ({reason})") from error
    width, height = size = rgb.size
    if size != (IMAGE_SIZE, IMAGE_SIZE):
        notes.append(f"scaled from {width}×{height}" + (", centre-cropped" if width != height else ""))
        rgb = ImageOps.fit(rgb, (IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
    return Picture(file, np.asarray(rgb), size, ", ".join(notes))


def _to_rgb(image: Image.Image) -> Image.Image:
    """Do what ``convert`` does not: it clips grey levels above 255 and drops transparency."""
    if image.mode.startswith("I;16"):
        deep = np.asarray(image)
        return _from_grey(np.where(deep == image.info.get("transparency"), 255, deep / 257))
    if image.mode in {"I", "F"}:  # their range is not known
        levels = np.nan_to_num(np.asarray(image, np.float64), posinf=0, neginf=0)
        levels -= levels.min()
        return _from_grey(levels * (255 / (levels.max() or 1)))
    if image.has_transparency_data:
        seen = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")
    return image.convert("RGB")


def _from_grey(levels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.round(levels).astype(np.uint8)).convert("RGB")


def printable(file: Path) -> str:
    """Return the file's name for one line of a terminal: control and undecodable characters as escapes."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(file))
