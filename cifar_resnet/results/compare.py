"""Whether what was changed made a difference: groups of runs, with intervals, side by side."""

import csv
import json
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev

from matplotlib.figure import Figure
from rich import box, get_console
from rich.table import Column, Table
from rich.text import Text
from scipy import stats

from cifar_resnet.cli.schema import Compare
from cifar_resnet.errors import InputError
from cifar_resnet.inference.output import output_file
from cifar_resnet.lr.figure import BLUE, ORANGE
from cifar_resnet.results.runs import LeftOut, Run, find_runs, group_runs


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seeds alone.

    Attributes:
        name: what sets it apart from the others.
        runs: how many.
        resumed: how many of these went on after an interruption.
        accuracies: of each, 0 to 1.
        seeds: of each.
        mean, deviation: of the accuracies; the deviation is None of a single one.
        low, high: the 95 % interval of the mean accuracy, by Student's t (Student 1908, Biometrika 6); None likewise.
        seconds, lr_max: means, of training and of the peak's rate.
    """

    name: str
    runs: int
    resumed: int
    accuracies: list[float]
    seeds: list[int]
    mean: float
    deviation: float | None
    low: float | None
    high: float | None
    seconds: float
    lr_max: float


@dataclass(frozen=True)
class Difference:
    """The mean accuracy of the second of two groups less that of the first, with its 95 % interval.

    ``paired`` means that each run is held against the one with its seed (Student's t of the differences); else the two
    groups need not spread alike (Welch 1947, Biometrika 34).
    """

    mean: float
    low: float
    high: float
    paired: bool


def compare(config: Compare) -> list[Group]:
    """Group the runs below some folders, and write what sets the groups apart and what came out.

    Raises:
        InputError: a folder does not exist, no run in them is at its end, or the picture cannot be written.
    """
    plot = output_file(config.plot, ".png", "plot") if config.plot else None
    runs, left_out = find_runs(config.logs)
    if not runs:
        raise InputError(f"logs={','.join(config.logs)}: no run there is at its end{_list(left_out)}")
    groups = [summarize(name, members) for name, members in group_runs(runs).items()]
    difference = subtract(*groups) if len(groups) == 2 else None
    WRITERS[config.format](groups, difference, left_out)
    if plot:
        draw_groups(groups).savefig(plot)
    return groups


def compare_folders(folders: Sequence[Path | None]) -> None:
    """Print the same of single runs, where they left anything."""
    logs = [str(folder) for folder in folders if folder is not None]
    if logs:
        compare(Compare(logs=logs, format="table", plot=None))


def summarize(name: str, runs: Sequence[Run]) -> Group:
    """Return the figures of a group of runs, at least one."""
    accuracies = [run.accuracy for run in runs]
    deviation, low, high = None, None, None
    if len(runs) > 1:
        deviation = stdev(accuracies)
        low, high = _interval(accuracies)
    return Group(
        name,
        runs=len(runs),
        resumed=sum(run.resumed > 0 for run in runs),
        accuracies=accuracies,
        seeds=[run.seed for run in runs],
        mean=fmean(accuracies),
        deviation=deviation,
        low=low,
        high=high,
        seconds=fmean(run.seconds for run in runs),
        lr_max=fmean(run.lr_max for run in runs),
    )


def subtract(first: Group, second: Group) -> Difference | None:
    """Return the difference of two groups, paired where their seeds are the same; None where a group has one run."""
    if min(first.runs, second.runs) < 2:
        return None
    mean = second.mean - first.mean
    if sorted(first.seeds) == sorted(second.seeds) == sorted(set(second.seeds)):
        one, other = (dict(zip(group.seeds, group.accuracies, strict=True)) for group in (first, second))
        return Difference(mean, *_interval([other[seed] - one[seed] for seed in one]), paired=True)
    if not (first.deviation or second.deviation):  # SciPy has no interval where nothing varies
        return Difference(mean, mean, mean, paired=False)
    welch = stats.ttest_ind(second.accuracies, first.accuracies, equal_var=False).confidence_interval(0.95)
    return Difference(mean, float(welch.low), float(welch.high), paired=False)


def _interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of the mean, by Student's t."""
    if not stdev(values):  # as above
        return values[0], values[0]
    interval = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    return float(interval.low), float(interval.high)


def draw_groups(groups: Sequence[Group]) -> Figure:
    """Draw every run as a dot, and the mean of each group with its interval."""
    names = [textwrap.fill(group.name, 36) for group in groups]
    lines = sum(max(2, 1 + name.count("\n")) for name in names)
    figure = Figure(figsize=(8, 1.3 + 0.22 * lines), dpi=120, layout="constrained")
    axes = figure.add_subplot(xlabel="accuracy on the test images", ylim=(len(groups) - 0.4, -0.6))
    for place, group in enumerate(groups):
        axes.plot(group.accuracies, [place] * group.runs, "o", color="#999999", ms=6, alpha=0.7)
        if group.low is not None and group.high is not None:
            axes.plot([group.low, group.high], [place + 0.2] * 2, color=BLUE, linewidth=2)
        axes.plot(group.mean, place + 0.2, "D", color=ORANGE, ms=6)
    axes.plot([], [], "o", color="#999999", label="a run")
    axes.plot([], [], "D", color=ORANGE, label="mean")
    axes.plot([], [], color=BLUE, linewidth=2, label="95 % interval of the mean")
    axes.set_yticks(range(len(groups)), names, parse_math=False)
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.1f}%")
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


