"""What each trick of a recipe is worth: short trainings that differ in one thing, on images held out of the training.

From the assignment to `experiment=record`, one change at a time, each row with all changes of the rows above it; and
for `experiment=fifteen_minutes`, what two cores reach in a time. 5,000 of the training images are held out, and judge;
the test images are not looked at. Beside the accuracy stands the one with the probabilities of image and mirror image
averaged.

Every training is a line of --record, and one that stands there is not repeated: the benchmark can be stopped, and go
on. When nothing is missing it prints the table.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import measure
import torch
from torch import Tensor

from cifar_resnet import build, experiment
from cifar_resnet.callbacks.history import History
from cifar_resnet.cli.compose import compose
from cifar_resnet.cli.schema import Train
from cifar_resnet.data.batches import LARGEST_BATCH
from cifar_resnet.data.datamodule import ImageDataModule
from cifar_resnet.training.classifier import ImageClassifier

HELD_OUT = 5000
LADDER = {
    "assignment": ["schedule.peak_epoch=PAGE"],
    "page": ["schedule.lr_min=8.25e-4", "schedule.lr_max=0.4", "schedule.lr_end=0"],
    "peak at a fifth": ["schedule.peak_epoch=FIFTH"],
    "label smoothing 0.2": ["classifier.label_smoothing=0.2"],
    "CELU 0.075": ["model=resnet9", "model.celu=0.075"],
    "ghost batch norm of 32": ["model.ghost=32"],
    "scales 1, CELU 0.3, temperature 16": ["model.norm_scale=false", "model.celu=0.3", "classifier.temperature=16"],
    "biases at lr × 64": ["schedule.bias_factor=64"],
    "whitened patches": ["model.whiten=true"],
    "mean of the weights": ["averaging.decay=0.99", "schedule.lr_end=0.04", "schedule.flat_epochs=END"],
    "alternating flip": ["data.flip=alternating"],
    "cutout 12": ["data.cutout=12"],
}
"""Rows in their order, and what each adds; the last is `experiment=record` of another width and length."""
SHARES = {"PAGE": 5 / 24, "FIFTH": 1 / 5, "END": 2 / 40}
"""Parts of the schedule, as shares of its epochs."""
FIFTEEN = {
    "as it is": [],
    "width 16": ["model.width=16", "trainer.max_epochs=44", "schedule.peak_epoch=9"],
    "width 32": ["model.width=32", "trainer.max_epochs=16", "schedule.peak_epoch=3.3"],
    "ReLU": ["model.celu=null"],
    "label smoothing 0.2": ["classifier.label_smoothing=0.2"],
    "cutout 8": ["data.cutout=8"],
    "ghost batch norm of 32": ["model.ghost=32"],
    "both": ["data.cutout=8", "model.ghost=32"],
    "random flip": ["data.flip=true"],
    "mean of the weights": ["averaging.decay=0.99", "schedule.lr_end=0.04", "schedule.flat_epochs=1.2"],
    "rate 0.8": ["schedule.lr_max=0.8"],
    "rate 0.2": ["schedule.lr_max=0.2"],
    "batch size 256": ["data.batch_size=256", "schedule.lr_max=0.2"],
}
"""What is changed in `experiment=fifteen_minutes`, each by itself; of the other widths, as many epochs as fit."""
LENGTH = {"schedule": ("peak_epoch", "flat_epochs"), "trainer": ("max_epochs",)}
"""Keys that count epochs."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder of train/CLASS and test/CLASS: CIFAR-10 as images")
    parser.add_argument("--record", type=Path, required=True, help="file of JSON lines that is read and added to")
    parser.add_argument("--table", choices=["ladder", "fifteen"], default="ladder")
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="of the table; all, if none is named")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--width", type=int, default=16, help="of the ladder")
    parser.add_argument("--epochs", type=int, default=8, help="of the ladder")
    parser.add_argument("--share", type=float, default=0.25, help="of the epochs of fifteen_minutes that are trained")
    parser.add_argument("--output", type=Path, help="write the table to this JSON file")
    options = parser.parse_args()
    table = LADDER if options.table == "ladder" else FIFTEEN
    rows = options.rows or list(table)
    if unknown := set(rows) - table.keys():
        parser.error(f"rows are {', '.join(map(repr, table))}, not {unknown.pop()!r}")
    configs = {}
    for row in rows:
        if table is LADDER:
            configs[row] = compose("train", *overrides(row, options.width, options.epochs))
        else:
            configs[row] = shortened(compose("train", "experiment=fifteen_minutes", *FIFTEEN[row]), options.share)

    for seed in options.seeds:
        for row, config in configs.items():
            if find(options.record, config, seed) is None:
                line = {"row": row, "seed": seed, **train(config, seed, options.root), "recipe": recipe_of(config)}
                with options.record.open("a") as file:
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
    show(configs, options)


def overrides(row: str, width: int, epochs: int) -> list[str]:
    """Return what is typed for a row of the ladder: its own change behind those above it."""
    typed = [f"trainer.max_epochs={epochs}"]
    for name, added in LADDER.items():
        typed += added
        if name == row:
            break
    for part, share in SHARES.items():
        typed = [each.replace(f"={part}", f"={share * epochs:g}") for each in typed]
    keys = {each.partition("=")[0]: each for each in typed}  # the last of a key counts, behind its group
    return sorted([*keys.values(), f"model.width={width}"], key=lambda each: "." in each.partition("=")[0])


