"""What a classifier gets right and wrong: every figure of a test run, derived from its predictions."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from statistics import NormalDist, fmean

import numpy as np
import torch
from rich import box, get_console
from rich.table import Column, Table
from rich.text import Text
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error, multiclass_confusion_matrix

CALIBRATION_BINS = 15  # of equal width, which the confidences are sorted into: Guo et al. 2017 (arXiv 1706.04599)
CONFUSED_PAIRS = 5  # at most, of classes with the most errors between them


@dataclass(frozen=True)
class Accuracy:
    """The share of images that are right, 0 to 1, and the 95 % Wilson interval around it."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2%}  (95% Wilson interval {self.low:.2%} to {self.high:.2%})"


@dataclass(frozen=True)
class ClassFigures:
    """Figures of one class, 0 to 1; None where one is undefined.

    Precision needs a prediction of the class, recall an image of it, and F1 one or the other.
    """

    name: str
    images: int
    precision: float | None
    recall: float | None
    f1: float | None


@dataclass(frozen=True)
class ConfusedPair:
    """Two classes, and how many images of each were taken for the other."""

    first: str
    second: str
    first_as_second: int
    second_as_first: int


@dataclass(frozen=True)
class CalibrationBin:
    """The images whose confidence (the probability of the predicted class) lies from ``low`` to ``high``.

    Mean confidence and accuracy are None where there are no images.
    """

    low: float
    high: float
    images: int
    confidence: float | None
    accuracy: Accuracy | None


@dataclass(frozen=True)
class Evaluation:
    """All figures of a test run.

    Attributes:
        images, errors: how many images, and how many of them are misclassified.
        flip_accuracy: of the mean probabilities of image and mirror image; None where that was not asked for.
        balanced_accuracy: the mean recall of the classes that have test images, 0 to 1.
        macro_f1: the mean F1 of the classes that have test images or are predicted, 0 to 1.
        calibration_error: the expected calibration error (Guo et al. 2017, arXiv 1706.04599, eq. 3), 0 to 1.
        classes: by label.
        confused: the pairs of classes with the most errors between them, most first; at most five.
        confusion: images by true class (row) and predicted class (column).
        calibration: the bins that the calibration error is the weighted mean gap of.
    """

    images: int
    errors: int
    accuracy: Accuracy
    flip_accuracy: Accuracy | None
    balanced_accuracy: float
    macro_f1: float
    calibration_error: float
    classes: list[ClassFigures]
    confused: list[ConfusedPair]
    confusion: list[list[int]]
    calibration: list[CalibrationBin]

    @property
    def uneven(self) -> bool:
        """Whether the classes have test images in unequal number, so that the accuracy is mostly that of some."""
        return len({figures.images for figures in self.classes}) > 1


def wilson(correct: int, total: int) -> Accuracy:
    """Return the share ``correct / total`` with its 95 % score interval (Wilson 1927, JASA 22, p. 209).

    Unlike the textbook's ± 1.96 standard errors it never leaves 0 to 1, and has a width at 100 % too.
    """
    z = NormalDist().inv_cdf(0.975)
    share, weight = correct / total, z**2 / total
    centre = (share + weight / 2) / (1 + weight)
    half = math.sqrt(share * (1 - share) * weight + weight**2 / 4) / (1 + weight)
    return Accuracy(share, max(0.0, centre - half), min(1.0, centre + half))


def evaluate_predictions(
    probabilities: Tensor, labels: Tensor, classes: Sequence[str], mirrored: Tensor | None = None
) -> Evaluation:
    """Derive every figure from the predictions.

    Args:
        probabilities: ``[N, classes]``, N at least 1.
        labels: int64 ``[N]``.
        classes: the class names, by label.
        mirrored: the probabilities of the mirror images, ``[N, classes]``.
    """
    predicted = probabilities.argmax(dim=1)
    correct = predicted == labels
    confusion = multiclass_confusion_matrix(predicted, labels, len(classes)).numpy()
    figures = _per_class(confusion, classes)
    # torchmetrics gives a probability of exactly 1 a bin of its own; the last bin is where it belongs.
    below_one = probabilities.float().clamp(max=1 - torch.finfo(torch.float32).eps)
    return Evaluation(
        images=len(labels),
        errors=int((~correct).sum()),
        accuracy=_accuracy(correct),
        flip_accuracy=None if mirrored is None else _accuracy((probabilities + mirrored).argmax(dim=1) == labels),
        balanced_accuracy=_mean_of_known(each.recall for each in figures),
        macro_f1=_mean_of_known(each.f1 for each in figures),
        calibration_error=multiclass_calibration_error(below_one, labels, len(classes), CALIBRATION_BINS).item(),
        classes=figures,
        confused=_confused(confusion, classes),
        confusion=confusion.tolist(),
        calibration=_calibration(below_one.amax(dim=1).numpy(), correct),
    )


