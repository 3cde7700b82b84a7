"""Every picture of what a network gets right and wrong: images with their maps, confusion matrix, reliability."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from cifar_resnet.analysis.metrics import Evaluation

# Of a sheet of images, in pixels.
IMAGE_SIDE = 192  # of an image beside its maps: a multiple of 32, so that each of its pixels becomes a sharp square
LONE_IMAGE_SIDE = 256  # of an image without maps, likewise: above it 32 characters have room
PANEL_GAP = 4  # between an image and its maps
CARD_GAP = 20  # between neighbouring images with their maps, and around them
LINE_HEIGHT = 18  # of a line above an image
LONGEST_SIDE = 2 * IMAGE_SIDE  # of a picture that is drawn: more would not be seen
CRISP = 64  # pixels a side, up to which each of them is drawn as a square
LONGEST_CAPTION = 32  # characters
SHEET_WIDTH = 6 * IMAGE_SIDE + 4 * PANEL_GAP + 3 * CARD_GAP  # at most: two images with two maps each, side by side
GREY = "#767676"  # of text that is read on white as well as on black


@dataclass(frozen=True)
class Card:
    """An image, with its maps to the right of it.

    Attributes:
        image: as people see it, uint8 ``[H, W, 3]``, of any size.
        caption: the lines above it, the first of which stands out; cut after `LONGEST_CAPTION` characters.
        maps: ``[h, w]`` in 0 to 1, each of the image's middle square.
        remarks: what is written over each of the maps; an empty text writes nothing.
    """

    image: np.ndarray
    caption: tuple[str, ...]
    maps: Sequence[np.ndarray] = ()
    remarks: Sequence[str] = ()


def columns_of(cards: Sequence[Card]) -> int:
    """Return how many columns a sheet of these cards has."""
    return min(SHEET_WIDTH // _card_width(cards[0]), len(cards))


def draw_cards(cards: Sequence[Card], title: str) -> Figure:
    """Draw a sheet of cards.

    Args:
        cards: at least one; all have equally many maps and lines of caption.
        title: what the sheet shows; wrapped where it is wider than a card, and cut after four lines.
    """
    side, card_width, columns = _side(cards[0]), _card_width(cards[0]), columns_of(cards)
    lines = textwrap.wrap(title, int(card_width / 6.6), max_lines=4, placeholder=" …")
    top = CARD_GAP + 16 * len(lines)
    above = 12 + LINE_HEIGHT * len(cards[0].caption)
    width = columns * card_width + CARD_GAP
    height = top + math.ceil(len(cards) / columns) * (above + side) + CARD_GAP
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)

    def write(x: int, y: int, text: str, **style: Any) -> None:
        figure.text(x / width, 1 - y / height, text, parse_math=False, **style)

    write(CARD_GAP, 12, "\n".join(lines), va="top", fontsize=9, color=GREY)
    size = min(12, card_width / 29)
    for place, card in enumerate(cards):
        row, column = divmod(place, columns)
        x, y = CARD_GAP + column * card_width, top + row * (above + side) + above
        for number, line in enumerate(card.caption):
            style = {"weight": "normal" if number else "bold"}
            below = len(card.caption) - 1 - number
            write(x, y - 7 - LINE_HEIGHT * below, shorten(line, LONGEST_CAPTION), fontsize=size, color=GREY, **style)
        for panel, heat in enumerate([None, *card.maps]):
            corner = ((x + panel * (side + PANEL_GAP)) / width, 1 - (y + side) / height)
            axes = figure.add_axes((*corner, side / width, side / height))
            draw_image(axes, middle_square(card.image) if panel else card.image, heat)
        for axes, remark in zip(figure.axes[-len(card.remarks) :], card.remarks, strict=False):
            if remark:
                _label(axes, remark, y=0.03, va="bottom", fontsize=9)
    return figure


def _side(card: Card) -> int:
    return IMAGE_SIDE if len(card.maps) else LONE_IMAGE_SIDE


def _card_width(card: Card) -> int:
    return (_side(card) + PANEL_GAP) * (1 + len(card.maps)) - PANEL_GAP + CARD_GAP


def middle_square(image: np.ndarray) -> np.ndarray:
    """Return the middle square of an image, which is what a network is shown."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[top : top + side, left : left + side]


