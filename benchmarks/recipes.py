"""What each trick of a recipe is worth, and what the recipes come to: trainings on CIFAR-10 that differ in one thing.

--table ladder goes from the assignment to `experiment=record`, one change at a time, each row with all changes of the
rows above it; --table fifteen has `experiment=fifteen_minutes`, a third as long, with another momentum, in other
widths, and with the record's SGD. Both are judged by 5,000 of the training images, held out; the test images are
not looked at. --table final has whole recipes, trained on all training images and judged by the test images, once.
Beside the accuracy stands the one with the probabilities of image and mirror image averaged.

Every training is a line of --record, and one that stands there is not repeated: the benchmark can be stopped, go on,
and be shared by as many processes as are started. It goes seed by seed through the rows; --show prints the table of
what is recorded.
"""

import argparse
import json
import tempfile
import zlib
from pathlib import Path

import measure
import torch
from record import Line, Record
from torch import Tensor

from cifar_resnet import build, experiment
from cifar_resnet.callbacks.history import History
from cifar_resnet.cli.compose import compose
from cifar_resnet.cli.schema import Train
from cifar_resnet.data.batches import LARGEST_BATCH
from cifar_resnet.data.sources import ImageSet
from cifar_resnet.training.classifier import ImageClassifier

HELD_OUT = 5000
LADDER = {
    "assignment": ["schedule.peak_epoch=PEAK"],
    "page": ["schedule.lr_min=8.25e-4", "schedule.lr_max=0.4", "schedule.lr_end=0"],
    "no cutout": ["data.cutout=0"],
    "whitened patches": ["model=resnet9", "model.whiten=true"],
    "biases at lr × 64": ["schedule.bias_factor=64"],
    "CELU 0.3": ["model.celu=0.3"],
    "scales 1, temperature 16": ["model.norm_scale=false", "classifier.temperature=16"],
    "up to 1.0": ["schedule.lr_min=2.06e-3", "schedule.lr_max=1.0"],
    "label smoothing 0.2": ["classifier.label_smoothing=0.2"],
    "mean of the weights": ["averaging.decay=0.99", "schedule.lr_end=0.1", "schedule.flat_epochs=END"],
    "alternating flip": ["data.flip=alternating"],
    "ghost batch norm of 32": ["model.ghost=32"],
}
"""Rows in their order, and what each adds; the last is `experiment=record` of another width and length."""
SHARES = {"PEAK": 5 / 24, "END": 2 / 40}
"""Parts of the schedule, as shares of its epochs."""
THIRD = ["trainer.max_epochs=8", "schedule.peak_epoch=1.665"]
FIFTEEN = {
    "width 24": THIRD,
    "momentum 0.95": [*THIRD, "optimizer.momentum=0.95"],
    "width 16": ["model.width=16", "trainer.max_epochs=15", "schedule.peak_epoch=3.125", "optimizer.momentum=0.95"],
    "width 32": ["model.width=32", "trainer.max_epochs=5", "schedule.peak_epoch=1.04", "optimizer.momentum=0.95"],
    "SGD": [
        *THIRD,
        "optimizer=sgd",
        "optimizer.momentum=0.9",
        "schedule.lr_min=2.06e-3",
        "schedule.lr_max=1.0",
        "schedule.bias_factor=64",
    ],
}
"""A third of `experiment=fifteen_minutes`; with another momentum, then in two other widths beside that, with as many
epochs as take a core the same time, and with the record's SGD."""
FINAL = {
    "assignment": ["experiment=assignment"],
    "assignment, falling to 0": ["experiment=assignment", "schedule.lr_end=0"],
    "assignment, 0.04 to 0.4": ["experiment=assignment", "schedule.lr_min=0.04", "schedule.lr_max=0.4"],
    "page": ["experiment=page"],
    "record in 24 epochs": [
        "experiment=record",
        "trainer.max_epochs=24",
        "schedule.peak_epoch=5",
        "schedule.flat_epochs=1.2",
    ],
    "record": ["experiment=record"],
}
"""Whole recipes, and those between the assignment and `experiment=page`; the last but one has the epochs of those above
it, and a schedule of the last one's shape."""
TABLES = {"ladder": LADDER, "fifteen": FIFTEEN, "final": FINAL}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="folder of train/CLASS and test/CLASS: CIFAR-10; not needed with --show")
    default = Path(__file__).with_suffix(".jsonl")
    parser.add_argument("--record", type=Path, default=default, help="file of JSON lines that is read and added to")
    parser.add_argument("--show", action="store_true", help="print the table of what is recorded, and measure nothing")
    parser.add_argument("--table", choices=list(TABLES), default="ladder")
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="of the table; all, if none is named")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--width", type=int, default=16, help="of ladder and final")
    parser.add_argument("--epochs", type=int, default=8, help="of the ladder")
    parser.add_argument("--output", type=Path, help="write the table to this JSON file")
    options = parser.parse_args()
    table = TABLES[options.table]
    rows = options.rows or list(table)
    if unknown := set(rows) - table.keys():
        parser.error(f"rows are {', '.join(map(repr, table))}, not {unknown.pop()!r}")
    if options.root is None and not options.show:
        parser.error("--root is missing: the folder of train/CLASS and test/CLASS, or --show to measure nothing")

    record = Record(options.record)
    configs = {row: compose_row(row, options) for row in rows}
    for seed in () if options.show else options.seeds:
        for row, config in configs.items():
            facts = facts_of(config, seed)
            place = zlib.crc32(json.dumps(facts, sort_keys=True).encode())
            if record.claim(place) and not record.find(facts):
                record.add({"row": row, **train(config, seed, options.root), **facts})
    show(
        {row: [record.find(facts_of(config, seed)) for seed in options.seeds] for row, config in configs.items()},
        options,
    )


