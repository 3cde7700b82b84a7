"""The page of errors: every misclassified image with its maps, to look through, in one file."""

import base64
import hashlib
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from jinja2 import Environment, StrictUndefined
from matplotlib.colors import to_hex
from PIL import Image
from torch.nn.functional import adaptive_avg_pool2d

from cifar_resnet.analysis.gradcam import Explanation
from cifar_resnet.analysis.labels import LabelCheck
from cifar_resnet.analysis.misclassified import Misclassified
from cifar_resnet.data.files import printable

HERE = Path(__file__).parent
LOSSLESS_SIDE = 32  # in pixels: larger images would make the page several times as large without a loss to be seen
LARGEST_SIDE = 128  # in pixels, of an image in the page
LARGEST_SHEET = 8192  # in pixels, of the side of the picture that they are all in, which a browser has to unpack
FINEST_MAP = 16  # in cells, of the side of a map in the page; finer ones are averaged


def write_errors_page(
    path: Path,
    errors: Sequence[Misclassified],
    checks: Sequence[LabelCheck],
    images: Sequence[np.ndarray],
    explanation: Explanation,
    confusion: np.ndarray,
    classes: Sequence[str],
) -> None:
    """Write the page, which is complete in itself and asks nothing of any network.

    Args:
        path: the file; the name of its folder, the run, stands in the page.
        errors: those to show, at least one, the most confident first.
        checks: of the errors' labels.
        images: of the errors, squares uint8 ``[H, H, 3]`` of any size.
        explanation: a map for the predicted and one for the true class of each, ``[2, E, h, w]``, of any size.
        confusion: how many of all test images, by true class (row) and predicted class (column).
        classes: the class names, by label.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"grouped": "{:,}".format, "sha256": _sha256}
    sprite, side, columns = _sprite(images)
    page = environment.from_string((HERE / "errors.html.jinja").read_text(encoding="utf-8")).render(
        run=path.resolve().parent.name,
        images=int(confusion.sum()),
        errors=int(confusion.sum() - confusion.trace()),
        script=(HERE / "errors.js").read_text(encoding="utf-8"),
        style=(HERE / "errors.css").read_text(encoding="utf-8"),
        sprite=sprite,
        data={
            "classes": [printable(name) for name in classes],
            "confusion": confusion.tolist(),
            "rows": _rows(errors, checks),
            "side": side,
            "columns": columns,
            "maps": _maps(explanation),
            "reason": explanation.reason,
        },
    )
    path.write_text(page, encoding="utf-8")


def _rows(errors: Sequence[Misclassified], checks: Sequence[LabelCheck]) -> dict[str, list[Any]]:
    """Return the table of errors column by column, which is shorter than row by row."""
    rows: dict[str, list[Any]] = {
        "index": [error.index for error in errors],
        "true": [error.true for error in errors],
        "predicted": [error.predicted for error in errors],
        "true_probability": [round(error.true_probability, 5) for error in errors],
        "predicted_probability": [round(error.predicted_probability, 5) for error in errors],
        "loss": [round(error.loss, 4) for error in errors],
        "label_rank": [check.rank for check in checks],
    }
    files, neighbours = [error.file for error in errors], [check.neighbours for check in checks]
    rows |= {} if None in files else {"file": files}  # which not every run has
    return rows | ({"neighbours": neighbours} if all(neighbours) else {})


def _sprite(images: Sequence[np.ndarray]) -> tuple[str, int, int]:
    """Return all images side by side in one picture, as a data URL, with the side of each and how many stand in a row.

    One picture of all is two thirds of the size of one each.
    """
    columns = math.ceil(math.sqrt(len(images)))
    side = min(LARGEST_SIDE, LARGEST_SHEET // columns, max(len(image) for image in images))
    sheet = Image.new("RGB", (side * columns, side * math.ceil(len(images) / columns)))
    for place, pixels in enumerate(images):
        row, column = divmod(place, columns)
        sheet.paste(Image.fromarray(pixels).resize((side, side)), (side * column, side * row))
    file = io.BytesIO()
    sheet.save(file, "WEBP", lossless=side <= LOSSLESS_SIDE, quality=90 if side > LOSSLESS_SIDE else 50)
    return f"data:image/webp;base64,{_base64(file.getvalue())}", side, columns


def _maps(explanation: Explanation) -> dict[str, Any] | None:
    """Return the maps as one byte a cell, and the colours in which the gallery draws them."""
    if explanation.maps is None:
        return None
    side = min(FINEST_MAP, *explanation.maps.shape[2:])
    cells = adaptive_avg_pool2d(torch.from_numpy(explanation.maps), side).mul(255).round().to(torch.uint8).numpy()
    predicted, true = (_base64(each.tobytes()) for each in cells)
    colours = [to_hex(colour) for colour in matplotlib.colormaps["inferno"](np.linspace(0, 1, 32))]
    return {"side": side, "layer": explanation.layer, "predicted": predicted, "true": true, "colours": colours}


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _sha256(text: str) -> str:
    """Return how a content security policy names the one script, or the one style, that it allows."""
    return f"'sha256-{_base64(hashlib.sha256(text.encode()).digest())}'"
