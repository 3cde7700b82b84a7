"""How a download arrives: fetched by one process, whole or not at all, and not waited for for ever."""

import hashlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

from filelock import FileLock

DOWNLOAD_TIMEOUT = 30  # seconds after which a server that sends nothing is given up


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Let one process at a time fetch into a folder."""
    # The lock lies outside of the folder, which may have to go again while other processes wait.
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    lock = Path(gettempdir(), f"cifar-resnet-{name}.lock")
    with FileLock(lock):
        try:
            yield
        finally:
            with suppress(PermissionError):  # of Windows, where FileLock removes it
                lock.unlink(missing_ok=True)


@contextmanager
def staging_in(folder: Path) -> Iterator[Path]:
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
