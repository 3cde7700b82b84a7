"""The page of errors: complete in itself, true to what it is given, and of use in a real browser."""

import base64
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chromium import BROWSER, Page, chromium
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn.functional import interpolate

from cifar_resnet.analysis.errors_page import write_errors_page
from cifar_resnet.analysis.gradcam import Explanation
from cifar_resnet.analysis.labels import LabelCheck
from cifar_resnet.analysis.misclassified import Misclassified, find_misclassified

CLASSES = ("cat & dog", '</script><img src=x onerror="alert(1)">', "→ #%=+'")
COUNT = 60
SIZES = [(1280, 800, False), (1280, 800, True), (390, 844, False), (390, 844, True)]


def make_errors(count: int = COUNT, files: bool = True) -> list[Misclassified]:
    """Errors of all kinds but one: no image of the last class is taken for the first."""
    rng = np.random.default_rng(0)
    probabilities, labels = rng.dirichlet(np.ones(3), 3 * count), rng.integers(0, 3, 3 * count)
    labels[(labels == 2) & (probabilities.argmax(1) == 0)] = 0
    losses = -np.log(probabilities[np.arange(3 * count), labels])
    names = [f"test/<i>/{index}.png" for index in range(3 * count)] if files else None
    return find_misclassified(probabilities, losses, labels, names)[:count]


def make_checks(count: int) -> list[LabelCheck]:
    """Ranks that are not those of the confidence, and neighbours."""
    order = np.argsort([7 * place % 61 for place in range(count)], kind="stable").argsort() + 1
    return [LabelCheck(rank, (f"cat train/<i>/{rank}.png", "dog x.png")) for rank in order.tolist()]


def make_page(
    folder: Path,
    errors: list[Misclassified],
    classes: tuple[str, ...] = CLASSES,
    side: int = 32,
    maps: bool = True,
    left_out: int = 0,
) -> tuple[Path, np.ndarray, Explanation]:
    """Write a page with images and maps of noise; nothing speaks for the predicted class of the first."""
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (len(errors), side, side, 3), dtype=np.uint8)
    heat = rng.random((2, len(errors), 8, 8), dtype=np.float32)
    heat[0, 0] = 0
    explanation = Explanation(heat, "layer2", None) if maps else Explanation(None, None, "no stage <b>has</b> a map")
    confusion = np.diag([100] * len(classes))
    for error in errors:
        confusion[error.true, error.predicted] += 1
    confusion[0, 1] += left_out
    checks = make_checks(len(errors))
    write_errors_page(folder / "errors.html", errors, checks, images, explanation, confusion, classes)
    return folder / "errors.html", images, explanation


def data_of(path: Path) -> dict[str, Any]:
    found = re.findall(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.DOTALL)
    assert len(found) == 1
    return json.loads(found[0])


def test_the_page_holds_the_table_the_images_and_the_maps(tmp_path: Path) -> None:
    errors = make_errors()
    path, images, explanation = make_page(tmp_path, errors)
    data = data_of(path)
    assert data["classes"] == list(CLASSES)
    for name in ("index", "file", "true", "predicted"):
        assert data["rows"][name] == [getattr(error, name) for error in errors]
    for name in ("loss", "true_probability", "predicted_probability"):
        np.testing.assert_allclose(data["rows"][name], [getattr(error, name) for error in errors], atol=1e-4)
    assert data["rows"]["label_rank"] == [check.rank for check in make_checks(COUNT)]
    sprite = re.search(r'src="data:image/webp;base64,([^"]+)"', path.read_text())
    assert sprite is not None
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(sprite[1]))))
    for place, image in enumerate(images):
        row, column = divmod(place, data["columns"])
        assert np.array_equal(sheet[32 * row : 32 * row + 32, 32 * column : 32 * column + 32], image)
    assert explanation.maps is not None
    for part, maps in zip(("predicted", "true"), explanation.maps, strict=True):
        stored = np.frombuffer(base64.b64decode(data["maps"][part]), np.uint8).reshape(maps.shape)
        np.testing.assert_allclose(stored / 255, maps, atol=0.5 / 255 + 1e-6)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.text(st.characters(), min_size=1), file=st.text(st.characters(), min_size=1))