def draw_image(axes: Axes, image: np.ndarray, heat: np.ndarray | None = None) -> None:
    """Draw an image, or in its place a map over a grey copy of it; of a map that is zero everywhere, say so.

    The image is uint8 ``[H, W, 3]``, the map ``[h, w]`` in 0 to 1. The pixels of small images are squares.
    """
    axes.set_axis_off()
    extent = (0, image.shape[1], image.shape[0], 0)
    interpolation = "nearest" if max(image.shape) <= CRISP else "antialiased"
    if heat is None:
        axes.imshow(image, interpolation=interpolation, extent=extent)
        return
    axes.imshow(image.mean(axis=2), cmap="gray", vmin=0, vmax=255, interpolation=interpolation, extent=extent)
    if not heat.any():
        _label(axes, "the map is zero:\nnothing speaks\nfor this class", y=0.5, va="center", fontsize=10)
        return
    colours = matplotlib.colormaps["inferno"](heat)
    colours[..., 3] = 0.25 + 0.5 * heat
    axes.imshow(colours, interpolation="bilinear", extent=extent)


def _label(axes: Axes, text: str, y: float, **style: Any) -> None:
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 3}
    axes.text(0.5, y, text, transform=axes.transAxes, ha="center", bbox=box, **style)


def shorten(name: str, longest: int = 16) -> str:
    """Return a name of at most ``longest`` characters for a caption."""
    return name if len(name) <= longest else name[: longest - 1] + "…"


def percent(probability: float) -> str:
    """Return a probability, 0 to 1, as text, with a decimal where that does not round it to 0 or 100 %."""
    return f"{100 * probability:.1f}%" if 0.0005 <= probability < 0.9995 else f"{100 * probability:.0f}%"


def draw_confusion_matrix(evaluation: Evaluation) -> Figure:
    """Draw how many images of each true class were taken for which; right ones in blue, errors in vermilion.

    The colour is the share of the true class, on a square-root scale, so that one error in a hundred is seen.
    """
    counts = np.array(evaluation.confusion)
    cell = float(np.clip(10 / len(counts), 0.14, 0.42))  # inches
    side = max(3.0, cell * len(counts)) + 1.5
    figure = Figure(figsize=(side, side), dpi=140, layout="constrained")
    axes = figure.add_subplot()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    right = np.eye(len(counts), dtype=bool)
    for others, colours in ((~right, "Blues"), (right, "Oranges")):
        axes.imshow(np.ma.array(shares, mask=others | (counts == 0)), cmap=colours, norm=PowerNorm(0.5, 0, 1))
    _write_counts(axes, counts, shares, cell)
    _name_classes(axes, [shorten(figures.name) for figures in evaluation.classes], cell)
    axes.set_title(f"{evaluation.errors:,} of {evaluation.images:,} test images misclassified", fontsize=13)
    return figure


def _write_counts(axes: Axes, counts: np.ndarray, shares: np.ndarray, cell: float) -> None:
    size = min(14.0, cell * 72 / (0.7 * len(str(counts.max()))))
    if size < 5:  # too small to be read: the colour has to do
        return
    for row, column in np.argwhere(counts):
        ink = "white" if shares[row, column] > 0.4 else "black"
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=size, color=ink)


def _name_classes(axes: Axes, names: Sequence[str], cell: float) -> None:
    size = float(np.clip(cell * 50, 5, 13))
    ticks, borders = range(len(names)), np.arange(len(names) - 1) + 0.5
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(ticks, names, fontsize=size, parse_math=False)
        axis.set_ticks(borders, minor=True)
    if max(map(len, names)) > 3:
        for label in axes.get_xticklabels():
            label.set(rotation=45, ha="right", rotation_mode="anchor")
    axes.grid(which="minor", color="#dddddd", linewidth=0.5)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_color("#dddddd")
    axes.set_xlabel("predicted class", fontsize=13)
    axes.set_ylabel("true class", fontsize=13)


def draw_reliability(evaluation: Evaluation) -> Figure:
    """Draw how often the network is right against how sure it is, and how many images are how sure."""
    figure = Figure(figsize=(4.8, 5.4), dpi=140, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    bins = evaluation.calibration
    upper.plot([0, 1], [0, 1], "--", color="#777777", linewidth=1, label="calibrated")
    filled = [(bin.confidence, *astuple(bin.accuracy)) for bin in bins if bin.accuracy is not None]
    confidence, share, low, high = np.array(filled).T
    upper.vlines(confidence, low, high, color="#0072B2", linewidth=1, label="95% Wilson interval")
    upper.vlines(confidence, confidence, share, color="#D55E00", linewidth=4, alpha=0.7, label="gap")
    upper.plot(confidence, share, "o", color="#0072B2", ms=5, label="images of one bin")
    upper.set(ylabel="share of images that is right", xlim=(0, 1), ylim=(-0.02, 1.02))
    upper.set_title(f"Expected calibration error (mean gap) {evaluation.calibration_error:.2%}", fontsize=11)
    upper.legend(loc="best", frameon=False)
    edges = [bin.low for bin in bins]
    lower.bar(edges, [bin.images for bin in bins], bins[0].high, align="edge", color="#999999", edgecolor="white")
    lower.set(xlabel="confidence: probability of the predicted class", ylabel="images")
    for axes in (upper, lower):
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure
