"""How well the derived learning-rate bounds train, beside a grid around them and beside Lightning's suggestion.

In each setting and for each seed the search derives its bounds; short One Cycle runs then use them as they are and
multiplied by each factor of the grid, and with the `suggestion()` of `Tuner.lr_find` as Lightning has it by default.
The accuracy is that on 2,000 images held out of the training images (digits: 287), which nothing was trained on; the
test images are not looked at. The constants of `cifar_resnet.lr.search` were tuned on the settings marked so.

Every measurement is a line of --record, and one that stands there is not repeated: the benchmark can be stopped, go on,
and be shared by several processes (--settings). When nothing is missing it prints the table.
"""

import argparse
import functools
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure
from lightning.pytorch import Trainer
from lightning.pytorch.tuner import Tuner

from cifar_resnet import build
from cifar_resnet.cli.compose import compose
from cifar_resnet.cli.schema import Train
from cifar_resnet.data.folder import Folder
from cifar_resnet.data.sources import Digits, ImageSet, Source
from cifar_resnet.lr import bounds as lr_bounds
from cifar_resnet.lr import search as lr_search

FACTORS = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0, 8.0)
SEEDS = (0, 1, 2)
SPREAD_SEEDS = (0, 1, 2, 3, 4)
"""The search alone is repeated for these."""
PEAK = 5 / 24
"""Share of the epochs up to the peak, as in the assignment."""
SEARCH, STOCK_SEARCH, STOCK = "search", "stock search", "suggestion()"
"""Kinds of measurements beside the factors of the grid."""


@dataclass(frozen=True)
class Setting:
    """One row of the table."""

    data: str
    optimizer: str
    width: int
    batch_size: int
    epochs: int
    tuned: bool = False

    @property
    def name(self) -> str:
        """What `--settings` and the record call it."""
        return f"{self.data} {self.optimizer} w{self.width} b{self.batch_size}"


SETTINGS = (
    Setting("cifar", "sgd", 16, 128, epochs=3, tuned=True),
    Setting("cifar", "adamw", 16, 128, epochs=3, tuned=True),
    Setting("cifar", "sgd", 16, 512, epochs=4, tuned=True),
    Setting("cifar", "adamw", 16, 512, epochs=4, tuned=True),
    Setting("cifar", "sgd", 32, 128, epochs=2),
    Setting("cifar", "adamw", 32, 128, epochs=2),
    Setting("digits", "sgd", 16, 64, epochs=6),
    Setting("digits", "adamw", 16, 64, epochs=6),
)


