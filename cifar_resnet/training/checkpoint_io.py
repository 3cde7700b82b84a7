"""How checkpoints are written and read: whole or not at all, and only as they were saved."""

import os
import re
import zipfile
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.fabric.plugins.io import CheckpointIO

from cifar_resnet.errors import InputError, RunError
from cifar_resnet.training.fingerprint import fingerprint

SUM = "sha256"
"""Key of a checkpoint's fingerprint, which is of all else in it; older checkpoints have none."""
SLACK = 2**24  # bytes that a checkpoint's contents may have in any case, beside eight times those of its file
Name = str | os.PathLike[str]


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's way to checkpoint files: whatever happens while one is saved, the one before it stays intact.

    Lightning's own writes to ``$TMPDIR`` and moves: on another file system that truncates the old file before the new
    one is there, so a full disk or a kill leaves none.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Name, storage_options: Any = None) -> None:
        """Write a checkpoint with its fingerprint; the file has its name when all of it is on the disk.

        Raises:
            RunError: it cannot be written; a file that had the name before is as it was.
            TypeError: there are ``storage_options``, which only remote storage has.
        """
        if storage_options is not None:
            raise TypeError("a checkpoint is a local file: there are no storage_options")
        serialized = BytesIO()
        torch.save(checkpoint | {SUM: fingerprint(checkpoint)}, serialized)
        _replace(Path(path), serialized.getbuffer())

    def load_checkpoint(self, path: Name, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Return what `read_contents` returns: always on the CPU, and never more than tensors and plain values.

        Whoever goes on from a checkpoint may do so because the run before was killed, so what that left is removed.
        """
        remove_leftovers(Path(path).parent)
        return read_contents(path)

    def remove_checkpoint(self, path: Name) -> None:
        """Remove a checkpoint.

        After a resume Lightning takes the name from the checkpoint that was resumed, and only looks whether it begins
        like the run's folder. So nothing is removed but a single ``.ckpt`` file whose name does not lead elsewhere.
        """
        file = Path(path)
        if file.suffix == ".ckpt" and ".." not in file.parts and (file.is_file() or file.is_symlink()):
            file.unlink()


def read_contents(path: Name, key: str = "ckpt") -> dict[str, Any]:
    """Return what a checkpoint file holds, on the CPU, after every sum in it has been verified.

    The CRC-32 sums of the file show damage; the fingerprint shows that these are the contents that were saved. It is
    no signature: who changes a file on purpose can write another one.

    Args:
        path: the file.
        key: what the user gave the path as, for messages.

    Raises:
        InputError: there is no such file, it cannot be read, it is damaged, or it is another kind of file.
    """
    if not os.path.isfile(path):
        raise InputError(f"{key}={path}: no such file; checkpoints are in lightning_logs/version_N/checkpoints/")
    try:
        with open(path, "rb") as file:
            size = _check_archive(file)
            contents = torch.load(file, map_location="cpu", weights_only=True)
        saved = contents.pop(SUM, None) if isinstance(contents, dict) else None
        found = fingerprint(contents, SLACK + 8 * size)
    except PermissionError as error:
        raise InputError(f"{key}={path} is not a readable checkpoint: you are not permitted to read it") from error
    except Exception as error:  # zipfile and torch.load raise whatever the bytes of a broken file provoke
        raise InputError(
            f"{key}={path} is not a readable checkpoint: it is damaged, or another kind of file; name a .ckpt"
        ) from error
    if saved not in (None, found):
        raise InputError(
            f"{key}={path} is not a readable checkpoint: what is in it is not what was saved; use another copy of it"
        )
    return contents


def _check_archive(file: BinaryIO) -> int:
    """Return the size of a zip file that holds what it says, uncompressed as torch writes it; else raise."""
    size = file.seek(0, os.SEEK_END)
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("compressed: it may be a bomb")
        if sum(member.file_size for member in members) > size:
            raise ValueError("its members overlap: it may be a bomb")
        if damaged := archive.testzip():
            raise ValueError(f"{damaged} is damaged")
    file.seek(0)
    return size


def _replace(path: Path, content: memoryview) -> None:
    """Write a file under another name in the same folder, and give it its name in one step."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.unlink(missing_ok=True)
        with draft.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException as error:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise RunError(_cannot_save(path, error)) from error
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Put the new name on the disk too, where the system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _cannot_save(path: Path, error: OSError) -> str:
    what = f"{path} cannot be saved ({error.strerror or error})"
    if path.is_file():
        return f"{what}; the one before it is intact: make room for another, then go on with ckpt_path={path}"
    return f"{what}, and there was none before it: make room, or name another folder, and begin again"


def remove_leftovers(folder: Path) -> None:
    """Remove the unfinished files of saves that were killed: those whose process does not exist on this machine.

    A folder that several machines write to at once is not expected; a save whose unfinished file is removed under it
    fails with a `RunError`, and the checkpoint before it stays.
    """
    with suppress(OSError):  # a folder that may only be read keeps them
        for file in folder.iterdir():
            pid = re.fullmatch(r"\..+\.ckpt\.(\d+)\.tmp", file.name)
            if pid and not _runs(int(pid[1])):
                file.unlink(missing_ok=True)


def _runs(pid: int) -> bool:
    if os.name != "posix":  # the question would end the process elsewhere
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it is another user's
        return True
    return True
