"""How well the derived learning-rate bounds train, beside a grid around them; and what LRMIN by itself does.

In each setting and for each seed the search derives its bounds; One Cycle runs of more than 200 steps then use them as
they are, both multiplied by each factor of the grid, and with LRMIN alone moved. The accuracy is that on 5,000 images
held out of the training images, which nothing was trained on; the test images are not read. "cifar3" is the first 3
classes. `lr_search.lr_max_factor` and the constants of `cifar_resnet.lr.bounds` may be tuned on the settings marked so;
the others are only reported.

Every measurement is a line of --record, and one that stands there is not repeated: the benchmark can be stopped, go on,
and be shared by as many processes as are started (each takes a seed of a setting that no other has). It goes seed by
seed over all settings, so that what is recorded is balanced at any time; --show prints the table of it.

What is recorded holds for other rules too. Of a search it is the rates and losses, from which the bounds are derived
anew. A training belongs in the column whose rates, by the present rule, are nearest to its own: were LRMAX twice what
it was, the runs at twice the old bounds would be those at the new ones, and only those beyond be missing.
"""

import argparse
import functools
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import measure
import numpy as np
from lightning.pytorch import Trainer
from record import Line, Record

from cifar_resnet import build
from cifar_resnet.cli.compose import compose
from cifar_resnet.cli.schema import Train
from cifar_resnet.data.folder import Folder
from cifar_resnet.data.sources import ImageSet
from cifar_resnet.errors import InputError
from cifar_resnet.lr import bounds as lr_bounds
from cifar_resnet.lr import search as lr_search

SEEDS = (0, 1, 2, 3, 4)
"""Of the searches; a setting may train with fewer."""
PEAK = 5 / 24
"""Share of the epochs up to the peak, as in the assignment."""
HELD_OUT = 5_000
SAME = 2**0.25
"""Rates that differ by less than this factor, half a step of the grid, count as the same."""
DRAWS = 10_000
"""Of the simulation of noise."""


@dataclass(frozen=True)
class Setting:
    """One row of the table."""

    classes: int
    optimizer: str
    width: int
    batch_size: int
    images: int
    epochs: int
    tuned: bool
    trained: int
    """For how many seeds there are trainings."""

    @property
    def name(self) -> str:
        """What `--settings` and the record call it."""
        return f"cifar{self.classes} {self.optimizer} w{self.width} b{self.batch_size}"

    @property
    def steps(self) -> int:
        """Optimizer steps of a training."""
        return self.images // self.batch_size * self.epochs

    @property
    def most_over_middle(self) -> float:
        """LRMAX by the rule over the middle of the descent, where the end of the floor does not cap it."""
        return FACTORS[self.optimizer] * math.sqrt(self.batch_size)


FACTORS = {name: compose("train", f"optimizer={name}").lr_search.lr_max_factor for name in ("sgd", "adamw")}
SETTINGS = tuple(
    Setting(classes, optimizer, width, batch_size, images, epochs, tuned, trained)
    for classes, width, batch_size, images, epochs, tuned, trained in (
        (10, 8, 16, 5_000, 1, True, 3),
        (10, 8, 64, 15_000, 1, True, 3),
        (3, 16, 64, 10_000, 3, True, 3),
        (5, 32, 128, 10_000, 3, True, 3),
        (10, 24, 192, 13_500, 3, True, 1),
        (10, 16, 256, 20_000, 3, True, 3),
        (5, 8, 512, 20_000, 6, True, 1),
        (10, 8, 1024, 20_000, 11, True, 3),
        (3, 24, 96, 7_000, 3, False, 5),
        (5, 12, 512, 18_000, 6, False, 5),
        (10, 64, 64, 6_500, 2, False, 3),
    )
    for optimizer in ("sgd", "adamw")
)
"""Those that are only reported were settled, and the rule fixed, before any of them was measured."""


@dataclass(frozen=True)
class Move:
    """One column of the table: what the derived bounds are multiplied by."""

    lr_min: float
    lr_max: float

    @property
    def alone(self) -> bool:
        """Whether LRMIN moves by itself."""
        return self.lr_min != self.lr_max

    @property
    def name(self) -> str:
        """The column's."""
        return f"LRMIN × {self.lr_min:.2g}" if self.alone else f"× {self.lr_max:.2g}"

    def apply(self, derived: lr_bounds.Bounds) -> tuple[float, float]:
        """Return LRMIN, at most half of LRMAX, and LRMAX."""
        lr_max = derived.lr_max * self.lr_max
        return min(derived.lr_min * self.lr_min, lr_max / 2), lr_max

    def find(self, derived: lr_bounds.Bounds, trainings: list[Line]) -> Line | None:
        """Return the training that was made with the nearest rates, if they are the same.

        Where both bounds move it is LRMAX that counts, for by another rule their ratio is another.
        """
        lr_min, lr_max = self.apply(derived)

        def distance(line: Line) -> float:
            of_lr_max = abs(math.log(line["lr_max"] / lr_max))
            return max(of_lr_max, abs(math.log(line["lr_min"] / lr_min))) if self.alone else of_lr_max

        alike = [line for line in trainings if line["lr_min_alone"] == self.alone]
        nearest = min(alike, key=distance, default=None)
        return nearest if nearest and distance(nearest) < math.log(SAME) else None


