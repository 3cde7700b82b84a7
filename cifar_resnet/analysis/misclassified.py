"""The misclassified test images: which they are, which of them to look at first, and the table of all."""

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cifar_resnet.analysis.labels import LabelCheck
from cifar_resnet.data.files import printable

COLUMNS = (
    *("rank", "index", "file", "true", "predicted", "true_probability", "predicted_probability", "loss"),
    *("label_rank", "neighbours"),
)
"""Of the table of all errors, in this order."""

FORMULA = tuple("=+-@＝＋－＠")  # what a spreadsheet runs begins with one of these


@dataclass(frozen=True)
class Misclassified:
    """One error.

    Attributes:
        rank: by the probability of the predicted class, from 1, the highest.
        index: position in the test set, from 0.
        file: as the source names it, in characters that can be printed; None where images do not come from files.
        true, predicted: the two classes, as labels.
        true_probability, predicted_probability: what the network gives them, 0 to 1.
        loss: minus the natural logarithm of the true class's probability.
    """

    rank: int
    index: int
    file: str | None
    true: int
    predicted: int
    true_probability: float
    predicted_probability: float
    loss: float


def find_misclassified(
    probabilities: np.ndarray, losses: np.ndarray, labels: np.ndarray, files: Sequence[str] | None = None
) -> list[Misclassified]:
    """Return every error, the most confident first, and of those that are alike the first in the test set.

    Args:
        probabilities: ``[N, classes]``.
        losses: ``[N]``.
        labels: ``[N]``.
        files: the names of the images' files, N.
    """
    predicted = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    wrong = wrong[np.argsort(-probabilities[wrong, predicted[wrong]], kind="stable")]
    return [
        Misclassified(
            rank=rank,
            index=index,
            file=None if files is None else printable(files[index]),
            true=int(labels[index]),
            predicted=int(predicted[index]),
            true_probability=float(probabilities[index, labels[index]]),
            predicted_probability=float(probabilities[index, predicted[index]]),
            loss=float(losses[index]),
        )
        for rank, index in enumerate(wrong.tolist(), start=1)
    ]


def choose(errors: Sequence[Misclassified], count: int, order: str, seed: int = 0) -> list[Misclassified]:
    """Return at most ``count`` of all errors.

    Args:
        errors: the most confident first.
        count: how many at most.
        order: ``varied``, the most confident error of each pair of a true and a predicted class, then the next of each;
            ``confident``, the most probable wrong predictions; ``loss``, the least probable true classes; ``first``, as
            they stand in the test set; or ``random``, drawn with ``seed``.
        seed: of the random draw.
    """
    turn = _turns(errors)
    keys = {
        "varied": lambda error: (turn[error.rank], error.rank),
        "confident": lambda error: error.rank,
        "loss": lambda error: (-error.loss, error.rank),
        "first": lambda error: error.index,
    }
    if order == "random":
        return [errors[place] for place in np.random.default_rng(seed).permutation(len(errors))[:count]]
    return sorted(errors, key=keys[order])[:count]


def _turns(errors: Sequence[Misclassified]) -> dict[int, int]:
    """By rank, how many more confident errors have the same true and predicted class."""
    seen, turns = Counter[tuple[int, int]](), dict[int, int]()
    for error in errors:
        pair = error.true, error.predicted
        turns[error.rank] = seen[pair]
        seen[pair] += 1
    return turns


def write_errors_table(
    errors: Sequence[Misclassified], checks: Sequence[LabelCheck], classes: Sequence[str], path: Path
) -> None:
    """Write `COLUMNS` of all errors, and of the check of each one's label, as CSV in UTF-8.

    A spreadsheet runs what begins like a formula: a name that does has an apostrophe before it, its sign for text.
    """
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for error, check in zip(errors, checks, strict=True):
            names = {"true": classes[error.true], "predicted": classes[error.predicted], "file": error.file or ""}
            names["neighbours"] = "; ".join(check.neighbours)
            row = vars(error) | {"label_rank": check.rank} | {name: _as_text(text) for name, text in names.items()}
            table.writerow(f"{row[name]:.6g}" if isinstance(row[name], float) else row[name] for name in COLUMNS)


def _as_text(name: str) -> str:
    return f"'{printable(name)}" if name.startswith(FORMULA) else printable(name)
