"""Any image file becomes the right pixels, predictions are a plain forward pass's, and bad files cost one line each."""

import json
import os
import runpy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_classifier, make_data, make_trainer
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps
from rich.console import Console

from cifar_resnet.analysis.drawing import CARD_GAP, IMAGE_SIDE, LINE_HEIGHT, LONE_IMAGE_SIDE, LONGEST_CAPTION, PANEL_GAP
from cifar_resnet.cli.compose import compose
from cifar_resnet.data.files import printable
from cifar_resnet.data.images import read, read_batches
from cifar_resnet.errors import InputError
from cifar_resnet.inference import predict as prediction
from cifar_resnet.inference.predict import BATCH_SIZE, classify, predict
from cifar_resnet.training.classifier import ImageClassifier

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "predict.py"
COLOUR = (200, 40, 90)
LONG = "l" * 260
"""More than a file may be called."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("run") / "last.ckpt"
    trainer = make_trainer(file.parent)
    trainer.strategy.connect(make_classifier(make_data(test_statistics="test"), temperature=0.5))
    trainer.save_checkpoint(file)
    return file


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def noise(seed: int, height: int = 32, width: int = 32) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def spoil(folder: Path) -> list[str]:
    """Leave files that cannot be read; return their names."""
    noise(0, 200, 200).save(folder / "whole.jpg")
    (folder / "truncated.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:4000])
    (folder / "text.jpg").write_text("not an image")
    (folder / "empty.png").touch()
    (folder / "link.png").symlink_to("nowhere")
    (folder / "circle.png").symlink_to("circle.png")
    (folder / "whole.jpg").unlink()
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("name", "picture", "expected"),
    [
        ("RGB.png", Image.new("RGB", (32, 32), COLOUR), COLOUR),
        ("RGB.webp", noise(0), None),
        ("L.png", Image.new("L", (32, 32), 77), (77, 77, 77)),
        ("1.png", Image.new("1", (32, 32), 1), (255, 255, 255)),
        ("P.png", Image.new("RGB", (32, 32), COLOUR).quantize(), COLOUR),
        ("P.gif", Image.new("RGB", (32, 32), COLOUR).quantize(), COLOUR),
        ("CMYK.tif", Image.new("RGB", (32, 32), COLOUR).convert("CMYK"), COLOUR),
        ("CMYK.jpg", Image.new("RGB", (32, 32), COLOUR).convert("CMYK"), COLOUR),
        ("YCbCr.tif", Image.new("RGB", (32, 32), COLOUR).convert("YCbCr"), COLOUR),
        ("LAB.tif", Image.new("LAB", (32, 32), (255, 128, 128)), (255, 255, 255)),
        ("I16.png", Image.fromarray(np.full((32, 32), 77 * 257, np.uint16)), (77, 77, 77)),
        ("I16.tif", Image.fromarray(np.full((32, 32), 77 * 257, np.uint16)), (77, 77, 77)),
        ("opaque.png", Image.new("RGBA", (32, 32), (*COLOUR, 255)), COLOUR),
        ("clear.png", Image.new("RGBA", (32, 32), (*COLOUR, 0)), (255, 255, 255)),
        ("half.png", Image.new("RGBA", (32, 32), (0, 100, 200, 51)), (204, 224, 244)),
        ("LA.png", Image.new("LA", (32, 32), (0, 51)), (204, 204, 204)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_mode_becomes_the_colours_that_a_viewer_shows(
    tmp_path: Path, name: str, picture: Image.Image, expected: tuple[int, int, int] | None
) -> None:
    picture.save(tmp_path / name, quality=100, **({"lossless": True} if name.endswith("webp") else {}))
    found = read(tmp_path / name)
    assert found.note == ""
    assert found.pixels.shape == (32, 32, 3)
    assert found.pixels.dtype == np.uint8
    wanted = np.asarray(picture) if expected is None else np.broadcast_to(expected, (32, 32, 3))
    assert np.abs(found.pixels.astype(int) - wanted).max() <= 2


def test_a_transparent_palette_colour_is_white(tmp_path: Path) -> None:
    picture = Image.new("P", (32, 32), 0)
    picture.putpalette([200, 40, 90, 10, 20, 30])
    picture.paste(1, (0, 0, 32, 16))
    picture.save(tmp_path / "p.gif", transparency=0)
    pixels = read(tmp_path / "p.gif").pixels
    assert (pixels[0, 0].tolist(), pixels[-1, 0].tolist()) == ([10, 20, 30], [255, 255, 255])


@pytest.mark.parametrize(
    ("kind", "low", "high"), [(np.float32, -0.5, 1.5), (np.float32, 7.0, 7.0), (np.int32, 0, 70_000)]
)
def test_grey_levels_of_unknown_range_are_stretched_and_it_is_said(
    tmp_path: Path, kind: Any, low: float, high: float
) -> None:
    levels = np.linspace(low, high, 32 * 32).reshape(32, 32).astype(kind)
    Image.fromarray(levels).save(tmp_path / "grey.tif")
    found = read(tmp_path / "grey.tif")
    assert found.note == "grey levels stretched"
    assert (found.pixels.min(), found.pixels.max()) == ((0, 255) if high > low else (0, 0))
    assert (np.diff(found.pixels[..., 0].ravel().astype(int)) >= 0).all()


def test_every_orientation_that_a_camera_notes_is_turned_upright(tmp_path: Path) -> None:
    upright = noise(1)
    turn = Image.Transpose
    stored_as = {
        1: None,
        2: turn.FLIP_LEFT_RIGHT,
        3: turn.ROTATE_180,
        4: turn.FLIP_TOP_BOTTOM,
        5: turn.TRANSPOSE,
        6: turn.ROTATE_90,
        7: turn.TRANSVERSE,
        8: turn.ROTATE_270,
    }
    for orientation, way in stored_as.items():
        stored, exif = upright if way is None else upright.transpose(way), Image.Exif()
        exif[0x0112] = orientation
        stored.save(tmp_path / "camera.png", exif=exif)
        found = read(tmp_path / "camera.png")
        assert (found.pixels == np.asarray(upright)).all(), orientation
        assert found.note == ("" if orientation == 1 else "turned upright")


@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    mode=st.sampled_from(["1", "L", "P", "RGB", "RGBA", "LA", "I;16"]),
)
def test_any_size_becomes_32_pixels_and_the_note_tells_the_old_one(
    tmp_path_factory: pytest.TempPathFactory, width: int, height: int, mode: str
) -> None:
    file = tmp_path_factory.getbasetemp() / "any.png"
    Image.new(mode, (width, height)).save(file)
    found = read(file)
    assert found.pixels.shape == (32, 32, 3)
    assert (f"{width}×{height}" in found.note) == ((width, height) != (32, 32))
    assert ("centre-cropped" in found.note) == (width != height)


def test_of_the_longer_side_the_middle_is_kept(tmp_path: Path) -> None:
    wide = Image.new("RGB", (300, 100), "blue")
    wide.paste((255, 0, 0), (95, 0, 205, 100))
    for name, picture in (("wide.png", wide), ("tall.png", wide.transpose(Image.Transpose.ROTATE_90))):
        picture.save(tmp_path / name)
        assert (read(tmp_path / name).pixels == (255, 0, 0)).all()


@pytest.mark.parametrize("kind", ["gif", "png", "tif", "webp"])
def test_of_a_picture_that_moves_the_first_frame_alone_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    file = tmp_path / f"moving.{kind}"
    frames = [Image.new("RGB", (32, 32), colour) for colour in (COLOUR, "blue", "green")]
    options = {"lossless": True} if kind == "webp" else {}
    frames[0].save(file, save_all=True, append_images=frames[1:], **options)
    loaded = []
    load = ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: (loaded.append(image.tell()), load(image))[1])
    found = read(file)
    assert set(loaded) == {0}
    assert (found.pixels == COLOUR).all()
    assert found.note == "first frame only"


def test_what_cannot_be_read_is_named_in_one_line(tmp_path: Path) -> None:
    for name in spoil(tmp_path):
        with pytest.raises(InputError) as refused:
            read(tmp_path / name)
        assert str(refused.value).startswith(f"{tmp_path / name} cannot be read as an image (")
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("side", "what"), [(13_000, "13,000×13,000 pixels are too many"), (20_000, "400000000 pixels")]
)
def test_a_picture_of_absurd_size_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: int, what: str
) -> None:
    Image.new("1", (side, side)).save(tmp_path / "huge.png")
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail("it is decoded"))
    with warnings.catch_warnings(action="ignore"), pytest.raises(InputError) as refused:
        read(tmp_path / "huge.png")
    assert str(refused.value).startswith(f"{tmp_path / 'huge.png'} cannot be read as an image (")
    assert what in str(refused.value)
    assert str(refused.value).endswith("scale it down to 89,478,485 pixels at most)")


def test_files_are_read_batch_by_batch(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.png" for number in range(7)]
    for number, file in enumerate(files):
        noise(number).save(file)
    batches = read_batches(files, 3, 32)
    first = next(batches)
    for file in files[3:]:
        file.unlink()  # what is not read yet is not in memory
    assert [picture.file for picture in first if not isinstance(picture, InputError)] == files[:3]
    assert [[isinstance(picture, InputError) for picture in batch] for batch in batches] == [[True] * 3, [True]]


def plain_top(checkpoint: Path, file: Path) -> list[tuple[str, float]]:
    """The three most probable classes by nothing but torch."""
    state = torch.load(checkpoint, weights_only=True)
    classifier = ImageClassifier(**state["hyper_parameters"])
    classifier.load_state_dict(state["state_dict"])
    pixels = np.asarray(ImageOps.fit(Image.open(file).convert("RGB"), (32, 32), Image.Resampling.BICUBIC))
    mean, std = (np.array(state["hyper_parameters"][f"test_{name}"]) for name in ("mean", "std"))
    normalized = torch.from_numpy(((pixels / 255 - mean) / std).astype(np.float32)).permute(2, 0, 1)[None]
    with torch.no_grad():
        outputs = classifier.network.eval()(normalized)[0] / state["hyper_parameters"]["temperature"]
    probabilities = outputs.exp() / outputs.exp().sum()
    return sorted(zip(classifier.classes, probabilities.tolist(), strict=True), key=lambda pair: -pair[1])[:3]


def test_json_holds_what_a_plain_forward_pass_gives(
    here: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    count = 2 * BATCH_SIZE + 3
    for number in range(count):
        noise(number, 32, 32 + number % 3).save(here / f"photos/{number:03}.png")
    assert predict(compose("predict", f"ckpt={checkpoint}", "images=photos/*.png", "format=json", "sheet=5")) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert [entry["file"] for entry in found] == [f"photos/{number:03}.png" for number in range(count)]
    for entry in found[:: BATCH_SIZE // 2]:
        expected = plain_top(checkpoint, here / entry["file"])
        assert [top["class"] for top in entry["top"]] == [name for name, _ in expected]
        assert [top["probability"] for top in entry["top"]] == pytest.approx([p for _, p in expected], abs=1e-5)
    assert ["scaled" in entry["note"] for entry in found[:3]] == [False, True, True]
    assert captured.err == f"images predicted: {count}, files skipped: 0, sheet: predictions.png\n"
    with Image.open("predictions.png") as sheet:
        assert sheet.width == 3 * (2 * IMAGE_SIDE + PANEL_GAP + CARD_GAP) + CARD_GAP
        assert sheet.height == 2 * (IMAGE_SIDE + 12 + 2 * LINE_HEIGHT) + 2 * CARD_GAP + 16


def test_the_sheet_shows_each_pixel_as_a_square(here: Path, checkpoint: Path) -> None:
    noise(0).save("photos/a.png")
    predict(compose("predict", f"ckpt={checkpoint}", "images=photos/a.png", "output=sheet.png"))
    sheet = np.asarray(Image.open("sheet.png").convert("RGB"))
    rows = sheet[CARD_GAP + 28 + 2 * LINE_HEIGHT :][:IMAGE_SIDE]
    image, overlay = rows[:, CARD_GAP:][:, :IMAGE_SIDE], rows[:, CARD_GAP + IMAGE_SIDE :][:, :IMAGE_SIDE]
    enlarged = np.asarray(noise(0)).repeat(IMAGE_SIDE // 32, axis=0).repeat(IMAGE_SIDE // 32, axis=1)
    assert (image == enlarged).all()
    assert len(np.unique(overlay.reshape(-1, 3), axis=0)) > 100
    assert not (overlay == enlarged).all()


def test_a_network_that_cannot_be_explained_is_shown_without_maps(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Perceptron(torch.nn.Sequential):
        def __init__(self, num_classes: int):
            super().__init__(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, num_classes))

    classifier = make_classifier(make_data())
    classifier.network = Perceptron(3)
    noise(0).save("photos/a.png")
    picture = read(Path("photos/a.png"))
    messages = Console(stderr=True, soft_wrap=True)
    (seen,) = classify(classifier, [picture])
    prediction.draw_predictions(classifier, [seen], messages).savefig("sheet.png")
    out, err = capsys.readouterr()
    assert (out, err) == ("", "images without maps: no stage of the network has a feature map\n")
    with Image.open("sheet.png") as sheet:
        assert sheet.width == LONE_IMAGE_SIDE + 2 * CARD_GAP


def test_without_a_sheet_nothing_is_written(here: Path, checkpoint: Path) -> None:
    noise(0).save("photos/a.png")
    predict(compose("predict", f"ckpt={checkpoint}", "images=photos/a.png", "sheet=0"))
    assert sorted(path.name for path in here.iterdir()) == ["photos"]


def test_a_folder_means_the_images_in_it_and_below_it(
    here: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("cat/1.PNG", "dog/1.png", "dog/deep/er/2.webp", ".hidden/3.png"):
        (here / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        noise(0).save(here / "photos" / name, format="png")
    (here / "photos" / "notes.txt").write_text("no image")
    assert predict(compose("predict", f"ckpt={checkpoint}", "images=photos", "format=json")) == 0
    found = [entry["file"] for entry in json.loads(capsys.readouterr().out)]
    assert found == ["photos/cat/1.PNG", "photos/dog/1.png", "photos/dog/deep/er/2.webp"]


@given(st.lists(st.lists(st.sampled_from(["a", "b", "l" * 40, "é"]), min_size=1, max_size=4), unique_by=tuple))
def test_each_picture_of_a_sheet_has_a_name_of_its_own(parts: list[list[str]]) -> None:
    files = [Path("photos", *each, "1.png") for each in parts]
    names = prediction.distinct_names(files) if files else []
    assert len(set(names)) == len(files)
    assert all(len(name) <= LONGEST_CAPTION for name in names)


def test_names_in_a_sheet_begin_where_paths_differ() -> None:
    files = [Path(f"photos/test/{name}") for name in ("cat/1.png", "dog/1.png", "2.png")]
    assert prediction.distinct_names(files) == ["cat/1.png", "dog/1.png", "2.png"]
    assert prediction.distinct_names([Path("1.png")]) == ["1.png"]


def test_the_table_has_a_line_an_image_whatever_its_name(
    here: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [
        "[red] $x$ :smile:.png",
        "line\nbreak.png",
        os.fsdecode(b"bytes\xff.png"),
        "日本語" * 20 + ".png",
        "l" * 200,
    ]
    for name in names:
        noise(0).save(here / "photos" / name, "png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert predict(compose("predict", f"ckpt={checkpoint}", "images=photos/*")) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["most", "probable", "second", "third", "image", "note"]
    shown = [row.split("photos/")[1].rstrip() for row in rows]
    assert sorted(shown) == sorted(printable(Path(name)) for name in names)
    best, probability = plain_top(checkpoint, here / "photos" / names[0])[0]
    assert all(row.startswith(f"{best} {100 * probability:.1f}%") for row in rows)


def run_script(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", [str(SCRIPT), *arguments])
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_one_unreadable_file_is_skipped_and_the_exit_code_says_so(
    here: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    bad = spoil(here / "photos")
    noise(0).save("photos/good one (1).png")
    (here / "photos" / "sub").mkdir()
    assert run_script(monkeypatch, f"ckpt={checkpoint}", "images=photos/*", "format=json") == 1
    out, err = capfd.readouterr()
    assert [entry["file"] for entry in json.loads(out)] == ["photos/good one (1).png"]
    folder, *skipped, last = err.splitlines()
    assert folder.startswith("photos/sub: a folder, skipped")
    assert [line.split(" cannot be read")[0] for line in skipped] == [f"photos/{name}" for name in bad]
    assert last == f"images predicted: 1, files skipped: {len(bad)}, sheet: predictions.png"
    assert run_script(monkeypatch, f"ckpt={checkpoint}", "images=photos/good*") == 0
    assert run_script(monkeypatch, f"ckpt={checkpoint}", "images=photos/text.jpg", "format=json", "output=new.png") == 1
    assert capfd.readouterr().out.endswith("[]\n")
    assert not Path("new.png").exists()


def test_what_is_no_file_to_read_is_named_and_the_rest_predicted(
    here: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """And no picture twice, although a link leads in a circle."""
    noise(0).save("photos/a.png")
    for name in ("first.png", "second.png"):
        os.mkfifo(f"photos/{name}")
    assert run_script(monkeypatch, f"ckpt={checkpoint}", "images=photos/**", "format=json") == 0
    out, err = capfd.readouterr()
    assert [entry["file"] for entry in json.loads(out)] == ["photos/a.png"]
    assert err.splitlines()[:-1] == ["photos/first.png and 1 more: a pipe, socket or device, skipped"]
    Path("photos/up").symlink_to("..")
    Path("photos/circle.png").symlink_to("circle.png")
    assert run_script(monkeypatch, f"ckpt={checkpoint}", "images=photos/**", "format=json") == 1
    out, err = capfd.readouterr()
    assert [entry["file"] for entry in json.loads(out)] == ["photos/a.png"]
    assert err.splitlines()[1:] == [
        "photos/up is a link to a folder, and ** follows none: skipped",
        "photos/circle.png cannot be read as an image (Too many levels of symbolic links): skipped",
        "images predicted: 1, files skipped: 2, sheet: predictions.png",
    ]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "ckpt is not set"),
        (["ckpt=none.ckpt", "images=photos/a.png"], "ckpt=none.ckpt: no such file"),
        (["ckpt=photos/a.png", "images=photos/a.png"], "ckpt=photos/a.png is not a readable checkpoint"),
        (["ckpt=CKPT"], "images is not set"),
        (["ckpt=CKPT", "images=none*"], "images=none*: no file matches"),
        (["ckpt=CKPT", "images=empty"], "images=empty: no image is in that folder or below it (.bmp"),
        (["ckpt=CKPT", "images=photos/a.png", "format=xml"], "format=xml: expected table | json"),
        (["ckpt=CKPT", "images=photos/a.png", "sheet=-1"], "sheet=-1: expected a whole number from 0"),
        (
            ["ckpt=CKPT", "images=photos/a.png", "output=a.jpg"],
            "output=a.jpg: give the name of a file that ends in .png",
        ),
        (
            ["ckpt=CKPT", "images=photos/a.png", "output=none/a.png"],
            "output=none/a.png: the folder none does not exist",
        ),
        (["ckpt=CKPT", "images=photos/*", "output=photos/a.png"], "output=photos/a.png is one of the images"),
        (["ckpt=CKPT", "images=photos/*", f"output={LONG}.png"], f"output={LONG}.png cannot be written (File name too"),
        (["ckpt=CKPT", "images=photos/*", "output=/dev/.png"], "output=/dev/.png: give the name of a file"),
        (["ckpt=CKPT", f"images={LONG}"], f"images={LONG}: no file matches"),
        ([f"ckpt={LONG}", "images=photos/*"], f"ckpt={LONG}: no such file"),
    ],
    ids=lambda value: "" if isinstance(value, list) else value,
)
def test_bad_input_is_answered_in_one_line_before_anything_is_written(
    here: Path,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    complaint: str,
) -> None:
    noise(0).save("photos/a.png")
    (here / "empty").mkdir()
    before = Path("photos/a.png").read_bytes()
    assert run_script(monkeypatch, *(argument.replace("CKPT", str(checkpoint)) for argument in arguments)) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"predict.py: {complaint}")
    assert sorted(path.name for path in here.rglob("*")) == ["a.png", "empty", "photos"]
    assert Path("photos/a.png").read_bytes() == before


def test_two_classes_have_two_probabilities(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_data()
    trainer = make_trainer(here)
    trainer.strategy.connect(make_classifier(data, classes=["cat", "dog"]))
    trainer.save_checkpoint("two.ckpt")
    noise(0).save("photos/a.png")
    for form in prediction.WRITERS:
        assert predict(compose("predict", "ckpt=two.ckpt", "images=photos/a.png", f"format={form}")) == 0
    table, array = capsys.readouterr().out.split("[", 1)
    assert table.split()[:5] == ["most", "probable", "second", "image", "note"]
    assert {top["class"] for top in json.loads(f"[{array}")[0]["top"]} == {"cat", "dog"}