GRID = tuple(Move(factor, factor) for factor in (1 / 2, 1, 2**0.5, 2, 2 * 2**0.5, 4))
DERIVED = GRID[1]
ALONE = (Move(1 / 4, 1), Move(4, 1))


@dataclass(frozen=True)
class Measured:
    """What the record has of one setting and seed; ``derived`` is None where no search was made, or it failed."""

    searched: bool
    derived: lr_bounds.Bounds | None
    trainings: list[Line]

    def accuracy(self, move: Move) -> float | None:
        """Return that of a column in percent; None where it was not measured."""
        found = move.find(self.derived, self.trainings) if self.derived else None
        return 100 * found["accuracy"] if found else None


def facts_of(setting: Setting, seed: int, precision: str) -> Line:
    """Return what a line of the record says of what was measured."""
    sizes = {"images": setting.images, "epochs": setting.epochs, "precision": precision}
    return {"setting": setting.name, "seed": seed} | sizes


def read(record: Record, setting: Setting, facts: Line) -> Measured:
    """Return what the record has of a setting and a seed."""
    own = record.find(facts)
    trainings = [line for line in own if "accuracy" in line]
    searches = [line for line in own if "accuracy" not in line]
    if not searches or "failed" in searches[-1]:
        return Measured(bool(searches), None, trainings)
    derived = lr_bounds.derive(searches[-1]["rates"], searches[-1]["losses"], setting.most_over_middle)
    return Measured(True, derived, trainings)


