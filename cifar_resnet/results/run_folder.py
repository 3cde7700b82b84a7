"""The folder of a run: which it is, that it is its own, and what is to be looked at in it."""

import shutil
import sys
from contextlib import suppress
from itertools import count, takewhile
from pathlib import Path
from typing import Self

import yaml
from filelock import FileLock, Timeout
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from rich import get_console
from rich.console import RenderableType

from cifar_resnet.cli.schema import Evaluate, Train
from cifar_resnet.errors import InputError
from cifar_resnet.results.logger import RunLogger
from cifar_resnet.results.loggers import close_logger, open_logger
from cifar_resnet.results.runs import CONFIG
from cifar_resnet.results.unfinished import LOCK, busy
from cifar_resnet.training.checkpoint_io import remove_leftovers


class RunFolder:
    """The folder of a run, which is its own as long as it lasts; nothing is written beside the first device.

    Nor is anything under ``trainer.fast_dev_run``. In a ``with`` block: a run that an `InputError` ends leaves no
    folder.

    Args:
        config: what is run.
        trainer: what runs it; from here on it logs to the folder.
        unfinished: the folder of an earlier run that goes on; None claims the next ``version_N``.
        step: the optimizer step it goes on from; TensorBoard forgets what was logged behind it.
    """

    def __init__(self, config: Train | Evaluate, trainer: Trainer, unfinished: Path | None = None, step: int = 0):
        self.config = config
        self.trainer = trainer
        self.path: Path | None = None
        self.logger: RunLogger | None = None
        self.others: list[Logger] = []
        self.chosen = config.model_dump(by_alias=True, exclude_unset=True)
        self._is_new = unfinished is None
        self._step = step
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        logs = Path(config.trainer.default_root_dir, "lightning_logs", config.name or "")
        try:
            self.path, self._lock = _lock_folder(unfinished) if unfinished else _claim_version(logs)
        except Timeout as error:
            raise busy(unfinished) from error
        self.logger = trainer.logger = RunLogger(self.path, purge_step=None if self._is_new else step)
        self.logger.hparams = self.chosen
        remove_leftovers(self.path / "checkpoints")
        if self._is_new:
            self.write(CONFIG, yaml.safe_dump(self.chosen, sort_keys=False))
        print_once(f"run folder: {self.path}" + ("" if self._is_new else f", goes on after step {step}"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.path is None:
            return
        try:
            for logger in self.others:
                close_logger(logger, self.path, succeeded=kind is None)
        finally:
            self._lock.release()
        if self._is_new and kind is not None and issubclass(kind, InputError):
            shutil.rmtree(self.path)
            for parent in takewhile(lambda each: each != Path(self.config.trainer.default_root_dir), self.path.parents):
                with suppress(OSError):  # it has others
                    parent.rmdir()

    def open_others(self) -> None:
        """Log to ``loggers`` too, until the ``with`` block ends; raise `InputError` where one cannot begin."""
        if self.path is None or self.logger is None or not isinstance(self.config, Train):
            return
        for name in self.config.loggers:
            self.others.append(open_logger(name, self.config, self.path, self._step))
        self.trainer.loggers = [self.logger, *self.others]

    def write(self, name: str, text: str) -> None:
        """Write a file of the folder, under another name first: whoever finds it finds all of it."""
        assert self.path is not None
        draft = self.path / f".{name}"
        draft.write_text(text)
        draft.replace(self.path / name)

    def point_to_it(self) -> None:
        """Say where to look at what the run left."""
        if self.path is not None:
            report = self.path / "report.html"
            logs = Path(self.config.trainer.default_root_dir, "lightning_logs")
            print_once(f"look at it: open {report}      or {_tensorboard()} --logdir {logs}")


def _tensorboard() -> str:
    """Return how TensorBoard is called: by the path beside Python where its folder is not on the PATH."""
    beside = Path(sys.executable).with_name("tensorboard")
    if shutil.which(beside.name) or not beside.exists():
        return beside.name
    return str(beside.relative_to(Path.cwd()) if beside.is_relative_to(Path.cwd()) else beside)


@rank_zero_only
def print_once(what: RenderableType) -> None:
    """Print a line or a table, once however many devices there are."""
    get_console().print(what, highlight=False, soft_wrap=isinstance(what, str))


def _claim_version(logs: Path) -> tuple[Path, FileLock]:
    """Make and lock the next ``version_N``; `mkdir` and the lock let one process alone have it.

    The last one is taken where a run was killed before it had written down there what it is.
    """
    logs.mkdir(parents=True, exist_ok=True)
    numbers = (path.name.removeprefix("version_") for path in logs.glob("version_*"))
    last = max(map(int, filter(str.isdecimal, numbers)), default=-1)
    for number in count(max(last, 0)):
        path = logs / f"version_{number}"
        if number > last:
            with suppress(FileExistsError):
                path.mkdir()
        if _is_unused(path):
            with suppress(Timeout, PermissionError):
                _, lock = _lock_folder(path)
                if _is_unused(path):
                    return path, lock
                lock.release()
    raise AssertionError("there is always a next number")


def _lock_folder(path: Path) -> tuple[Path, FileLock]:
    lock = FileLock(path / LOCK)
    lock.acquire(blocking=False)
    return path, lock


def _is_unused(folder: Path) -> bool:
    try:
        return {file.name for file in folder.iterdir()} <= {LOCK, f".{CONFIG}"}
    except OSError:  # no folder, or not ours
        return False