def _accuracy(correct: Tensor) -> Accuracy:
    return wilson(int(correct.sum()), len(correct))


def _per_class(confusion: np.ndarray, classes: Sequence[str]) -> list[ClassFigures]:
    counts = (confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0))
    return [
        ClassFigures(name, true, _share(right, predicted), _share(right, true), _share(2 * right, true + predicted))
        for name, right, true, predicted in zip(classes, *(count.tolist() for count in counts), strict=True)
    ]


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _mean_of_known(shares: Iterable[float | None]) -> float:
    return fmean(share for share in shares if share is not None)


def _confused(confusion: np.ndarray, classes: Sequence[str]) -> list[ConfusedPair]:
    errors = confusion + confusion.T
    pairs = sorted(combinations(range(len(classes)), 2), key=lambda pair: -errors[pair])[:CONFUSED_PAIRS]
    ways = [(one, other, int(confusion[one, other]), int(confusion[other, one])) for one, other in pairs]
    return [ConfusedPair(classes[one], classes[other], *counts) for one, other, *counts in ways if any(counts)]


def _calibration(confidence: np.ndarray, correct: Tensor) -> list[CalibrationBin]:
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)
    place = np.digitize(confidence, edges) - 1
    bins = []
    for index, (low, high) in enumerate(pairwise(edges.tolist())):
        inside = place == index
        known = (float(confidence[inside].mean()), _accuracy(correct[inside])) if inside.any() else (None, None)
        bins.append(CalibrationBin(low, high, int(inside.sum()), *known))
    return bins


def print_evaluation(evaluation: Evaluation) -> None:
    """Print the figures."""
    console = get_console()
    console.print(_class_table(evaluation))
    console.print(*_remarks(evaluation), sep="\n", highlight=False, markup=False, soft_wrap=True)
    if evaluation.confused:
        console.print(_pair_table(evaluation))


def _class_table(evaluation: Evaluation) -> Table:
    headings = [Column(name, justify="right") for name in ("images", "precision", "recall", "F1")]
    table = Table("class", *headings, box=box.SIMPLE_HEAD, pad_edge=False)
    for each in evaluation.classes:
        shares = ("–" if share is None else f"{share:.2%}" for share in (each.precision, each.recall, each.f1))
        table.add_row(Text(each.name), f"{each.images:,}", *shares)
    return table


def _remarks(evaluation: Evaluation) -> Iterator[str]:
    yield f"accuracy           {evaluation.accuracy}"
    if evaluation.uneven:
        yield f"balanced accuracy  {evaluation.balanced_accuracy:.2%}  (mean recall of the classes)"
        yield f"macro F1           {evaluation.macro_f1:.2%}  (mean F1 of the classes)"
    if evaluation.flip_accuracy is not None:
        yield f"with mirror image  {evaluation.flip_accuracy}"
    yield f"calibration error  {evaluation.calibration_error:.2%}  (expected, {CALIBRATION_BINS} bins)"
    absent = [figures.name for figures in evaluation.classes if not figures.images]
    if absent:
        yield f"no test images of  {', '.join(absent)}  (recall is undefined)"
    if evaluation.errors:
        yield f"misclassified      {evaluation.errors:,} of {evaluation.images:,} test images"
        yield "most confused      (true → predicted)"
    else:
        yield f"no errors: all {evaluation.images:,} test images are classified correctly"


def _pair_table(evaluation: Evaluation) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 3, 0, 0))
    for pair in evaluation.confused:
        one, other, errors = pair.first, pair.second, pair.first_as_second + pair.second_as_first
        ways = f"{one} → {other}: {pair.first_as_second:,}", f"{other} → {one}: {pair.second_as_first:,}"
        table.add_row(Text(f"{one} and {other}"), f"{errors:,}", *map(Text, ways))
    return table
