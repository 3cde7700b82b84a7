"""How much memory images take once they are decoded, and how much there is."""

import os
from contextlib import suppress
from pathlib import Path

from cifar_resnet.data.augment import padding_of
from cifar_resnet.errors import InputError

LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Files in which a container finds what it may take, by the version of control groups."""


def total_memory() -> int | None:
    """Return the bytes that this machine has, or those of them that its container may take; None where nothing says."""
    found = []
    with suppress(AttributeError, OSError, ValueError):  # not on every system
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for limit in LIMITS:
        with suppress(OSError, ValueError):  # "max" means none
            found.append(int(Path(limit).read_text()))
    return min(found, default=None)


def check_memory(train: int, others: int, side: int, devices: int = 1) -> None:
    """Raise `InputError` where decoded images of so many pixels a side do not fit in memory.

    Args:
        train: how many are trained on; these are there twice while they are padded.
        others: how many are there for validation and test.
        side: in pixels.
        devices: of this machine, each of which has all images.
    """
    padded = side + 2 * padding_of(side)
    needed = devices * 3 * (train * (side**2 + padded**2) + others * side**2)
    available = total_memory()
    if available is not None and needed > available:
        raise InputError(
            f"data.image_size={side}: {train + others:,} images take {needed / 1e9:,.1f} GB decoded, and this machine "
            f"has {available / 1e9:,.1f} GB: lower it, or data.train_size"
        )
