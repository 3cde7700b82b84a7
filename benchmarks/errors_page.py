"""Seconds in which the page of errors is made, beside those of an evaluation, its size, and seconds until it is open.

Each turn tests a trained network on the test images, which is the evaluation, and leaves table and page of its errors:
the maps of both classes, the check of the labels, for which all training images are looked at once, and the rest.
"""

import functools
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import measure

from cifar_resnet import build
from cifar_resnet.callbacks import errors_page
from cifar_resnet.callbacks.outputs import OutputCollector
from cifar_resnet.cli.compose import compose
from cifar_resnet.data.datamodule import ImageDataModule
from cifar_resnet.training.checkpoint import load_classifier

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))  # the tests drive a browser too


def time_calls(owner: Any, name: str, seconds: dict[str, float]) -> None:
    """Have what is called by this name note how long it takes."""
    called = getattr(owner, name)

    def call(*arguments: Any, **options: Any) -> Any:
        started = time.perf_counter()
        result = called(*arguments, **options)
        seconds[name] = time.perf_counter() - started
        return result

    setattr(owner, name, call)


def make_page(data: ImageDataModule, ckpt: str, precision: str, folder: Path) -> dict[str, float]:
    """Test a network once; return the seconds of the evaluation and of what follows it, and the MB of the page."""
    config = compose("evaluate", f"ckpt={ckpt}", f"trainer.default_root_dir={folder}")
    build.prepare(config.seed)
    classifier, outputs, seconds = load_classifier(ckpt), OutputCollector(), dict[str, float]()
    page = errors_page.ErrorsPage(outputs)
    time_calls(page, "on_test_epoch_end", seconds)
    originals = {name: getattr(errors_page, name) for name in ("explain_images", "check_labels")}
    for name in originals:
        time_calls(errors_page, name, seconds)
    trainer = build.build_trainer(config, [outputs, page], precision)
    started = time.perf_counter()
    trainer.test(classifier, datamodule=data, verbose=False)
    whole = time.perf_counter() - started
    vars(errors_page).update(originals)
    assert trainer.log_dir is not None
    maps, labels, made = seconds["explain_images"], seconds["check_labels"], seconds["on_test_epoch_end"]
    return {
        "evaluation": whole - made,
        "maps": maps,
        "labels": labels,
        "rest": made - maps - labels,
        "errors": len(Path(trainer.log_dir, "errors.csv").read_text().splitlines()) - 1,
        "MB": Path(trainer.log_dir, "errors.html").stat().st_size / 1e6,
        "opens in": opening(trainer.log_dir),
    }


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
    parser.add_argument("--ckpt", nargs="+", required=True, help="of trained networks")
    parser.add_argument("--root", required=True, help="folder of train/CLASS and test/CLASS")
    parser.add_argument("--precision", default="32-true")
    options = parser.parse_args()
    data = build.build_data(compose("train", "data=folder", f"data.root={options.root}"), 1)
    data.setup()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        tasks = {
            ckpt: functools.partial(make_page, data, ckpt, options.precision, Path(folder)) for ckpt in options.ckpt
        }
        figures = measure.in_turn(tasks, options.repeats)
    for ckpt, turns in figures.items():
        ratios = [turn["maps"] / turn["evaluation"] for turn in turns]
        row = {"network": ckpt, "errors": f"{turns[0]['errors']:,}", "MB": f"{turns[0]['MB']:.1f}"}
        for name in ("evaluation", "maps", "labels", "rest", "opens in"):
            row[f"{name}, s"] = measure.spread([turn[name] for turn in turns], 1)
        rows.append(row | {"maps / evaluation": measure.spread(ratios, 2)})
    title = f"{options.root}, {options.precision}, n = {options.repeats}"
    measure.report("errors_page", title, rows, figures, options)


if __name__ == "__main__":
    main()
