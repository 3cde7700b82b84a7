"""The picture of what goes in: training images as the network gets them, and test images."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from cifar_resnet.analysis.drawing import GREY, shorten

# In pixels.
COLUMNS = 8
CELL = 128  # about the side of an image: a multiple of its own, so that each of its pixels becomes a sharp square
GAP = 16  # between neighbouring images, and around all
LABEL = 22  # above an image
TITLE = 52  # of the two lines above a group
BETWEEN = 20  # groups

Group = tuple[str, str, np.ndarray, np.ndarray]  # title, what is to be known of them, images [N, S, S, 3], labels [N]


def draw_inputs(groups: Sequence[Group], classes: Sequence[str]) -> Figure:
    """Draw groups of labelled images one below the other, each under its title, eight images a row.

    Args:
        groups: each with uint8 images ``[N, S, S, 3]`` of one S, N at least 1.
        classes: the class names, by label; cut where they are wider than an image.
    """
    cell = _shown_side(groups[0][2].shape[1])
    columns = min(COLUMNS, max(4, *(len(labels) for *_, labels in groups)))
    rows = [math.ceil(len(labels) / COLUMNS) for *_, labels in groups]
    width = GAP + columns * (cell + GAP)
    height = GAP - BETWEEN + len(groups) * (TITLE + BETWEEN) + sum(rows) * (LABEL + cell + GAP)
    figure = Figure(figsize=(width / 100, height / 100), dpi=100, facecolor="none")
    top = GAP
    for (title, note, images, labels), lines in zip(groups, rows, strict=True):
        figure.text(GAP / width, 1 - (top + 20) / height, title, fontsize=12, weight="bold", color=GREY)
        figure.text(GAP / width, 1 - (top + 38) / height, note, fontsize=9, color=GREY)
        top += TITLE
        for place, (image, label) in enumerate(zip(images, labels, strict=True)):
            row, column = divmod(place, COLUMNS)
            x, y = GAP + column * (cell + GAP), top + row * (LABEL + cell + GAP) + LABEL
            name = shorten(classes[label], cell // 9)
            figure.text(x / width, 1 - (y - 5) / height, name, fontsize=9, color=GREY, parse_math=False)
            shown = Image.fromarray(image).resize((cell, cell), _resampling(image, cell))
            figure.figimage(np.asarray(shown), x, height - y - cell, origin="upper")
        top += lines * (LABEL + cell + GAP) + BETWEEN
    return figure


def _shown_side(side: int) -> int:
    """Return how large an image of this side is shown, in pixels: a multiple of the side, or a smaller copy."""
    return side * round(CELL / side) if side <= 1.5 * CELL else CELL


def _resampling(image: np.ndarray, cell: int) -> Image.Resampling:
    return Image.Resampling.NEAREST if len(image) <= cell else Image.Resampling.LANCZOS