def test_any_name_stays_within_the_data(tmp_path: Path, name: str, file: str) -> None:
    errors = find_misclassified(np.array([[0.2, 0.8]]), np.array([1.6]), np.array([0]), [file])
    path, *_ = make_page(tmp_path, errors, (name, "other"))
    data = data_of(path)
    assert len(re.findall("<script", path.read_text())) == 2
    if name.isprintable() and file.isprintable():
        assert (data["classes"][0], data["rows"]["file"]) == (name, [file])


def test_1300_errors_take_less_than_6_megabytes_even_of_noise(tmp_path: Path) -> None:
    path, *_ = make_page(tmp_path, make_errors(1300))
    assert path.stat().st_size < 6e6


def test_larger_images_are_shown_smaller_and_finer_maps_coarser(tmp_path: Path) -> None:
    errors = make_errors(4)
    images = np.zeros((4, 224, 224, 3), np.uint8)
    explanation = Explanation(np.ones((2, 4, 56, 56), np.float32), "layer1", None)
    checks, confusion = make_checks(4), np.eye(3, dtype=np.int64)
    write_errors_page(tmp_path / "errors.html", errors, checks, images, explanation, confusion, CLASSES)
    data = data_of(tmp_path / "errors.html")
    assert (data["side"], data["maps"]["side"]) == (128, 16)
    assert base64.b64decode(data["maps"]["true"]) == bytes([255]) * 4 * 16 * 16


# ---- in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    if BROWSER is None:
        pytest.skip("there is no Chromium or Chrome here")
    with chromium() as page:
        yield page


@pytest.fixture
def page(browser: Page, tmp_path: Path) -> Iterator[Page]:
    """The page of `make_errors`, opened; whatever a test does with it, it complains of nothing and asks for nothing."""
    path, *_ = make_page(tmp_path, make_errors())
    browser.complaints.clear()
    browser.show(1280, 800)
    browser.open(path.as_uri())
    yield browser
    assert browser.complaints == []
    assert browser.requests == [path.as_uri()]


def shown(page: Page) -> list[int]:
    """Return the ranks, from 0, of the images in the page, in order."""
    return page.evaluate("[...document.querySelectorAll('.card')].map((_, at) => shown[at])")


def labels(page: Page) -> list[str]:
    return page.evaluate("[...document.querySelectorAll('.card')].map(card => card.getAttribute('aria-label'))")


def focused(page: Page) -> str:
    return page.evaluate("document.activeElement.getAttribute('aria-label') || document.activeElement.id")


def cell(is_: int, said: int) -> str:
    """Return the selector of a number of the confusion matrix."""
    return f"#matrix tbody tr:nth-child({is_ + 1}) td:nth-child({said + 2}) button"


@pytest.mark.parametrize(("width", "height", "dark"), SIZES)
def test_nothing_is_cut_off_and_the_page_is_as_light_as_is_liked(
    page: Page, width: int, height: int, dark: bool
) -> None:
    page.show(width, height, dark)
    for hash_ in ("", f"image={make_errors()[3].index}&map=both"):
        page.evaluate(f"location.hash = {hash_!r}")
        page.wait(f"detail.open === {str(bool(hash_)).lower()}")
        assert page.evaluate("document.documentElement.scrollWidth") == width
    box = page.evaluate("(r => [r.left, r.right, r.top, r.bottom])(detail.getBoundingClientRect())")
    assert 0 <= box[0] < box[1] <= width
    assert 0 <= box[2] < box[3] <= height
    assert page.evaluate("detail.scrollWidth <= detail.clientWidth")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]")
    assert light < 64 if dark else light > 192
    assert len(page.screenshot()) > 10_000


def test_names_are_text(page: Page) -> None:
    assert page.evaluate("document.images.length") == 1  # that of all images, and none from a name
    headings = page.evaluate("[...document.querySelectorAll('#matrix tbody th')].map(each => each.textContent)")
    assert headings == list(CLASSES)
    first = make_errors()[0]
    says = f"test image {first.index}, {CLASSES[first.true]} taken for {CLASSES[first.predicted]}, "
    assert labels(page)[0] == f"{says}{100 * first.predicted_probability:.1f} %"


