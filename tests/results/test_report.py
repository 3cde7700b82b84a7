"""The report: complete in itself, escaped, and true to the files of the run."""

import base64
import io
import json
import re
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from chromium import BROWSER, chromium
from PIL import Image

from cifar_resnet.analysis.metrics import evaluate_predictions
from cifar_resnet.results.report import write_report

CLASSES = ("<script>alert(1)</script>", 'cats & "dogs"', "[ship]")
CONFIG = """\
seed: 0 # <b>bold</b>
model: {_target_: cifar_resnet.models.CustomResNet, width: 8}
data: {source: {_target_: cifar_resnet.data.folder.Folder, root: 'a<b>&c'}}
"""
SUMMARY = {
    "network": "CustomResNet",
    "data": "a<b>&c",
    "precision": "32-true",
    "train_accuracy": 0.9876,
    "epochs": 3,
    "train_seconds": 3725.0,
    "images_per_second": 1234.4,
    "lr_min": 0.0123,
    "lr_max": 0.456,
    "parameters": 6573130,
    "remarks": [],
    "resumed": 0,
    "device": "CPU <& co>",
    "versions": {"torch": "2.15.0"},
}
PICTURES = ("curves", "confusion_matrix", "reliability", "gallery", "lr_find", "batch")


def make_run(folder: Path, predicted: tuple[int, ...] = (0, 1, 1, 0), labels: tuple[int, ...] = (0, 1, 0, 1)) -> Path:
    """Write what a run leaves; each picture has a colour of its own."""
    probabilities = torch.eye(3)[list(predicted)]
    evaluation = evaluate_predictions(probabilities, torch.tensor(labels), CLASSES)
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "evaluation.json").write_text(json.dumps(asdict(evaluation)))
    (folder / "lr_find.json").write_text(json.dumps({"seconds": 12.34}))
    shown = [{"file": None}]
    (folder / "gallery.json").write_text(json.dumps({"columns": 2, "shown": shown}))
    for number, name in enumerate(PICTURES):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(folder / f"{name}.png")
    return folder


class Page(HTMLParser):
    """A page's elements with their attributes, and its text."""

    def __init__(self, html: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.data: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.data.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.data).split())