def shortened(config: Train, share: float) -> Train:
    """Return the same recipe with a schedule of this share of its epochs, which are whole."""
    share = max(1, round(share * config.trainer.max_epochs)) / config.trainer.max_epochs
    sections = {}
    for section, keys in LENGTH.items():
        values = getattr(config, section)
        lengths = {key: share * getattr(values, key) for key in keys}
        sections[section] = values.model_copy(update=lengths)
    sections["trainer"] = sections["trainer"].model_copy(update={"max_epochs": round(lengths["max_epochs"])})
    return config.model_copy(update=sections)


def recipe_of(config: Train) -> dict[str, Any]:
    """Return everything in a configuration that a result depends on, but for the seed and where the images are."""
    own = {"model", "optimizer", "schedule", "averaging", "classifier"}
    data = {"image_size", "batch_size", "padding", "flip", "cutout", "train_size"}
    found: dict[str, Any] = config.model_dump(by_alias=True, exclude_unset=True, include=own)
    found["data"] = config.data.model_dump(include=data) | {"batch_size": config.data.batch_size or LARGEST_BATCH}
    found["epochs"] = config.trainer.max_epochs
    return found


def find(record: Path, config: Train, seed: int) -> dict[str, Any] | None:
    """Return what is recorded of a training."""
    lines = map(json.loads, record.read_text().splitlines()) if record.exists() else iter(())
    recipe = recipe_of(config)
    return next((line for line in lines if line["recipe"] == recipe and line["seed"] == seed), None)


def train(config: Train, seed: int, root: str) -> dict[str, Any]:
    """Train as `scripts/train.py` does, and return the figures of the images held out."""
    with tempfile.TemporaryDirectory() as folder:
        of_images = compose("train", "data=folder", f"data.root={root}", f"data.val_size={HELD_OUT}").data
        data_keys = {"source": of_images.source, "root": root, "val_size": HELD_OUT}
        quiet = {
            "check_val_every_n_epoch": config.trainer.max_epochs,
            "enable_progress_bar": False,
            "default_root_dir": folder,
        }
        config = config.model_copy(
            update={
                "seed": seed,
                "data": config.data.model_copy(update=data_keys),
                "trainer": config.trainer.model_copy(update=quiet),
            }
        )
        build.prepare(seed)
        precision = build.choose_precision(config, {}).precision
        history = History()
        trainer = build.build_trainer(config, [history], precision)
        data = build.build_data(config, 1)
        data.setup("fit")
        classifier = build.build_classifier(config, data)
        experiment.find_bounds(config, classifier, data, trainer)
        trainer.fit(classifier, datamodule=data)
        return {
            **evaluate(classifier, data),
            "train_accuracy": history.epochs[-1].train_accuracy,
            "lr_max": classifier.hparams["lr_max"],
            "seconds": history.seconds,
            "images_per_second": history.images / history.seconds,
            "precision": precision,
            "threads": torch.get_num_threads(),
        }


@torch.inference_mode()
def evaluate(classifier: ImageClassifier, data: ImageDataModule) -> dict[str, float]:
    """Return the accuracy on the images held out, 0 to 1, and that with their mirror images."""
    classifier.eval()
    assert data.val is not None
    images, labels = torch.from_numpy(data.val.images), torch.from_numpy(data.val.labels)

    def probabilities(pixels: Tensor) -> Tensor:
        return torch.cat([classifier(part).softmax(dim=1) for part in pixels.split(500)])

    plain = probabilities(images)
    both = plain + probabilities(images.flip(2))
    names = {"accuracy": plain, "flip_accuracy": both}
    return {name: (each.argmax(dim=1) == labels).double().mean().item() for name, each in names.items()}


def show(configs: Mapping[str, Train], options: argparse.Namespace) -> None:
    """Print accuracies, their differences in each seed, and the time."""
    is_ladder = options.table == "ladder"
    rows, compared, figures = [], None, {}
    for name, config in configs.items():
        lines = [find(options.record, config, seed) or {} for seed in options.seeds]
        figures[name] = lines
        accuracy = [100 * line["accuracy"] for line in lines]
        gained = [one - other for one, other in zip(accuracy, compared or accuracy, strict=True)]
        rows.append(
            {
                "recipe": name,
                "accuracy": mean_and_deviation(accuracy),
                "with mirror images": mean_and_deviation([100 * line["flip_accuracy"] for line in lines]),
                "− row above" if is_ladder else "− first row": mean_and_deviation(gained) if compared else "",
                "epochs": config.trainer.max_epochs,
                "seconds": measure.spread([line["seconds"] for line in lines]),
                "images a second": measure.spread([line["images_per_second"] for line in lines]),
            }
        )
        compared = accuracy if is_ladder or compared is None else compared
    title = f"Accuracy in % on {HELD_OUT:,} images held out, mean ± standard deviation, n = {len(options.seeds)}"
    measure.report("recipes", title, rows, figures, options)


def mean_and_deviation(values: Sequence[float]) -> str:
    """Return both as one text, the mean alone of a single value."""
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"


if __name__ == "__main__":
    main()