class Bench:
    """What one setting and seed is measured with."""

    def __init__(self, setting: Setting, seed: int, images: ImageSet, precision: str, folder: str):
        overrides = [
            "data=digits",  # the images are brought along
            f"optimizer={setting.optimizer}",
            f"model.width={setting.width}",
            f"seed={seed}",
            f"trainer.max_epochs={setting.epochs}",
            f"schedule.peak_epoch={setting.epochs * PEAK}",
        ]
        self.config: Train = compose("train", *overrides)
        build.prepare(seed)
        first = images.subset(np.flatnonzero(images.labels < setting.classes))
        first = replace(first, classes=images.classes[: setting.classes])
        sizes = {"batch_size": setting.batch_size, "train_size": setting.images, "val_size": HELD_OUT}
        self.data = measure.image_data(first, first.subset(np.arange(1)), **sizes, seed=seed)  # nothing is tested
        self.classifier = build.build_classifier(self.config, self.data)
        self.quiet: dict[str, Any] = {
            "devices": 1,
            "precision": precision,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "use_distributed_sampler": False,
            "default_root_dir": folder,
        }

    def search(self) -> Line:
        """Sweep as `scripts/train.py` does, and return rates and losses to six digits, or why there are none."""
        options = {"accelerator": "auto", "devices": 1, "precision": self.quiet["precision"]}
        try:
            found = lr_search.search(
                self.classifier, self.data, **self.config.lr_search.model_dump(), trainer_options=options
            )
        except InputError as error:
            return {"failed": str(error)}
        curve = {"rates": six_digits(found.bounds.rates), "losses": six_digits(found.bounds.losses)}
        return {"first_doubt": found.first_doubt} | curve

    def train(self, lr_min: float, lr_max: float) -> Line:
        """Train with these bounds, and return them and the accuracy on the images held out."""
        self.classifier.hparams.update(lr_min=lr_min, lr_max=lr_max)
        trainer = Trainer(**self.quiet, max_epochs=self.config.trainer.max_epochs, limit_val_batches=0)
        trainer.fit(self.classifier, datamodule=self.data)
        (metrics,) = Trainer(**self.quiet).validate(self.classifier, datamodule=self.data, verbose=False)
        return {"lr_min": lr_min, "lr_max": lr_max, "accuracy": metrics["val/accuracy"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="folder of train/CLASS: CIFAR-10 as images; not needed with --show")
    default = Path(__file__).with_suffix(".jsonl")
    parser.add_argument("--record", type=Path, default=default, help="file of JSON lines that is read and added to")
    parser.add_argument("--show", action="store_true", help="print the table of what is recorded, and measure nothing")
    parser.add_argument("--settings", nargs="+", default=[setting.name for setting in SETTINGS], metavar="NAME")
    parser.add_argument("--precision", default="bf16-mixed", help="as trainer.precision, without auto")
    parser.add_argument("--output", type=Path, help="write the table to this JSON file")
    options = parser.parse_args()
    chosen = [setting for setting in SETTINGS if setting.name in options.settings]
    if len(chosen) < len(set(options.settings)):
        parser.error(f"settings are {', '.join(repr(setting.name) for setting in SETTINGS)}")
    if options.root is None and not options.show:
        parser.error("--root is missing: the folder of train/CLASS, or --show to measure nothing")

    record = Record(options.record)
    images = functools.cache(lambda: Folder(options.root).train().read(32))
    for seed in () if options.show else SEEDS:
        for setting in chosen:
            if record.claim(seed * len(SETTINGS) + SETTINGS.index(setting)):
                complete(setting, seed, options.precision, images, record)
    every = {
        setting: [read(record, setting, facts_of(setting, seed, options.precision)) for seed in SEEDS]
        for setting in chosen
    }
    show(every, options)


def complete(setting: Setting, seed: int, precision: str, images: Callable[[], ImageSet], record: Record) -> None:
    """Measure what the record lacks of a setting and seed."""
    facts = facts_of(setting, seed, precision)

    def measure_it(work: Callable[[Bench], Line]) -> Line:
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            figures = work(Bench(setting, seed, images(), precision, folder))
        return facts | figures | {"seconds": round(time.perf_counter() - started, 1)}

    if not read(record, setting, facts).searched:
        record.add(measure_it(Bench.search))
    measured = read(record, setting, facts)
    if measured.derived is None or seed >= setting.trained:
        return
    for move in (*GRID, *ALONE) if setting.tuned else GRID:
        if measured.accuracy(move) is not None:
            continue
        lr_min, lr_max = move.apply(measured.derived)
        place = {"lr_min_alone": move.alone, "lr_max_over_middle": lr_max / measured.derived.middle}
        record.add(place | measure_it(functools.partial(Bench.train, lr_min=lr_min, lr_max=lr_max)))


def six_digits(values: list[float]) -> list[float]:
    return [float(f"{value:.6g}") for value in values]


def show(results: dict[Setting, list[Measured]], options: argparse.Namespace) -> None:
    """Print the table, and how far the derived bounds lie from the best of the grid beside what noise alone gives."""
    rows, beyond = [], {}
    for setting, every in results.items():
        bounds = [measured.derived for measured in every if measured.derived]
        lr_max = [derived.lr_max for derived in bounds]
        clear, searches = sum(derived.doubt is None for derived in bounds), sum(measured.searched for measured in every)
        beyond[setting] = found = best_beyond_derived(every)
        rows.append(
            {
                "setting": f"{setting.name}, {setting.steps} steps{' (tuned on)' if setting.tuned else ''}",
                "LRMAX": f"{measure.median(lr_max):.2g} ({min(lr_max):.2g}–{max(lr_max):.2g})" if lr_max else "–",
                "clear": f"{clear} of {searches}",
            }
            | {
                move.name: measure.mean_and_deviation([each.accuracy(move) for each in every], 1)
                for move in (*GRID, *ALONE)
            }
            | {"best − derived": f"{found[0]:.2f}" if found else "–"}
            | {"by noise alone": f"{found[1].mean():.2f}" if found else "–"}
        )
    title = f"Accuracy in % on {HELD_OUT:,} held-out images, {options.precision}, mean ± standard deviation (n)"
    figures = {setting.name: [measured.trainings for measured in every] for setting, every in results.items()}
    measure.report("lr_rule", title, rows, figures, options)
    for tuned, which in ((True, "tuned on"), (False, "reported")):
        those = [found for setting, found in beyond.items() if found and setting.tuned is tuned]
        if those:
            own, noise = np.array([gap for gap, _ in those]), np.array([draws for _, draws in those])
            print(
                f"{which}: best − derived is {own.mean():.2f} on average and {own.max():.2f} at most, {len(those)} "
                f"settings; noise alone would give {noise.mean():.2f} and {noise.max(axis=0).mean():.2f}"
            )


def best_beyond_derived(every: list[Measured]) -> tuple[float, np.ndarray] | None:
    """Return by how many points the best mean of the grid beats the derived bounds, and what noise alone would make it.

    Only factors that two seeds have count, and only seeds that have all of those; None where that leaves too little.
    The noise is drawn as if all factors were equally good: each mean has the standard error that was observed, of
    accuracies without what a seed has in common. Factors that are clearly worse seldom win, so the mean of the draws is
    an upper bound of what luck adds.

    Returns:
        The difference, and `DRAWS` of those by noise.
    """
    moves = [move for move in GRID if sum(measured.accuracy(move) is not None for measured in every) > 1]
    table = [[measured.accuracy(move) for move in moves] for measured in every]
    whole = np.array([row for row in table if None not in row], float)
    if DERIVED not in moves or len(moves) < 2 or len(whole) < 2:
        return None
    derived = moves.index(DERIVED)
    own = whole - whole.mean(axis=1, keepdims=True)
    shrunk = math.sqrt(1 - 1 / len(moves))  # the mean of a seed takes a part of each deviation away too
    errors = own.std(axis=0, ddof=1) / shrunk / math.sqrt(len(whole))
    means = np.random.default_rng(0).normal(0, errors, (DRAWS, len(moves)))
    return float(whole.mean(axis=0).max() - whole[:, derived].mean()), means.max(axis=1) - means[:, derived]


if __name__ == "__main__":
    main()