def test_a_click_on_a_number_shows_its_images_and_the_address_names_it(page: Page) -> None:
    errors = make_errors()
    wanted = [error.rank - 1 for error in errors if (error.true, error.predicted) == (1, 2)]
    assert shown(page) == list(range(COUNT))
    page.click(cell(1, 2))
    page.wait("document.querySelector('#all').hidden === false")
    assert shown(page) == wanted
    assert page.evaluate(f"document.querySelector({cell(1, 2)!r}).ariaPressed") == "true"
    assert page.evaluate("document.querySelectorAll('#matrix [aria-pressed=true]').length") == 1
    assert page.evaluate("document.querySelector('#count').textContent") == f"{len(wanted)} of {COUNT} errors"
    address = page.evaluate("location.href")
    page.evaluate("history.back()")
    page.wait("document.querySelector('#all').hidden")
    assert shown(page) == list(range(COUNT))
    page.evaluate("history.forward()")
    page.wait("!document.querySelector('#all').hidden")
    assert shown(page) == wanted
    page.open(address)
    assert shown(page) == wanted
    page.click(cell(1, 2))
    page.wait("document.querySelector('#all').hidden")
    assert shown(page) == list(range(COUNT))


@pytest.mark.parametrize("hash_", ["true=nobody", "map=toString", "image=", "image=x&view=x", "%E0%A4%A", "&&=&"])
def test_an_address_that_names_nothing_shows_everything(page: Page, hash_: str) -> None:
    page.evaluate(f"location.hash = {hash_!r}")
    page.evaluate("new Promise(done => setTimeout(done, 50))")
    assert shown(page) == list(range(COUNT))
    assert page.evaluate("detail.open") is False


def test_sorted_filtered_and_searched(page: Page) -> None:
    errors = make_errors()
    choose = "e => e.dispatchEvent(new Event('change'))"
    page.evaluate(f"sort.value = 'loss'; ({choose})(sort)")
    losses = sorted((error.loss for error in errors), reverse=True)
    assert [errors[place].loss for place in shown(page)] == pytest.approx(losses, abs=1e-4)
    page.evaluate(f"sort.value = 'file'; ({choose})(sort)")
    assert [errors[place].index for place in shown(page)] == sorted(error.index for error in errors)
    page.evaluate(f"$('true').value = 1; ({choose})($('true'))")
    page.wait("!document.querySelector('#all').hidden")
    assert {errors[place].true for place in shown(page)} == {1}
    page.click("#all")
    page.wait("document.querySelector('#all').hidden")
    page.press("/")
    assert focused(page) == "search"
    page.type(f"/{errors[7].index}.PNG")
    assert shown(page) == [7]
    page.type("?")
    assert shown(page) == []
    assert "nothing fits" in page.evaluate("document.querySelector('#count').textContent")


def test_the_keyboard_moves_among_images_and_opens_them(page: Page) -> None:
    said = labels(page)
    page.evaluate("cards.querySelector('[tabindex=\"0\"]').focus()")
    columns = page.evaluate("getComputedStyle(cards).gridTemplateColumns.split(' ').length")
    for key, place in (("ArrowRight", 1), ("ArrowDown", 1 + columns), ("ArrowLeft", columns), ("ArrowUp", 0)):
        page.press(key)
        assert focused(page) == said[place]
    assert page.evaluate("document.querySelectorAll('.card[tabindex=\"0\"]').length") == 1
    page.press("Enter")
    page.wait("detail.open")
    for key, place in (("ArrowRight", 2), ("ArrowRight", 3), ("ArrowLeft", 2)):
        page.press(key)
        page.wait(f"document.querySelector('#place').textContent === '{place} of {COUNT}'")
    assert page.evaluate("document.querySelector('#stage [role=img]').ariaLabel") == said[1]
    facts = page.evaluate("document.querySelector('#facts').innerText")
    error = make_errors()[1]
    for fact in (error.file, f"2 of {COUNT}", f"{error.loss:.2f}", str(error.index)):
        assert str(fact) in facts
    page.press("?")
    page.press("?")
    page.wait("$('help').open")
    page.press("Escape")
    page.wait("!$('help').open && detail.open")
    page.press("Escape")
    page.wait("!detail.open")
    page.wait("location.hash === ''")
    assert focused(page) == said[1]


