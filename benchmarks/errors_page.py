"""Seconds in which the page of errors is made, beside those of an evaluation, its size, and seconds until it is open.

The network is untrained, so that there are enough errors; maps of a trained one take as long. Each turn tests it on all
images, which is the evaluation, and makes a page of as many errors as ``--errors`` says.
"""

import functools
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import measure
from lightning.pytorch import LightningModule, Trainer

from cifar_resnet import build
from cifar_resnet.callbacks.errors_page import ErrorsPage
from cifar_resnet.callbacks.outputs import OutputCollector
from cifar_resnet.data.datamodule import ImageDataModule

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))  # the tests drive a browser too


class TimedPage(ErrorsPage):
    """Notes how long it took."""

    seconds = 0.0

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the page, and time it."""
        started = time.perf_counter()
        super().on_test_epoch_end(trainer, pl_module)
        self.seconds = time.perf_counter() - started


def make_page(data: ImageDataModule, width: int, errors: int, precision: str, folder: Path) -> dict[str, Any]:
    """Test a network once; return the seconds of evaluation and page, and the MB of the page."""
    config = measure.training_configuration(str(folder), {"model.width": width})
    build.prepare(config.seed)
    outputs = OutputCollector()
    page = TimedPage(outputs, errors)
    trainer = build.build_trainer(config, [outputs, page], precision)
    started = time.perf_counter()
    trainer.test(build.build_classifier(config, data), datamodule=data, verbose=False)
    evaluation = time.perf_counter() - started - page.seconds
    size = Path(trainer.log_dir, "errors.html").stat().st_size / 1e6  # type: ignore[arg-type]
    return {"evaluation": evaluation, "page": page.seconds, "megabytes": size, "opening": opening(trainer.log_dir)}


def opening(folder: Any) -> float:
    """Return the seconds until a browser shows the page, the third time; not a number where there is no browser."""
    from chromium import BROWSER, chromium  # noqa: PLC0415  (not on Windows)

    if BROWSER is None:
        return float("nan")
    with chromium() as browser:
        browser.show(1280, 860)
        return [browser.open(Path(folder, "errors.html").resolve().as_uri()) for _ in range(3)][-1]


def main() -> None:
    parser = measure.arguments(__doc__, repeats=3)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--errors", type=int, nargs="+", default=[1300, 5000])
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--precision", default="32-true")
    measure.add_root(parser)
    options = parser.parse_args()
    images, origin = measure.images(options.root, options.images)
    data = measure.image_data(images, images)
    rows, figures = [], {}
    with tempfile.TemporaryDirectory() as folder:
        tasks = {
            (width, errors): functools.partial(make_page, data, width, errors, options.precision, Path(folder))
            for width in options.widths
            for errors in options.errors
        }
        for (width, errors), turns in measure.in_turn(tasks, options.repeats).items():
            values = {name: [turn[name] for turn in turns] for name in turns[0]}
            ratio = [page / evaluation for page, evaluation in zip(values["page"], values["evaluation"], strict=True)]
            figures[f"width {width}, {errors} errors"] = values | {"ratio": ratio}
            rows.append(
                {
                    "width": width,
                    "errors": f"{errors:,}",
                    "evaluation, s": measure.spread(values["evaluation"], 1),
                    "page, s": measure.spread(values["page"], 1),
                    "page / evaluation": measure.spread(ratio, 2),
                    "MB": f"{values['megabytes'][0]:.1f}",
                    "opens in, s": measure.spread(values["opening"], 2),
                }
            )
    title = f"{options.images:,} images ({origin}), {options.precision}, n = {options.repeats}"
    measure.report("errors_page", title, rows, figures, options)


if __name__ == "__main__":
    main()