HEADINGS = ("runs that differ in", "n", "accuracy", "95 % interval", "seconds", "LRMAX")


def _rows(groups: Sequence[Group]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for group in groups:
        accuracy = f"{group.mean:.2%}" + ("" if group.deviation is None else f" ± {100 * group.deviation:.2f}")
        interval = "–" if group.low is None or group.high is None else f"{group.low:.2%} to {group.high:.2%}"
        count = f"{group.runs}" + (f" ({group.resumed} resumed)" if group.resumed else "")
        rows.append((group.name, count, accuracy, interval, f"{group.seconds:.0f}", f"{group.lr_max:.3g}"))
    return rows


def _say(difference: Difference | None, groups: Sequence[Group]) -> str:
    if difference is None:
        return ""
    how = "runs of one seed in pairs" if difference.paired else "Welch"
    points = [f"{100 * value:+.2f}" for value in (difference.mean, difference.low, difference.high)]
    return (
        f"{groups[1].name} less {groups[0].name}: {points[0]} points (95 % interval {points[1]} to {points[2]}; {how})"
    )


def _list(left_out: Sequence[LeftOut]) -> str:
    return "".join(f"\n  {each.folder}: {each.reason}" for each in left_out)


def _write_table(groups: Sequence[Group], difference: Difference | None, left_out: Sequence[LeftOut]) -> None:
    """Write a table for people."""
    columns = [
        Column(HEADINGS[0], min_width=28),
        *(Column(name, justify="right", no_wrap=True) for name in HEADINGS[1:]),
    ]
    table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in _rows(groups):
        table.add_row(*map(Text, row))
    console = get_console()
    console.print(table)
    lines = [_say(difference, groups), f"not counted:{_list(left_out)}" if left_out else ""]
    console.print(*filter(None, lines), sep="\n", highlight=False, markup=False, soft_wrap=True)


def _write_markdown(groups: Sequence[Group], difference: Difference | None, left_out: Sequence[LeftOut]) -> None:
    """Write a table in Markdown."""
    for cells in (HEADINGS, ["---"] * len(HEADINGS), *_rows(groups)):
        print("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    lines = [_say(difference, groups), *(f"{each.folder}: {each.reason}, not counted" for each in left_out)]
    for line in filter(None, lines):
        print(f"\n{line}")


def _write_csv(groups: Sequence[Group], difference: Difference | None, left_out: Sequence[LeftOut]) -> None:
    """Write a line for each group; the rest goes to standard error."""
    table = csv.writer(sys.stdout)
    kept = [{key: value for key, value in asdict(group).items() if not isinstance(value, list)} for group in groups]
    table.writerow(kept[0])
    table.writerows([each.values() for each in kept])
    for line in filter(None, [_say(difference, groups), *(f"{each.folder}: {each.reason}" for each in left_out)]):
        print(line, file=sys.stderr)


def _write_json(groups: Sequence[Group], difference: Difference | None, left_out: Sequence[LeftOut]) -> None:
    """Write everything as JSON."""
    record = {
        "groups": [asdict(group) for group in groups],
        "difference": difference and asdict(difference),
        "left_out": [{"folder": str(each.folder), "reason": each.reason} for each in left_out],
    }
    print(json.dumps(record, indent=1))


WRITERS: Mapping[str, Callable[[Sequence[Group], Difference | None, Sequence[LeftOut]], None]] = {
    "table": _write_table,
    "markdown": _write_markdown,
    "csv": _write_csv,
    "json": _write_json,
}
"""How a comparison is written, by the names that `format` takes."""