def test_page_asks_nothing_of_the_network_and_has_no_script(tmp_path: Path) -> None:
    html = write_report(make_run(tmp_path), SUMMARY).read_text()
    page = Page(html)
    for _, attributes in page.elements:
        for name in ("src", "href", "srcset", "data", "action"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert {"script", "iframe", "object", "form"}.isdisjoint(tag for tag, _ in page.elements)
    assert not re.search(r"https?://|url\(|@import", html)
    policy = next(attributes["content"] for tag, attributes in page.elements if "http-equiv" in attributes)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_page_shows_every_picture_of_the_run(tmp_path: Path) -> None:
    page = Page(write_report(make_run(tmp_path), SUMMARY).read_text())
    sources = [attributes["src"] for tag, attributes in page.elements if tag == "img"]
    colours = {
        Image.open(io.BytesIO(base64.b64decode(str(source).partition(",")[2]))).getpixel((0, 0)) for source in sources
    }
    assert colours == {(number, 0, 0) for number in range(len(PICTURES))}
    assert all(attributes["alt"] for tag, attributes in page.elements if tag == "img")


def test_text_is_shown_as_it_is(tmp_path: Path) -> None:
    text = Page(write_report(make_run(tmp_path), SUMMARY).read_text()).text
    for raw in (*CLASSES, "CPU <& co>", "seed: 0 # <b>bold</b>", "'a<b>&c'"):
        assert raw in text


def test_page_gives_the_figures_of_the_run(tmp_path: Path) -> None:
    text = Page(write_report(make_run(tmp_path), SUMMARY).read_text()).text
    for figure in (
        "50.00% of 4 test images",
        "Wilson interval 15.00% to 85.00%",
        "98.76%",
        "0.0123 to 0.456",
        "6,573,130",
        "1 h 2 min",
        "1,234 images/s",
        "12.3 s",
        "2.15.0",
        f"{CLASSES[0]} → {CLASSES[1]}: 1",
    ):
        assert figure in text


def test_page_gives_what_each_class_counts_alike_in_where_they_are_uneven(tmp_path: Path) -> None:
    text = Page(write_report(make_run(tmp_path, (0, 0, 0, 1, 2), (0, 0, 0, 0, 2)), SUMMARY).read_text()).text
    assert "balanced accuracy87.50%" in text
    assert "macro F161.90%" in text
    even = make_run(tmp_path, (0, 1, 1), (0, 1, 2))
    assert "balanced" not in Page(write_report(even, SUMMARY).read_text()).text


def test_page_says_what_somebody_who_knows_would_say(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    text = Page(write_report(run, SUMMARY | {"remarks": ["every test image is taken for <b>"]}).read_text()).text
    assert "every test image is taken for <b>" in text


def test_a_run_without_errors_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path, predicted=(0, 1, 1, 0), labels=(0, 1, 1, 0))
    (run / "gallery.png").unlink()
    assert "no errors to show: all 4 test images" in Page(write_report(run, SUMMARY).read_text()).text


def test_a_run_without_a_search_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (run / "lr_find.json").unlink()
    (run / "lr_find.png").unlink()
    assert "0.0123 and 0.456, were given" in Page(write_report(run, SUMMARY).read_text()).text


def test_an_interrupted_run_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert "resumed" not in Page(write_report(run, SUMMARY).read_text()).text
    assert "resumed 3 times" in Page(write_report(run, SUMMARY | {"resumed": 3}).read_text()).text


@pytest.mark.parametrize(("seconds", "said"), [(8.26, "8.3 s"), (59.99, "1 min 0 s"), (250, "4 min 10 s")])
def test_times_are_said_as_one_says_them(tmp_path: Path, seconds: float, said: str) -> None:
    run = make_run(tmp_path)
    assert said in Page(write_report(run, SUMMARY | {"train_seconds": seconds}).read_text()).text


def test_the_sheet_of_cards_is_shown_column_by_column(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    sheet = Image.new("RGB", (9, 4), "red")
    sheet.paste("blue", (5, 0, 9, 4))
    sheet.save(run / "gallery.png")
    html = write_report(run, SUMMARY).read_text()
    shown = [
        attributes for tag, attributes in Page(html).elements if tag == "img" and "column" in str(attributes["alt"])
    ]
    parts = [Image.open(io.BytesIO(base64.b64decode(str(each["src"]).partition(",")[2]))) for each in shown]
    assert [part.size[1] for part in parts] == [4, 4]
    assert sum(part.size[0] for part in parts) == 9
    assert [part.getpixel((part.size[0] - 1, 0)) for part in parts] == [(255, 0, 0), (0, 0, 255)]


def test_page_leads_to_the_page_of_all_errors_where_there_is_one(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert "errors.html" not in write_report(run, SUMMARY).read_text()
    (run / "errors.html").write_text("")
    links = [attributes for tag, attributes in Page(write_report(run, SUMMARY).read_text()).elements if tag == "a"]
    assert [each["href"] for each in links] == ["errors.html"]


def test_an_evaluation_has_a_report_without_what_was_trained(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for name in ("curves.png", "batch.png", "lr_find.png", "lr_find.json"):
        (run / name).unlink()
    kept = ("network", "data", "parameters", "device", "precision", "remarks", "versions")
    text = Page(write_report(run, {key: SUMMARY[key] for key in kept}).read_text()).text
    assert "50.00% of 4 test images" in text
    assert "How it learned" not in text
    assert "Timing" not in text
    assert "precision32-true" in text


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium or Chrome here")
def test_nothing_is_cut_off_and_pictures_stand_on_dark_ground_in_the_dark(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for name in PICTURES:
        Image.new("RGB", (1200, 600), "white").save(run / f"{name}.png")
    address = write_report(run, SUMMARY).as_uri()
    with chromium() as browser:
        for width, dark in ((1280, False), (390, False), (390, True)):
            browser.show(width, 800, dark)
            browser.send("Page.navigate", url=address)
            browser.wait("document.readyState === 'complete' && document.querySelector('figure')")
            assert browser.evaluate("document.documentElement.scrollWidth") == width
            lefts = browser.evaluate("[...document.querySelectorAll('dl')[0].children].map(each => each.offsetLeft)")
            assert (len(set(lefts)) == 1) is (width == 390)
            sides = browser.evaluate(
                "[...document.images].map(e => e.getBoundingClientRect()).map(r => [r.left, r.right])"
            )
            assert all(0 <= left < right <= width for left, right in sides)
            ground = browser.evaluate("getComputedStyle(document.querySelector('.picture')).backgroundColor")
            assert ground == ("rgb(0, 0, 0)" if dark else "rgb(255, 255, 255)")
        assert browser.complaints == []
        assert browser.requests[1:] == browser.requests[:-1]  # of the page alone
