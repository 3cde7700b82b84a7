"""Training images that are left out of training: some to choose by, and those that are too many."""

import numpy as np

from cifar_resnet.data.sources import Examples
from cifar_resnet.errors import InputError


def split_training(
    images: Examples, val_size: int, train_size: int | None, seed: int
) -> tuple[Examples, Examples | None]:
    """Return what to train with, at most ``train_size`` images, and ``val_size`` images apart, None for 0 of them.

    The proportions of the classes are kept. `InputError` where there are too few images for that.
    """
    if val_size + (train_size or 1) > len(images):
        raise InputError(
            f"data.val_size={val_size} and data.train_size={train_size} together ask for more than the "
            f"{len(images):,} training images that there are"
        )
    images, val = _stratified(images, val_size, seed) if val_size else (images, None)
    if train_size is not None and train_size < len(images):
        _, images = _stratified(images, train_size, seed)
    return images, val


def _stratified(images: Examples, size: int, seed: int) -> tuple[Examples, Examples]:
    """Split ``size`` images off, class proportions kept; both parts stay in order."""
    from sklearn.model_selection import train_test_split  # noqa: PLC0415  (a second of imports that most runs do not need)

    present, counts = np.unique(images.labels, return_counts=True)
    if counts.min() == 1:
        name = images.classes[present[counts.argmin()]]
        raise InputError(
            f"data.val_size and data.train_size cannot split the class {name!r}, of which one image is left: "
            "give it more images, or leave both sizes out"
        )
    if min(size, len(images) - size) < len(present):
        raise InputError(
            f"data.val_size and data.train_size must leave at least one image of each of the {len(present)} classes"
        )
    rest, taken = train_test_split(np.arange(len(images)), test_size=size, stratify=images.labels, random_state=seed)
    return images.subset(np.sort(rest)), images.subset(np.sort(taken))
