"""The runs below some folders: what each was asked, what came out, and which of them do not count."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cifar_resnet.errors import InputError, one_line

CONFIG = "config.yaml"  # in a run's folder; what tells which run it is

NEEDED = ("test_accuracy", "train_seconds", "lr_max", "seed", "resumed")
"""Of a summary, for runs to be compared."""

NO_MATTER = re.compile(
    r"(.*\.)?seed|name|ckpt_path|loggers|(checkpoint|gallery|errors)\..*|data\.num_workers"
    r"|trainer\.(default_root_dir|enable_progress_bar|log_every_n_steps)"
)
"""Keys in which runs of one group may differ: their seeds, and what does not change a result."""


@dataclass(frozen=True)
class Run:
    """A run that is at its end.

    Attributes:
        folder: where it is.
        config: every key as it was set, by its dotted name.
        accuracy: share of the test images, 0 to 1.
        seconds: of training.
        lr_max: the rate of the peak, given or found.
        seed: its seed.
        resumed: how often it was gone on with after an interruption.
    """

    folder: Path
    config: Mapping[str, Any]
    accuracy: float
    seconds: float
    lr_max: float
    seed: int
    resumed: int


@dataclass(frozen=True)
class LeftOut:
    """A folder that does not count, and why."""

    folder: Path
    reason: str


def find_runs(logs: Sequence[str]) -> tuple[list[Run], list[LeftOut]]:
    """Return the finished runs in folders and below, and those that are no such runs; both by their folders' names.

    Raises:
        InputError: one of the folders does not exist.
    """
    for name in logs:
        if not Path(name).is_dir():
            raise InputError(f"logs={name}: there is no such folder")
    folders = {file.parent for name in logs for file in Path(name).rglob(CONFIG)}
    found = [_read(folder) for folder in sorted(folders, key=_natural)]
    return [each for each in found if isinstance(each, Run)], [each for each in found if isinstance(each, LeftOut)]


def _natural(folder: Path) -> list[Any]:
    """Return what puts version_10 behind version_9."""
    parts = str(folder).replace("_", "\0_\0").replace("=", "\0=\0").replace("/", "\0/\0").split("\0")
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def _read(folder: Path) -> Run | LeftOut:
    try:
        config = dict(_flatten(yaml.safe_load((folder / CONFIG).read_text())))
    except (OSError, ValueError, yaml.YAMLError, AttributeError) as error:
        return LeftOut(folder, f"damaged: {CONFIG}: {one_line(error)}")
    if "ckpt" in config:
        return LeftOut(folder, "an evaluation")
    if not (folder / "summary.json").exists():
        begun = (folder / "checkpoints").exists()
        return LeftOut(folder, "unfinished: it goes on with ckpt_path=last" if begun else "nothing was trained")
    try:
        summary = json.loads((folder / "summary.json").read_text())
        accuracy, seconds, lr_max, seed, resumed = (summary[name] for name in NEEDED)
        return Run(folder, config, float(accuracy), float(seconds), float(lr_max), int(seed), int(resumed))
    except (OSError, ValueError, TypeError) as error:
        return LeftOut(folder, f"damaged: summary.json: {one_line(error)}")
    except KeyError as error:
        return LeftOut(folder, f"damaged: summary.json has no {error.args[0]}")


def _flatten(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def group_runs(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Return the runs by what sets them apart, such as ``optimizer=AdamW width=16``; else under ``all``.

    Keys are named by their last part where that is clear. One that changes with others is left out, and one that only
    some of the runs have, as those of another version of the program, sets none apart.
    """
    common = set.intersection(*(set(run.config) for run in runs))
    keys = [key for key in runs[0].config if key in common and not NO_MATTER.fullmatch(key)]
    apart: list[str] = []
    for key in keys:  # one that goes with others tells nothing more
        if _count_groups(runs, [*apart, key]) > _count_groups(runs, apart):
            apart.append(key)
    short = [_short(key) for key in apart]
    names = [name if short.count(name) == 1 else key for name, key in zip(short, apart, strict=True)]
    groups: dict[str, list[Run]] = {}
    for run in runs:
        values = (_value(key, run.config[key]) for key in apart)
        name = " ".join(f"{name}={value}" for name, value in zip(names, values, strict=True))
        groups.setdefault(name or "all", []).append(run)
    return groups


def _count_groups(runs: Sequence[Run], keys: Sequence[str]) -> int:
    return len({repr([run.config[key] for key in keys]) for run in runs})


def _short(key: str) -> str:
    """Return ``width`` for model.width, ``optimizer`` for optimizer._target_."""
    return key.removesuffix("._target_").rpartition(".")[2]


def _value(key: str, value: Any) -> str:
    return str(value).rpartition(".")[2] if key.endswith("_target_") else str(value)
