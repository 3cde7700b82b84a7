"""Which run a training goes on with: the newest unfinished one of the same configuration, or that of a checkpoint."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from lightning.pytorch.utilities import rank_zero_only
from rich import get_console

from cifar_resnet.cli.schema import Train
from cifar_resnet.errors import Finished, InputError
from cifar_resnet.results.runs import CONFIG

LAST = "last"
LOCK = ".lock"  # in a run's folder; held as long as a process runs it
WITHOUT_EFFECT = {"ckpt_path", "loggers", "checkpoint", "num_workers", "enable_progress_bar"}
"""Keys that do not change a result."""

RESUMED = "CIFAR_RESNET_RESUMED"
"""Environment variable with the checkpoint that the first device goes on from, for the processes that it starts."""


def find_unfinished(config: Train) -> tuple[Train, Path | None]:
    """Find out where ``ckpt_path`` leads.

    Returns:
        The configuration with the path of the checkpoint in it, None where there is none yet, and the folder in which
        the run goes on, None where it needs one of its own.

    Raises:
        Finished: that run is at its end.
        InputError: that run is being run at this moment.
    """
    if config.ckpt_path != LAST:
        return config, _own_folder(config)
    if rank_zero_only.rank and RESUMED in os.environ:  # type: ignore[attr-defined]
        return config.model_copy(update={"ckpt_path": os.environ[RESUMED] or None}), None
    folders = list(_same_runs(config))
    folder = next((each for each in folders if not _is_finished(each) and not _is_running(each)), None)
    finished = next(filter(_is_finished, folders), None)
    if folder is None and finished is not None:
        raise Finished(_tell_finished(finished))
    if folder is None and not rank_zero_only.rank:  # type: ignore[attr-defined]
        get_console().print("ckpt_path=last: no unfinished run of this configuration, so a new one begins")
    checkpoint = folder and _checkpoint(folder)
    os.environ[RESUMED] = str(checkpoint or "")
    return config.model_copy(update={"ckpt_path": checkpoint and str(checkpoint)}), folder


def busy(folder: Path | None) -> InputError:
    """Return the error that says that another process runs a run."""
    return InputError(f"{folder} is being run by another process: wait for it, or end it")


def _own_folder(config: Train) -> Path | None:
    if config.ckpt_path is None:
        return None
    path = Path(config.ckpt_path)
    folder = path.parent.parent
    if path != _checkpoint(folder) or not _is_same(folder, config):
        return None
    if _is_finished(folder):
        raise Finished(_tell_finished(folder))
    if _is_running(folder):
        raise busy(folder)
    return folder


def _same_runs(config: Train) -> Iterator[Path]:
    """Yield the folders of runs of this configuration, the newest first."""
    logs = Path(config.trainer.default_root_dir, "lightning_logs")
    begun = [path.parent for path in logs.rglob(CONFIG)]
    for folder in sorted(begun, key=lambda path: (_number(path), path), reverse=True):
        if _is_same(folder, config):
            yield folder


def _number(folder: Path) -> int:
    number = folder.name.removeprefix("version_")
    return int(number) if number.isdecimal() else -1


def _is_same(folder: Path, config: Train) -> bool:
    try:
        before = yaml.safe_load((folder / CONFIG).read_text())
        now = config.model_dump(by_alias=True, exclude_unset=True)
        return _agree(*(each | {"name": None} for each in (before, now)))  # a run is the same under another name
    except (OSError, ValueError, yaml.YAMLError, LookupError, TypeError, AttributeError):
        return False  # no run, or one that ended before it had written that down


def _agree(before: Any, now: Any) -> bool:
    """Whether two runs come to the same result; a key that only one version of the program has is no matter."""
    if not isinstance(before, Mapping) or not isinstance(now, Mapping) or "_target_" in before:
        return bool(before == now)
    return all(_agree(before[key], now[key]) for key in (before.keys() & now.keys()) - WITHOUT_EFFECT)


def _checkpoint(folder: Path) -> Path | None:
    checkpoint = folder / "checkpoints" / "last.ckpt"
    return checkpoint if checkpoint.is_file() else None


def _is_finished(folder: Path) -> bool:
    return (folder / "summary.json").is_file()


def _is_running(folder: Path) -> bool:
    if rank_zero_only.rank:  # type: ignore[attr-defined]
        return False  # the first device's process holds the lock
    try:
        with FileLock(folder / LOCK, blocking=False):
            return False
    except Timeout:
        return True


def _tell_finished(folder: Path) -> str:
    return f"{folder} is finished: see {folder / 'report.html'}; without ckpt_path a new run begins"