class Bench:
    """What one setting and seed is measured with."""

    def __init__(self, setting: Setting, seed: int, images: tuple[ImageSet, ImageSet], folder: str):
        overrides = [
            "data=digits",  # the images are brought along
            f"optimizer={setting.optimizer}",
            f"model.width={setting.width}",
            f"seed={seed}",
            f"trainer.max_epochs={setting.epochs}",
            f"schedule.peak_epoch={setting.epochs * PEAK}",
            "trainer.enable_progress_bar=false",
            f"trainer.default_root_dir={folder}",
        ]
        self.config: Train = compose("train", *overrides)
        build.prepare(seed)
        real = setting.data == "cifar"
        self.data = measure.image_data(
            *images,
            batch_size=setting.batch_size,
            flip=real,
            train_size=10_000 if real else None,
            val_size=2_000 if real else 287,
            seed=seed,
        )
        self.classifier = build.build_classifier(self.config, self.data)
        self.seed = seed
        self.folder = folder

    def measure(self, kind: Any, known: Mapping[tuple[int, Any], dict[str, Any]]) -> dict[str, Any]:
        """Make one measurement, for which the searches are known."""
        if kind == SEARCH:
            return self.search()
        if kind == STOCK_SEARCH:
            return self.suggest()
        found = known[self.seed, SEARCH]
        lr_max = known[self.seed, STOCK_SEARCH]["lr_max"] if kind == STOCK else found["lr_max"] * kind
        return self.train(lr_max * found["lr_min"] / found["lr_max"], lr_max)

    def search(self) -> dict[str, Any]:
        """Derive the bounds as `scripts/train.py` does."""
        found = lr_search.search(
            self.classifier,
            self.data,
            **self.config.lr_search.model_dump(),
            trainer_options={"accelerator": "auto", "devices": 1},
        )
        return {name: getattr(found.bounds, name) for name in ("lr_min", "lr_max", "verdict", "rates", "losses")}

    def suggest(self) -> dict[str, Any]:
        """Ask Lightning, with its own defaults."""
        trainer = Trainer(**self.quiet, max_epochs=-1)
        probe = lr_search.Probe(self.classifier)
        finder = Tuner(trainer).lr_find(probe, datamodule=self.data, update_attr=False)
        assert finder is not None  # it is under `fast_dev_run`
        return {"lr_max": finder.suggestion()}

    def train(self, lr_min: float, lr_max: float) -> dict[str, Any]:
        """Train with these bounds, and return the accuracy on the images held out."""
        self.classifier.hparams.update(lr_min=lr_min, lr_max=lr_max)
        trainer = Trainer(**self.quiet, max_epochs=self.config.trainer.max_epochs, limit_val_batches=0)
        trainer.fit(self.classifier, datamodule=self.data)
        (metrics,) = Trainer(**self.quiet).validate(self.classifier, datamodule=self.data, verbose=False)
        return {"lr_min": lr_min, "lr_max": lr_max, "accuracy": metrics["val/accuracy"]}

    @property
    def quiet(self) -> dict[str, Any]:
        """Trainer options of a run that leaves nothing behind."""
        return {
            "devices": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "use_distributed_sampler": False,
            "default_root_dir": self.folder,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder of train/CLASS and test/CLASS: CIFAR-10 as images")
    parser.add_argument("--record", type=Path, required=True, help="file of JSON lines that is read and added to")
    parser.add_argument("--settings", nargs="+", default=[setting.name for setting in SETTINGS], metavar="NAME")
    parser.add_argument("--output", type=Path, help="write the table to this JSON file")
    options = parser.parse_args()
    chosen = [setting for setting in SETTINGS if setting.name in options.settings]
    if len(chosen) < len(options.settings):
        parser.error(f"settings are {', '.join(repr(setting.name) for setting in SETTINGS)}")

    read: dict[str, Callable[[], tuple[ImageSet, ImageSet]]] = {
        "cifar": functools.cache(lambda: both(Folder(options.root))),
        "digits": functools.cache(lambda: both(Digits())),
    }
    for setting in chosen:
        complete(setting, read[setting.data], options.record)
    show([(setting, lines(options.record, setting)) for setting in chosen], options)


def both(source: Source) -> tuple[ImageSet, ImageSet]:
    """Read the training and the test images."""
    return source.train().read(32), source.test().read(32)


def lines(record: Path, setting: Setting) -> dict[tuple[int, Any], dict[str, Any]]:
    """Return what is recorded of a setting, by seed and kind: a factor, ``search``, or the stock rule."""
    if not record.exists():
        return {}
    every = [json.loads(line) for line in record.read_text().splitlines()]
    own = {(line["seed"], line["kind"]): line for line in every if line["setting"] == setting.name}
    for (seed, kind), line in own.items():
        if kind == SEARCH and line["lr_max"] != lr_bounds.derive(line["rates"], line["losses"]).lr_max:
            sys.exit(
                f"lr_rule.py: {record}: {setting.name}, seed {seed} was measured with another rule; begin a new one"
            )
    return own


def plan() -> list[tuple[int, Any]]:
    """Return seed and kind of each measurement of a setting: the grid first, the rest if there is time."""
    grid = [(seed, kind) for seed in SEEDS for kind in (SEARCH, *FACTORS)]
    stock = [(seed, kind) for seed in SEEDS for kind in (STOCK_SEARCH, STOCK)]
    return grid + stock + [(seed, SEARCH) for seed in SPREAD_SEEDS if seed not in SEEDS]


def complete(setting: Setting, read: Callable[[], tuple[ImageSet, ImageSet]], record: Path) -> None:
    """Measure what the record lacks of a setting."""
    known = lines(record, setting)
    for seed, kind in plan():
        if (seed, kind) in known:
            continue
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            figures = Bench(setting, seed, read(), folder).measure(kind, known)
        facts = {"setting": setting.name, "seed": seed, "kind": kind, "seconds": time.perf_counter() - started}
        known[seed, kind] = facts | figures
        with record.open("a") as file:
            file.write(json.dumps(known[seed, kind]) + "\n")


def show(results: list[tuple[Setting, Mapping[tuple[int, Any], dict[str, Any]]]], options: argparse.Namespace) -> None:
    """Print the table and how far the derived bounds lie from the best of the grid."""
    rows, gaps = [], []
    for setting, known in results:
        accuracy = {
            kind: [100 * known[seed, kind]["accuracy"] for seed in SEEDS if (seed, kind) in known]
            for kind in (*FACTORS, STOCK)
        }
        searches = [known[seed, SEARCH] for seed in SPREAD_SEEDS]
        lr_max = [search["lr_max"] for search in searches]
        gap = max(statistics.mean(accuracy[factor]) for factor in FACTORS) - statistics.mean(accuracy[1.0])
        gaps.append((setting.tuned, gap))
        rows.append(
            {
                "setting": f"{setting.name}, {setting.epochs} epochs{' (tuned on)' if setting.tuned else ''}",
                "LRMAX": f"{measure.median(lr_max):.2g} ({min(lr_max):.2g}–{max(lr_max):.2g})",
                "clear": f"{sum(search['verdict'] == 'clear' for search in searches)} of {len(searches)}",
            }
            | {f"× {factor:g}": mean_and_deviation(accuracy[factor]) for factor in FACTORS}
            | {STOCK: mean_and_deviation(accuracy[STOCK]), "best − derived": f"{gap:.2f}"}
        )
    title = f"Accuracy in % on held-out images, mean ± standard deviation, n = {len(SEEDS)}"
    figures = {setting.name: [*known.values()] for setting, known in results}
    measure.report("lr_rule", title, rows, figures, options)
    for tuned, which in ((True, "tuned on"), (False, "reported")):
        those = [gap for was_tuned, gap in gaps if was_tuned is tuned]
        if those:
            print(f"{which}: best − derived is {statistics.mean(those):.2f} on average, {max(those):.2f} at most")


def mean_and_deviation(values: list[float]) -> str:
    """Return both in percent, or a dash where nothing was measured."""
    if not values:
        return "–"
    deviation = statistics.stdev(values) if len(values) > 1 else math.nan
    return f"{statistics.mean(values):.1f} ± {deviation:.1f}"


if __name__ == "__main__":
    main()
