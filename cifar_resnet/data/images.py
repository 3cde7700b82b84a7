"""From any image file that Pillow reads to the square of RGB pixels that a classifier takes."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from cifar_resnet.data.files import is_special, printable
from cifar_resnet.errors import InputError, one_line

THREADS = min(8, os.cpu_count() or 1)  # Pillow decodes outside the interpreter lock


@dataclass(frozen=True)
class Picture:
    """What was read of a file: RGB, uint8 ``[side, side, 3]``.

    ``size`` is the width and height of the picture as it is seen, upright, before it was scaled. The ``note`` says what
    was done to it; it is empty for a picture that was taken as it is.
    """

    file: Path
    pixels: np.ndarray
    size: tuple[int, int]
    note: str


def read_batches(files: Sequence[Path], size: int, side: int) -> Iterator[list[Picture | InputError]]:
    """Yield each file's picture, or the error why there is none, ``size`` at a time, so that memory does not grow."""

    def read_or_error(file: Path) -> Picture | InputError:
        try:
            return read(file, side)
        except InputError as error:
            return error

    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(files), size):
            yield list(pool.map(read_or_error, files[start : start + size]))


def read(file: Path, side: int = 32) -> Picture:
    """Return a picture as it is meant to be seen: upright, on white where transparent, its first frame if it moves.

    The file is of any format that Pillow knows, whatever its suffix. It becomes RGB of 8 bits: grey of 16 bits is
    divided by 257, and grey levels of unknown range (32 bits, floats) are stretched to 0 to 255. The shorter side is
    scaled to ``side`` pixels; of the longer side the middle is kept. Training images and images to predict are read by
    this function alone, so both see the same pixels. `InputError` where the file cannot be read as an image.
    """
    rgb, notes = _open(file)
    width, height = size = rgb.size
    if size != (side, side):
        notes.append(f"scaled from {width}×{height}" + (", centre-cropped" if width != height else ""))
        rgb = fit(rgb, side)
    return Picture(file, np.asarray(rgb), size, ", ".join(notes))


def read_whole(file: Path, longest: int) -> np.ndarray:
    """Return a picture for people: as `read` sees it, but whole, RGB, uint8 ``[H, W, 3]``, of ``longest`` at most."""
    rgb, _ = _open(file)
    rgb.thumbnail((longest, longest))
    return np.asarray(rgb)


def _open(file: Path) -> tuple[Image.Image, list[str]]:
    """Return a picture of a size of its own, and what was done to it."""
    try:
        if is_special(file):
            raise OSError("it is a pipe, a socket or a device")
        with Image.open(file) as image:  # which decodes no pixel yet
            _refuse_too_large(*image.size)
            notes = ["first frame only"] if getattr(image, "is_animated", False) else []
            if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
                notes.append("turned upright")
                ImageOps.exif_transpose(image, in_place=True)
            if image.mode in {"I", "F"}:
                notes.append("grey levels stretched")
            rgb = _to_rgb(image)
    except Image.DecompressionBombError as error:
        what = f"{one_line(error)}: scale it down to {Image.MAX_IMAGE_PIXELS:,} pixels at most"
        raise InputError(f"{printable(file)} cannot be read as an image ({what})") from error
    except Exception as error:  # Pillow's readers raise whatever the bytes of a broken file provoke
        unknown = isinstance(error, UnidentifiedImageError) and "Pillow knows no such format"
        reason = unknown or getattr(error, "strerror", None) or one_line(error)
        raise InputError(f"{printable(file)} cannot be read as an image ({reason})") from error
    return rgb, notes


def fit(image: Image.Image, side: int) -> Image.Image:
    """Scale the shorter side of an RGB image to ``side`` pixels, and keep the middle of the longer one."""
    return ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)


def _refuse_too_large(width: int, height: int) -> None:
    """Raise where Pillow only warns, and then takes a gigabyte; it raises the same itself for twice as many pixels."""
    if Image.MAX_IMAGE_PIXELS and width * height > Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError(f"{width:,}×{height:,} pixels are too many")


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
