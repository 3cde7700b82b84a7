"""What a trained classifier sees in any images, and where it looked."""

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from cifar_resnet.analysis.drawing import LONGEST_CAPTION, LONGEST_SIDE, Card, draw_cards, percent, shorten
from cifar_resnet.analysis.gradcam import explain_images
from cifar_resnet.cli.schema import Predict
from cifar_resnet.data.files import Found, find, first_of, printable
from cifar_resnet.data.images import Picture, read_batches, read_whole
from cifar_resnet.errors import InputError
from cifar_resnet.inference.output import output_file
from cifar_resnet.messages import progress_bar
from cifar_resnet.training.checkpoint import load_classifier
from cifar_resnet.training.classifier import ImageClassifier

BATCH_SIZE = 64  # pictures that are read and classified at a time
CLASSES_SHOWN = 3  # of each picture, the most probable ones


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of a picture and their probabilities (0 to 1), the best first."""

    picture: Picture
    top: tuple[tuple[str, float], ...]


def predict(config: Predict) -> int:
    """Write the predictions to standard output, the sheet to its file, and all else to standard error.

    Returns the number of files and folders that could not be read. `InputError` where something in the configuration
    cannot work; nothing was written then.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")  # what cannot be read is said in one line; the rest was read
    warnings.filterwarnings("ignore", "Glyph .* missing from font")  # in the name of a file
    sheet = output_file(config.output, ".png")
    found = find(config.images)
    if os.path.realpath(sheet) in map(os.path.realpath, found.files):
        raise InputError(f"output={sheet} is one of the images: give it another name, or images a narrower pattern")
    classifier = load_classifier(config.ckpt, config.trust)
    classifier.to(torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu"))
    messages = Console(stderr=True, markup=False, highlight=False, emoji=False, soft_wrap=True)
    for line in _unread(found, config.images):
        messages.print(line)
    shown: list[Prediction] = []
    skipped: list[InputError] = []
    WRITERS[config.format](_predictions(classifier, found.files, messages, skipped, shown, config.sheet))
    predicted = len(found.files) - len(skipped)
    skipped += found.errors
    line = f"images predicted: {predicted:,}, files skipped: {len(skipped):,}"
    if shown:
        draw_predictions(classifier, shown, messages).savefig(sheet)
        line += f", sheet: {sheet}"
    messages.print(line)
    return len(skipped)


def _unread(found: Found, pattern: str) -> Iterator[str]:
    """Say what the pattern matches that is no file to read."""
    if found.folders and "**" not in pattern and not os.path.isdir(pattern):
        yield f"{first_of(found.folders)}: a folder, skipped; the pattern ** goes into folders"
    if found.special:
        yield f"{first_of(found.special)}: a pipe, socket or device, skipped"
    yield from (f"{problem}: skipped" for problem in found.errors)


def _predictions(
    classifier: ImageClassifier,
    files: Sequence[Path],
    messages: Console,
    skipped: list[InputError],
    shown: list[Prediction],
    sheet: int,
) -> Iterator[list[Prediction]]:
    """Yield predictions batch by batch; keep the files ``skipped``, and in ``shown`` the first ``sheet`` pictures."""
    progress = progress_bar(messages)
    progress.disable |= sys.stdout.isatty()  # the lines that come there say how far it is
    with progress:
        task = progress.add_task("", total=len(files))
        for batch in read_batches(files, BATCH_SIZE, classifier.hparams["image_size"]):
            problems = [each for each in batch if isinstance(each, InputError)]
            for problem in problems:
                messages.print(f"{problem}: skipped")
            skipped += problems
            predictions = classify(classifier, [each for each in batch if isinstance(each, Picture)])
            shown += predictions[: sheet - len(shown)]
            yield predictions
            progress.advance(task, len(batch))


@torch.inference_mode()
def classify(classifier: ImageClassifier, pictures: Sequence[Picture]) -> list[Prediction]:
    """Return the three most probable classes of each picture (fewer where there are fewer classes)."""
    if not pictures:
        return []
    images = torch.from_numpy(np.stack([picture.pixels for picture in pictures])).to(classifier.device)
    top = classifier(images).float().softmax(dim=1).topk(min(CLASSES_SHOWN, len(classifier.classes)))
    names = [[classifier.classes[label] for label in labels] for labels in top.indices.tolist()]
    pairs = map(tuple, map(zip, names, top.values.tolist()))
    return [Prediction(picture, best) for picture, best in zip(pictures, pairs, strict=True)]


def write_table(batches: Iterable[list[Prediction]]) -> None:
    """Write a line an image, as they come."""
    width = None if sys.stdout.isatty() else 1000  # a file has no edge at which to wrap
    console = Console(markup=False, highlight=False, emoji=False, width=width)
    widths = {name: cell_len(name) for name in ("most probable", "second", "third")}
    for number, batch in enumerate(filter(None, batches)):
        tops = [[f"{name} {percent(probability)}" for name, probability in each.top] for each in batch]
        table = Table(box=None, pad_edge=False, show_header=number == 0)
        for name, *cells in zip(widths, *tops, strict=False):
            widths[name] = max(widths[name], *map(cell_len, cells))  # the columns stay where they are
            table.add_column(name, min_width=widths[name], no_wrap=True)
        table.add_column("image", overflow="fold")
        table.add_column("note", style="dim", overflow="fold")
        for top, prediction in zip(tops, batch, strict=True):
            table.add_row(*top, printable(prediction.picture.file), prediction.picture.note)
        console.print(table)


def write_json(batches: Iterable[list[Prediction]]) -> None:
    """Write a JSON array, an image a line, as they come."""
    console = Console()  # it ends quietly where what it writes to is closed, as `head` does
    separator = "["
    for prediction in chain.from_iterable(batches):
        top = [{"class": name, "probability": probability} for name, probability in prediction.top]
        entry = {"file": str(prediction.picture.file), "top": top, "note": prediction.picture.note}
        console.out(f"{separator}\n {json.dumps(entry, allow_nan=False)}", end="", highlight=False)
        separator = ","
    console.out("[]" if separator == "[" else "\n]", highlight=False)


WRITERS: dict[str, Callable[[Iterable[list[Prediction]]], None]] = {"table": write_table, "json": write_json}
"""How predictions are written, by the names that `format` takes."""


def draw_predictions(classifier: ImageClassifier, shown: Sequence[Prediction], messages: Console) -> Figure:
    """Draw each picture beside the Grad-CAM map for its most probable class, over the part that the classifier saw.

    Where the network cannot be explained, the pictures stand alone, and a line to ``messages`` says why.
    """
    images = np.stack([prediction.picture.pixels for prediction in shown])
    names, probabilities = zip(*(prediction.top[0] for prediction in shown), strict=True)
    explanation = explain_images(classifier, images, [[classifier.classes.index(name) for name in names]])
    title = f"image  |  Grad-CAM of {explanation.layer} for the most probable class"
    if explanation.maps is None:
        title = f"images without maps: {explanation.reason}"
        messages.print(title)
    files = distinct_names([prediction.picture.file for prediction in shown])
    best = [f"{shorten(name)} · {percent(probability)}" for name, probability in zip(names, probabilities, strict=True)]
    pictures = [_as_seen(prediction.picture) for prediction in shown]
    maps = [()] * len(shown) if explanation.maps is None else explanation.maps.swapaxes(0, 1)
    return draw_cards([Card(*each) for each in zip(pictures, zip(best, files, strict=True), maps, strict=True)], title)


def _as_seen(picture: Picture) -> np.ndarray:
    try:
        return read_whole(picture.file, LONGEST_SIDE)
    except InputError:  # it was there when it was classified
        return picture.pixels


def distinct_names(files: Sequence[Path]) -> list[str]:
    """Name each file, in no more characters than a caption has, by what its path has beyond that of all."""
    folder = os.path.commonpath([file.parent for file in files])
    names = [printable(file.relative_to(folder)) for file in files]
    cut = [name if len(name) <= LONGEST_CAPTION else f"…{name[1 - LONGEST_CAPTION :]}" for name in names]
    return [
        name if cut.count(name) == 1 else f"{number}: …{name[6 - LONGEST_CAPTION :]}" for number, name in enumerate(cut)
    ]
