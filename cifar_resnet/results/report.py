"""The report of a run: everything that its folder holds, as one page that can be sent to a colleague."""

import base64
import json
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from omegaconf import OmegaConf

TEMPLATE = Path(__file__).with_name("report.html.jinja")


def write_report(folder: Path, summary: Mapping[str, Any]) -> Path:
    """Write ``report.html`` into the folder of a finished training run, and return its path.

    The page is complete in itself: pictures and style are inside, it has no script and asks nothing of any network.

    Args:
        folder: holds ``config.yaml``, ``evaluation.json``, ``confusion_matrix.png`` and ``reliability.png``;
            ``gallery.png`` and ``gallery.json`` where there were errors; ``batch.png`` and ``curves.png`` where epochs
            were trained; ``lr_find.json`` and ``lr_find.png`` where the bounds were searched for.
        summary: what ``summary.json`` will hold.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "percent": lambda share: "–" if share is None else f"{share:.2%}",
        "grouped": "{:,}".format,
        "duration": _duration,
        "picture": lambda name: f"data:image/png;base64,{base64.b64encode((folder / name).read_bytes()).decode()}",
    }
    configuration = (folder / "config.yaml").read_text()
    page = environment.from_string(TEMPLATE.read_text()).render(
        run=folder.resolve().name,
        day=date.today().isoformat(),
        config=OmegaConf.create(configuration),
        configuration=configuration,
        summary=summary,
        evaluation=_json(folder / "evaluation.json"),
        search=_json(folder / "lr_find.json"),
        gallery=_json(folder / "gallery.json"),
        pictures={file.name for file in folder.glob("*.png")},
    )
    report = folder / "report.html"
    report.write_text(page, encoding="utf-8")
    return report


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
