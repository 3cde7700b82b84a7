"""CIFAR-10: downloaded once, verified, read."""

import os
import shutil
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path

import numpy as np
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity, download_url, extract_archive

from cifar_resnet.data.fetching import alone_in, staging_in
from cifar_resnet.data.files import printable
from cifar_resnet.data.sources import ImageSet, SplitSource
from cifar_resnet.errors import InputError
from cifar_resnet.messages import say


class Cifar10(SplitSource):
    """CIFAR-10's 50,000 training and 10,000 test images (Krizhevsky 2009, the official python archive).

    Args:
        root: the folder in which `prepare` looks for them, unpacked or as the archive; they are read from there.
    """

    def __init__(self, root: str):
        self.root = Path(root)

    def prepare(self) -> None:
        """Unpack the archive into ``root``, downloading it first where it is not there; all or nothing.

        Processes that call this at the same time wait for the first, and use what it has fetched. `InputError` where
        the archive is corrupt, or absent and cannot be downloaded; nothing is left behind then.
        """
        if os.path.isfile(self.root):
            raise InputError(
                f"data.root={self.root} is a file: name the folder that holds {CIFAR10.filename}, or will hold it"
            )
        say(f"reading CIFAR-10 in {printable(self.root)}")
        try:
            if not self._is_intact():  # most often it is, and needs no lock, so no permission to write
                with alone_in(self.root):
                    if not self._is_intact():
                        self._fetch()
        except (OSError, RuntimeError, HTTPException) as error:
            reason = getattr(error, "reason", error)  # what a URLError wraps
            raise InputError(
                f"CIFAR-10 is not in {self.root}/, or not intact, and could not be downloaded ({reason}): "
                f"put {CIFAR10.filename} there by hand, or run without it: experiment=quickstart (needs no download), "
                "data=folder data.root=DIR (your own images)"
            ) from error

    def _part(self, split: str) -> ImageSet:
        part = CIFAR10(self.root, train=split == "train")
        # torchvision's array is a transposed view: copied once here, it need not be gathered anew for every batch
        return ImageSet(np.ascontiguousarray(part.data), np.asarray(part.targets, np.int64), tuple(part.classes))

    def _is_intact(self) -> bool:
        with suppress(RuntimeError, OSError):  # absent, corrupt (torchvision verifies all files) or unreadable
            self.test()
            return True
        return False

    def _fetch(self) -> None:
        archive = self.root / CIFAR10.filename
        if archive.exists() and not check_integrity(archive, CIFAR10.tgz_md5):
            raise InputError(f"{archive} is corrupt (wrong checksum): delete it and run again to download it anew")
        with staging_in(self.root) as staging:
            if not archive.exists():
                say(f"downloading CIFAR-10 into {printable(self.root)}")
                download_url(CIFAR10.url, staging, CIFAR10.filename, CIFAR10.tgz_md5)
                (staging / CIFAR10.filename).replace(archive)
            extract_archive(archive, staging)
            shutil.rmtree(self.root / CIFAR10.base_folder, ignore_errors=True)
            (staging / CIFAR10.base_folder).replace(self.root / CIFAR10.base_folder)
