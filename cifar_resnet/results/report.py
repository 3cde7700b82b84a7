"""The report of a run: everything that its folder holds, as one page that can be sent to a colleague."""

import base64
import io
import json
from collections.abc import Mapping
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from PIL import Image

TEMPLATE = Path(__file__).with_name("report.html.jinja")


def write_report(folder: Path, summary: Mapping[str, Any]) -> Path:
    """Write ``report.html`` into the folder of a finished run, and return its path.

    The page is complete in itself: pictures and style are inside, it has no script and asks nothing of any network.

    Args:
        folder: holds ``config.yaml``, ``evaluation.json``, ``confusion_matrix.png`` and ``reliability.png``;
            ``gallery.png``, ``gallery.json``, ``errors.csv`` and ``errors.html`` where there were errors; ``batch.png``
            and ``curves.png`` where epochs were trained; ``lr_find.json`` and ``lr_find.png`` where the bounds were
            searched for.
        summary: what ``summary.json`` will hold; of an evaluation, network, data, parameters, device, precision,
            versions and remarks alone.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "percent": lambda share: "–" if share is None else f"{share:.2%}",
        "grouped": "{:,}".format,
        "duration": _duration,
        "picture": lambda name: _data_url((folder / name).read_bytes()),
        "columns": lambda name, count: _columns(folder / name, count),
    }
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        run=folder.resolve().name,
        day=date.today().isoformat(),
        configuration=(folder / "config.yaml").read_text(),
        summary=summary,
        evaluation=_json(folder / "evaluation.json"),
        search=_json(folder / "lr_find.json"),
        gallery=_json(folder / "gallery.json"),
        files={file.name for file in folder.iterdir()},
    )
    report = folder / "report.html"
    report.write_text(page, encoding="utf-8")
    return report


def _columns(file: Path, count: int) -> list[str]:
    """Return the columns of a sheet of cards, so that they can stand below each other where there is little room."""
    parts = []
    with Image.open(file) as sheet:
        for left, right in pairwise(round(sheet.width * edge / count) for edge in range(count + 1)):
            part = io.BytesIO()
            sheet.crop((left, 0, right, sheet.height)).save(part, "PNG")
            parts.append(_data_url(part.getvalue()))
    return parts


def _data_url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _json(file: Path) -> Any:
    return json.loads(file.read_text()) if file.exists() else None


def _duration(seconds: float) -> str:
    """Return a time as one says it: 8.3 s, 4 min 10 s, 2 h 5 min."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
