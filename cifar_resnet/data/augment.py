"""What happens to a training image: pad once, then crop, flip and cut out anew each epoch."""

import os
import random
from typing import Any

import numpy as np

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its import would otherwise ask the network for updates
import albumentations as A


def padding_of(side: int) -> int:
    """Return the pixels that are added to each side of an image before a crop of its size is taken: an eighth of it.

    Of 32 pixels that is 4, which leaves 81 possible offsets.
    """
    return side // 8


def pad(images: np.ndarray, mode: str, fill: np.ndarray) -> np.ndarray:
    """Pad square images on all four sides: uint8 ``[N, S, S, 3]`` to ``[N, S + S / 4, S + S / 4, 3]``.

    The mode ``reflect`` mirrors an image at its border (without repeating it), ``mean`` uses ``fill``, uint8 ``[3]``.
    """
    width = padding_of(images.shape[1])
    margin = ((0, 0), (width, width), (width, width), (0, 0))
    if mode == "reflect":
        return np.pad(images, margin, mode="reflect")
    padded = np.full([side + sum(more) for side, more in zip(images.shape, margin, strict=True)], fill)
    padded[:, width:-width, width:-width] = images
    return padded


class Crop(A.ImageOnlyTransform):
    """Take a square of ``size`` × ``size`` pixels, wholly inside the image, at a uniformly drawn place.

    Albumentations' own RandomCrop does the same in twice the time.
    """

    def __init__(self, size: int):
        super().__init__(p=1)
        self.size = size

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, slice]:
        """Draw where the square is."""
        height, width = params["shape"][:2]
        top = int(self.py_random.random() * (height - self.size + 1))
        left = int(self.py_random.random() * (width - self.size + 1))
        return {"rows": slice(top, top + self.size), "columns": slice(left, left + self.size)}

    def apply(self, img: np.ndarray, rows: slice, columns: slice, **params: Any) -> np.ndarray:
        """Return the pixels of the square."""
        return img[rows, columns]


class Cutout(Crop):
    """Fill the square that `Crop` would take with one pixel, uint8 ``[3]`` (DeVries & Taylor 2017, arXiv 1708.04552).

    Unlike the paper's, the square never leaves the image, so it always covers ``size`` × ``size`` pixels.
    Albumentations' own CoarseDropout does the same in ten times the time.
    """

    def __init__(self, size: int, fill: np.ndarray):
        super().__init__(size)
        self.fill = fill

    def apply(self, img: np.ndarray, rows: slice, columns: slice, **params: Any) -> np.ndarray:
        """Return a copy of the image with the square filled."""
        img = img.copy()
        img[rows, columns] = self.fill
        return img


class Augmentation:
    """The training transforms of the assignment on a batch of padded images: random crop, flip ½, cutout.

    Args:
        size: height and width in pixels after the crop.
        flip: mirror half of the images left to right, drawn anew; those to mirror may also be given with each call.
        cutout: side of the cutout square in pixels; 0 leaves it out.
        fill: uint8 ``[3]``, the mean pixel, which is 0 (to within half a grey level) after normalization.
    """

    def __init__(self, size: int, flip: bool, cutout: int, fill: np.ndarray):
        transforms = [Crop(size), *[A.HorizontalFlip(p=0.5)] * flip, *[Cutout(cutout, fill)] * (cutout > 0)]
        self.size = size
        self.pipeline = A.Compose(transforms, is_check_shapes=False)  # the check costs a sixth of the time

    def __call__(
        self, images: np.ndarray, rows: np.ndarray, seeds: np.random.SeedSequence, mirrored: np.ndarray | None = None
    ) -> np.ndarray:
        """Return augmented copies of ``images[rows]``: uint8 ``[len(rows), size, size, 3]``.

        Before anything is drawn, those are mirrored of which ``mirrored``, bool ``[len(rows)]``, says so.

        The draws depend on ``seeds`` alone. All transforms share one generator: albumentations' own
        ``set_random_seed`` would give each the same stream, and so tie the cutout's place to the crop's.
        """
        self.pipeline.set_random_state(np.random.default_rng(seeds), random.Random(seeds.generate_state(4).tobytes()))
        batch = np.empty((len(rows), self.size, self.size, 3), np.uint8)
        for place, row in enumerate(rows):
            image = images[row] if mirrored is None or not mirrored[place] else images[row][:, ::-1]
            batch[place] = self.pipeline(image=image)["image"]
        return batch
