"""What the benchmarks share: images, repeats in turn, facts about the machine, the table and its JSON."""

import argparse
import datetime
import json
import math
import os
import platform
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from cifar_resnet.cli.compose import compose
from cifar_resnet.cli.schema import Train
from cifar_resnet.cli.sections import Images
from cifar_resnet.data.datamodule import ImageDataModule
from cifar_resnet.data.folder import Folder
from cifar_resnet.data.sources import ImageSet, InMemory

Name = TypeVar("Name")
Measured = TypeVar("Measured")


def arguments(description: str | None, repeats: int = 5) -> argparse.ArgumentParser:
    """Return a parser with the options of every benchmark."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--repeats", type=int, default=repeats, help="measurements of each row, taken in turn")
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    return parser


def add_root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", help="folder of train/CLASS and test/CLASS; without it the images are noise")


def images(root: str | None, count: int) -> tuple[ImageSet, str]:
    """Return ``count`` training images, uint8 ``[count, 32, 32, 3]``, and where they come from.

    Sets smaller than ``count`` are repeated, so that they fill as much memory as real ones.
    """
    if root is not None:
        train = Folder(root).train()
        return train.subset(np.arange(count) * 7919 % len(train)).read(32), f"{root} ({len(train):,} images)"
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
    return ImageSet(noise, np.arange(count) % 10, tuple("0123456789")), "synthetic noise"


def image_data(train: ImageSet, test: ImageSet, **options: Any) -> ImageDataModule:
    """Wrap images as a run does, with the project's defaults but for ``options``."""
    defaults = compose("train").data.model_dump(exclude=set(Images.model_fields))
    data = ImageDataModule(InMemory(train, test), **{**defaults, **options})
    data.setup()
    return data


def training_configuration(folder: str, overrides: Mapping[str, Any]) -> Train:
    """Return the configuration of `scripts/train.py` for training alone, on images that the benchmark brings."""
    fixed = {
        "data": "digits",  # not read
        "schedule.peak_epoch": 1,
        "schedule.lr_min": 1e-4,
        "schedule.lr_max": 1e-3,
        "trainer.limit_val_batches": 0,
        "trainer.precision": "32-true",
        "trainer.default_root_dir": folder,
    }
    config: Train = compose("train", *(f"{key}={value}" for key, value in (fixed | dict(overrides)).items()))
    return config


def in_turn(tasks: Mapping[Name, Callable[[], Measured]], repeats: int) -> dict[Name, list[Measured]]:
    """Run all tasks one after the other, ``repeats`` times; each returns its own measurement.

    What slows the machine for a while so slows all of them alike.
    """
    results: dict[Name, list[Measured]] = {name: [] for name in tasks}
    for _ in range(repeats):
        for name, task in tasks.items():
            results[name].append(task())
    return results


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def mean_and_deviation(values: Iterable[float | None], digits: int = 2) -> str:
    """Return both with the number of those that were measured, or a dash where none was."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    deviation = f" ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.{digits}f}{deviation} ({len(known)})"


def spread(values: Sequence[float], digits: int = 0) -> str:
    """Return median, least and greatest as one text."""
    return f"{median(values):,.{digits}f} ({min(values):,.{digits}f}–{max(values):,.{digits}f})"


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the order statistics between which the median lies with a probability of at least 95 %.

    Each of n independent values lies below the median with probability 1/2, whatever their distribution is, so the
    ranks are quantiles of the binomial distribution (Conover 1999, Practical Nonparametric Statistics, section 3.2).
    Fewer than six values cannot tell so much: for them it is the least and the greatest.
    """
    ordered, count = sorted(values), len(values)
    outside, rank = 1, 0  # cases of 2^n in which at most `rank` values lie below the median
    while outside + math.comb(count, rank + 1) <= 0.025 * 2**count:
        rank += 1
        outside += math.comb(count, rank)
    return ordered[rank], ordered[-1 - rank]


def report(benchmark: str, title: str, rows: Sequence[Mapping[str, Any]], figures: Any, options: Any) -> None:
    """Print the rows as a table, and write them with all figures and facts where ``--output`` says."""
    facts = machine()
    table = Table(
        title=title, title_justify="left", caption=", ".join(f"{key} {value}" for key, value in facts.items())
    )
    for column in rows[0]:
        table.add_column(column, justify="left" if column == next(iter(rows[0])) else "right")
    for row in rows:
        table.add_row(*map(str, row.values()))
    console = Console()
    needed = Measurement.get(console, console.options.update(max_width=1_000), table).maximum
    console.width = max(console.width, needed)  # a row that the terminal breaks is better than cells that it breaks
    console.print(table)
    if options.output is None:
        return
    record = {
        "benchmark": benchmark,
        "title": title,
        "machine": facts,
        "options": {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()},
        "rows": list(rows),
        "figures": figures,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def machine() -> dict[str, Any]:
    """Return what a figure depends on."""
    facts: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    facts["python"] = platform.python_version()
    return facts | {name: version(name) for name in ("torch", "torchvision", "lightning", "albumentations", "numpy")}


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