def compose_row(row: str, options: argparse.Namespace) -> Train:
    """Return the configuration of a row, but for seed and images."""
    if options.table == "ladder":
        return compose("train", *overrides(row, options.width, options.epochs), f"data.val_size={HELD_OUT}")
    if options.table == "fifteen":
        return compose("train", "experiment=fifteen_minutes", *FIFTEEN[row], f"data.val_size={HELD_OUT}")
    return compose("train", *FINAL[row], f"model.width={options.width}")


def overrides(row: str, width: int, epochs: int) -> list[str]:
    """Return what is typed for a row of the ladder: its own change behind those above it."""
    typed = [f"trainer.max_epochs={epochs}"]
    for name, added in LADDER.items():
        typed += added
        if name == row:
            break
    for part, share in SHARES.items():
        typed = [each.replace(f"={part}", f"={share * epochs:.3g}") for each in typed]
    keys = {each.partition("=")[0]: each for each in typed}  # the last of a key counts, behind its group
    return sorted([*keys.values(), f"model.width={width}"], key=lambda each: "." in each.partition("=")[0])


def facts_of(config: Train, seed: int) -> Line:
    """Return everything that a result depends on, but for where the images are."""
    own = {"model", "optimizer", "schedule", "averaging", "classifier"}
    data = {"image_size", "batch_size", "padding", "flip", "cutout", "train_size", "val_size"}
    recipe: Line = config.model_dump(by_alias=True, exclude_unset=True, include=own)
    recipe["data"] = config.data.model_dump(include=data) | {"batch_size": config.data.batch_size or LARGEST_BATCH}
    recipe["epochs"] = config.trainer.max_epochs
    return {"seed": seed, "recipe": recipe}


def train(config: Train, seed: int, root: str) -> Line:
    """Train as `scripts/train.py` does, and return the figures of the images that judge."""
    with tempfile.TemporaryDirectory() as folder:
        source = compose("train", "data=folder", f"data.root={root}").data.source
        quiet = {
            "check_val_every_n_epoch": config.trainer.max_epochs,
            "enable_progress_bar": False,
            "default_root_dir": folder,
        }
        config = config.model_copy(
            update={
                "seed": seed,
                "data": config.data.model_copy(update={"source": source, "root": root}),
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
        judging = data.val or data.test
        assert judging is not None
        return {
            **evaluate(classifier, judging),
            "train_accuracy": history.epochs[-1].train_accuracy,
            "lr_max": classifier.hparams["lr_max"],
            "seconds": history.seconds,
            "images_per_second": history.images / history.seconds,
            "precision": precision,
            "threads": torch.get_num_threads(),
        }


@torch.inference_mode()
def evaluate(classifier: ImageClassifier, judging: ImageSet) -> dict[str, float]:
    """Return the accuracy, 0 to 1, and that with the mirror images."""
    classifier.eval()
    images, labels = torch.from_numpy(judging.images), torch.from_numpy(judging.labels)

    def probabilities(pixels: Tensor) -> Tensor:
        return torch.cat([classifier(part).softmax(dim=1) for part in pixels.split(500)])

    plain = probabilities(images)
    both = plain + probabilities(images.flip(2))
    names = {"accuracy": plain, "flip_accuracy": both}
    return {name: (each.argmax(dim=1) == labels).double().mean().item() for name, each in names.items()}


def show(results: dict[str, list[list[Line]]], options: argparse.Namespace) -> None:
    """Print accuracies, their differences in each seed, and the time, of the seeds that are recorded."""
    is_ladder = options.table == "ladder"
    rows, compared = [], None
    figures = {
        row: {seed: lines[0] for seed, lines in zip(options.seeds, every, strict=True) if lines}
        for row, every in results.items()
    }
    for row, lines in figures.items():
        accuracy = {seed: 100 * line["accuracy"] for seed, line in lines.items()}
        gained = [value - compared[seed] for seed, value in accuracy.items() if compared and seed in compared]
        rows.append(
            {
                "recipe": row,
                "accuracy": measure.mean_and_deviation([*accuracy.values()]),
                "with mirror images": measure.mean_and_deviation(
                    [100 * line["flip_accuracy"] for line in lines.values()]
                ),
                "− row above" if is_ladder else "− first row": measure.mean_and_deviation(gained),
                "in training": measure.mean_and_deviation([100 * line["train_accuracy"] for line in lines.values()]),
                "epochs": next((line["recipe"]["epochs"] for line in lines.values()), "–"),
                "seconds": measure.spread([line["seconds"] for line in lines.values()]) if lines else "–",
            }
        )
        compared = accuracy if is_ladder or compared is None else compared
    judged = "10,000 test images" if options.table == "final" else f"{HELD_OUT:,} images held out"
    measure.report("recipes", f"Accuracy in % on {judged}, mean ± standard deviation (n)", rows, figures, options)


if __name__ == "__main__":
    main()
