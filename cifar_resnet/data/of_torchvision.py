"""The data sets of torchvision that hold labelled images, by their names."""

import inspect
import shutil
import sys
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from torchvision import datasets

from cifar_resnet.data.divided import Divided
from cifar_resnet.data.fetching import alone_in, staging_in
from cifar_resnet.data.files import printable
from cifar_resnet.data.sources import Examples, ImageFiles, ImageSet
from cifar_resnet.errors import InputError, one_line
from cifar_resnet.messages import say

Options = dict[str, dict[str, Any]]
BY_TRAIN: Options = {"train": {"train": True}, "test": {"train": False}}
BY_SPLIT: Options = {"train": {"split": "train"}, "test": {"split": "test"}}
UNDIVIDED: Options = {"all": {}}
OPTIONS: dict[str, Options] = {
    **dict.fromkeys(("CIFAR10", "CIFAR100", "FashionMNIST", "KMNIST", "MNIST", "USPS"), BY_TRAIN),
    **dict.fromkeys(("Country211", "DTD", "Flowers102", "Food101", "RenderedSST2", "STL10", "SVHN"), BY_SPLIT),
    "FGVCAircraft": {"train": {"split": "trainval"}, "test": {"split": "test"}},
    **dict.fromkeys(("EuroSAT", "SEMEION", "SUN397"), UNDIVIDED),
}
"""By name, how a data set is asked for each of its parts."""


@dataclass
class Torchvision(Divided):
    """A data set of torchvision, downloaded where it is not there and verified by it; grey becomes RGB.

    Args, beside those of `Divided`:
        name: the class in `torchvision.datasets`, one of `OPTIONS`.
        root: the folder that it is in, laid out as torchvision does.
    """

    name: str
    root: str = "data"

    def __post_init__(self) -> None:
        if self.name not in OPTIONS:
            names = {name.lower(): name for name in OPTIONS}
            near = ", ".join(names[match] for match in get_close_matches(self.name.lower(), names, cutoff=0))
            raise InputError(f"data.name={self.name}: no such data set of labelled images; nearest: {near}")

    def prepare(self) -> None:
        """Fetch what is not there or not intact, all or nothing; processes may call this at the same time."""
        say(f"reading {self.name} in {printable(self.root)}")
        try:
            if not self._is_intact():
                with alone_in(Path(self.root)):
                    if not self._is_intact():
                        self._fetch()
        except Exception as error:  # each data set has its own
            reason = one_line(getattr(error, "reason", error))[:100]  # what a URLError wraps
            raise InputError(
                f"data.name={self.name}: it is not in {printable(self.root)}/, or not intact, and could not be "
                f"downloaded ({reason}): fetch it elsewhere by torchvision.datasets.{self.name}, and copy its folder"
            ) from error

    def _is_intact(self) -> bool:
        with suppress(Exception):  # as above
            for part in OPTIONS[self.name]:
                self._open(part, self.root)
            return True
        return False

    def _fetch(self) -> None:
        say(f"downloading {self.name} into {printable(self.root)}")
        with staging_in(Path(self.root)) as staging, redirect_stdout(sys.stderr):  # which some write to
            for part in OPTIONS[self.name]:
                self._open(part, str(staging), download=True)
            for new in staging.iterdir():
                old = Path(self.root, new.name)
                if old.is_dir():
                    shutil.rmtree(old)
                new.replace(old)

    def _open(self, part: str, root: str, download: bool = False) -> Any:
        kind = getattr(datasets, self.name)
        # Where images are in files, a Path for a loader gives their names, and nothing is decoded yet.
        loader = {"loader": Path} if "loader" in inspect.signature(kind).parameters else {}
        return kind(root, download=download, **OPTIONS[self.name][part], **loader)

    def _all(self) -> Examples | None:
        return self._given("all") if OPTIONS[self.name] is UNDIVIDED else None

    def _given(self, split: str) -> Examples:
        found = self._open(split, self.root)
        in_memory = hasattr(found, "data")
        labels = getattr(found, "targets", getattr(found, "labels", None)) if in_memory else [y for _, y in found]
        labels = np.asarray(labels, np.int64)
        classes = tuple(map(str, getattr(found, "classes", range(labels.max() + 1))))
        if in_memory:
            return ImageSet(_as_rgb(np.asarray(found.data)), labels, classes)
        names = tuple(file.relative_to(self.root).as_posix() for file, _ in found)
        return ImageFiles(Path(self.root), names, labels, classes)


def _as_rgb(images: np.ndarray) -> np.ndarray:
    """Return grey images, uint8 ``[N, H, W]``, or planes, ``[N, 3, H, W]``, as uint8 ``[N, H, W, 3]``."""
    if images.ndim == 3:
        return np.repeat(images[..., None], 3, axis=-1)
    return np.ascontiguousarray(images if images.shape[-1] == 3 else images.transpose(0, 2, 3, 1))
