"""CIFAR-10: downloaded once, verified, read."""

import hashlib
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

import numpy as np
from filelock import FileLock
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity, download_url, extract_archive

from cifar_resnet.data.files import printable
from cifar_resnet.data.sources import ImageSet, SplitSource
from cifar_resnet.errors import InputError
from cifar_resnet.messages import say

DOWNLOAD_TIMEOUT = 30  # seconds after which a server that sends nothing is given up


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
                self._fetch_alone()
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

    def _fetch_alone(self) -> None:
        # The lock lies outside of the folder, which may have to go again while other processes wait.
        name = hashlib.sha256(os.fsencode(self.root.resolve())).hexdigest()[:16]
        lock = Path(gettempdir(), f"cifar10-{name}.lock")
        with FileLock(lock):
            try:
                if not self._is_intact():
                    self._fetch()
            finally:
                with suppress(PermissionError):  # of Windows, where FileLock removes it
                    lock.unlink(missing_ok=True)

    def _fetch(self) -> None:
        archive = self.root / CIFAR10.filename
        if archive.exists() and not check_integrity(archive, CIFAR10.tgz_md5):
            raise InputError(f"{archive} is corrupt (wrong checksum): delete it and run again to download it anew")
        with _staging(self.root) as staging:
            if not archive.exists():
                say(f"downloading CIFAR-10 into {printable(self.root)}")
                download_url(CIFAR10.url, staging, CIFAR10.filename, CIFAR10.tgz_md5)
                (staging / CIFAR10.filename).replace(archive)
            extract_archive(archive, staging)
            shutil.rmtree(self.root / CIFAR10.base_folder, ignore_errors=True)
            (staging / CIFAR10.base_folder).replace(self.root / CIFAR10.base_folder)


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """Offer an empty folder in ``folder``, and an end to waiting; after a failure remove what was made for it."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)  # torchvision would wait for a silent network for ever
    try:
        with TemporaryDirectory(dir=folder) as staging:
            yield Path(staging)
    finally:
        socket.setdefaulttimeout(patience)
        with suppress(OSError):  # not empty
            for path in made:
                path.rmdir()