def test_the_keyboard_moves_among_numbers_and_passes_over_those_that_are_none(page: Page) -> None:
    page.evaluate(f"focus($('matrix'), document.querySelector({cell(2, 1)!r}))")
    assert page.evaluate(f"document.querySelector({cell(2, 0)!r})") is None
    page.press("ArrowLeft")
    assert page.evaluate("document.activeElement.closest('th').scope") == "row"
    page.press("ArrowRight")
    page.press("ArrowUp")  # over the diagonal
    assert focused(page).startswith(f"{CLASSES[0]} taken for {CLASSES[1]}: ")
    page.press("Enter")
    page.wait("!document.querySelector('#all').hidden")
    errors = make_errors()
    assert {(errors[place].true, errors[place].predicted) for place in shown(page)} == {(0, 1)}


def test_maps_are_drawn_over_the_images_and_taken_away(page: Page, tmp_path: Path) -> None:
    heats = "document.querySelectorAll('#cards .heat').length"
    assert page.evaluate(heats) == 0
    for part, count in (("predicted", COUNT - 1), ("true", COUNT), ("both", 2 * COUNT - 1), ("off", 0)):
        page.press("m")  # nothing speaks for the predicted class of the first
        page.wait(f"document.querySelector('[data-map={part}]').ariaPressed === 'true'")
        assert page.evaluate(heats) == count
    page.click("[data-map=true]")
    page.wait(f"{heats} === {COUNT}")
    drawn = page.evaluate(
        "[...cards.querySelectorAll('.heat')].map(each => [...each.getContext('2d').getImageData(0, 0, 64, 64).data])"
    )
    opacity = np.array(drawn).reshape(COUNT, 64, 64, 4)[..., 3] / 255
    maps = torch.from_numpy(make_page(tmp_path, make_errors())[2].maps[1])[:, None]
    expected = interpolate(maps, size=(64, 64), mode="bilinear", align_corners=False)[:, 0]
    np.testing.assert_allclose((opacity - 0.25) / 0.5, expected, atol=0.01)
    page.evaluate("go({ image: 0, map: 'both' })")
    page.wait("detail.open")
    captions = page.evaluate("[...document.querySelectorAll('figcaption')].map(each => each.textContent)")
    assert ["the map is zero" in caption for caption in captions] == [False, True, False]


def test_a_page_without_maps_says_why(browser: Page, tmp_path: Path) -> None:
    path, *_ = make_page(tmp_path, make_errors(files=False), maps=False)
    browser.open(path.as_uri())
    assert "no stage <b>has</b> a map" in browser.evaluate("document.body.innerText")
    browser.press("m")
    assert browser.evaluate("document.querySelectorAll('.heat, [data-map]').length") == 0
    assert browser.evaluate("[...sort.options].map(each => each.value)") == ["confident", "loss", "file"]
    assert browser.complaints == []


def test_labels_to_check_first_are_a_tab(browser: Page, tmp_path: Path) -> None:
    errors = make_errors()
    path, *_ = make_page(tmp_path, errors)
    browser.open(path.as_uri())
    browser.click("#tab-labels")
    browser.wait("document.querySelector('#tab-labels').ariaSelected === 'true'")
    checks = make_checks(COUNT)
    ranks = [checks[place].rank for place in shown(browser)]
    assert ranks == sorted(ranks)
    browser.click(".card")
    browser.wait("document.querySelector('#detail').open")
    assert f"cat train/<i>/{ranks[0]}.png" in browser.evaluate("document.querySelector('#facts').innerText")
    assert browser.complaints == []


def test_only_the_pages_own_script_runs(browser: Page, tmp_path: Path) -> None:
    path, *_ = make_page(tmp_path, make_errors())
    browser.open(path.as_uri())
    browser.evaluate("document.body.append(make('script', { textContent: 'window.foreign = true' }))")
    assert browser.evaluate("window.foreign") is None
    browser.evaluate("document.body.append(make('img', { src: 'http://127.0.0.1:9/' }))")
    assert sum("Content Security Policy" in complaint for complaint in browser.complaints) == 2


def test_of_5000_errors_few_are_drawn_before_one_scrolls(browser: Page, tmp_path: Path) -> None:
    path, *_ = make_page(tmp_path, make_errors(5000), side=8, left_out=7)
    browser.show(1280, 800)
    browser.open(path.as_uri())
    assert 100 < len(shown(browser)) < 1000
    browser.evaluate("document.querySelector('#more').scrollIntoView({ behavior: 'instant' })")
    browser.wait("cards.childElementCount >= 480")
    assert browser.evaluate("document.querySelector('#count').textContent") == (
        "5,000 of 5,000 errors; the page has the most confident of 5,007"
    )
