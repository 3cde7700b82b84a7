"""The sources: what they return, and one clear line for whatever is wrong with the files."""

import contextlib
import io
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import well_formed
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from cifar_resnet.data.files import printable
from cifar_resnet.data.folder import Folder
from cifar_resnet.data.images import read
from cifar_resnet.data.sources import Digits, ImageSet
from cifar_resnet.errors import InputError


def noise(seed: int, height: int = 32, width: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


# ---- digits


def test_digits_are_the_real_ones_in_squares_halved_as_in_scikit_learns_example() -> None:
    bunch = load_digits()
    halves = train_test_split(bunch.images, bunch.target, test_size=0.5, shuffle=False)
    for read_half, count, images, labels in (
        (Digits().train, 898, halves[0], halves[2]),
        (Digits().test, 899, halves[1], halves[3]),
    ):
        half = read_half()
        assert well_formed(half, count)
        assert half.classes == tuple("0123456789")
        assert np.array_equal(half.labels, labels)
        squares = half.images.reshape(count, 8, 4, 8, 4, 3)
        assert (squares == squares[:, :, :1, :, :1, :1]).all()
        np.testing.assert_allclose(squares[:, :, 0, :, 0, 0], images * 255 / 16, atol=0.5)


def test_digits_are_always_split_alike() -> None:
    for read_half in (Digits().train, Digits().test):
        first, second = read_half(), read_half()
        assert np.array_equal(first.images, second.images)
        assert np.array_equal(first.labels, second.labels)


# ---- a folder of classes

Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """``save("train/cat/a.png", pixels)`` writes an image below the root, which is the folder ``tmp_path``."""

    def write(name: str, pixels: Any, **options: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
        image.save(path, **options)
        return path

    return write


@pytest.fixture
def pets(tmp_path: Path, save: Save) -> Path:
    """A small data set: two classes, two training images and one test image each."""
    for seed, name in enumerate(("cat/a", "cat/b", "dog/a", "dog/b")):
        save(f"train/{name}.png", noise(seed))
    for seed, name in enumerate(("cat/a", "dog/a")):
        save(f"test/{name}.png", noise(10 + seed))
    return tmp_path


def folder(root: Path, resize: bool = False) -> tuple[ImageSet, ImageSet]:
    source = Folder(str(root), resize)
    return source.train().read(32), source.test().read(32)


def refused(root: Path, *words: str, resize: bool = False) -> None:
    with pytest.raises(InputError) as error:
        folder(root, resize)
    message = str(error.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == []


def test_folder_takes_pixels_and_labels_as_they_are(pets: Path) -> None:
    train, test = folder(pets)
    assert well_formed(train, 4)
    assert well_formed(test, 2)
    assert train.classes == test.classes == ("cat", "dog")
    assert train.labels.tolist() == [0, 0, 1, 1]
    assert test.labels.tolist() == [0, 1]
    for index, seed in enumerate((0, 1, 2, 3)):
        assert np.array_equal(train.images[index], noise(seed))


def test_folder_names_the_file_of_each_image_also_in_a_part_of_them(pets: Path) -> None:
    train, test = folder(pets)
    assert train.files == ("train/cat/a.png", "train/cat/b.png", "train/dog/a.png", "train/dog/b.png")
    assert test.files == ("test/cat/a.png", "test/dog/a.png")
    assert train.subset(np.array([3, 0])).files == ("train/dog/b.png", "train/cat/a.png")
    assert Digits().test().subset(np.array([1])).files is None


def test_folder_sorts_by_class_and_name_whatever_the_suffix(pets: Path, save: Save) -> None:
    grey = np.full((32, 32, 3), 40, np.uint8)
    save("train/cat/0.JPG", grey)
    save("train/cat/z.jpeg", grey + 40)
    (pets / "train" / "cat" / "notes.txt").write_text("not an image")
    (pets / "train" / ".cache").mkdir()
    train, _ = folder(pets)
    assert train.labels.tolist() == [0, 0, 0, 0, 1, 1]
    assert [round(float(image.mean())) for image in train.images[[0, 3]]] == [40, 80]


def test_folder_names_may_be_anything(tmp_path: Path, save: Save) -> None:
    for split in ("train", "test"):
        for seed, name in enumerate(("Käfer groß", "日本")):
            save(f"meine Bilder/{split}/{name}/ein Bild.png", noise(seed))
    train, _ = folder(tmp_path / "meine Bilder")
    assert train.classes == ("Käfer groß", "日本")


def test_grey_and_palette_images_become_rgb(pets: Path, save: Save) -> None:
    levels = noise(7)[..., 0]
    for number, image in enumerate(
        (Image.fromarray(levels), Image.fromarray(levels > 127), Image.fromarray(noise(8)).quantize(16))
    ):
        save(f"train/cat/{number}.png", image)
        found = folder(pets)[0].images[number]
        assert np.array_equal(found, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(("height", "width"), [(31, 32), (64, 64), (48, 32), (1, 1)])
def test_another_size_needs_resize(pets: Path, save: Save, height: int, width: int) -> None:
    save("test/dog/z.png", noise(0, height, width))
    refused(pets, "z.png", f"{width}×{height}", "data.resize=true")
    assert well_formed(folder(pets, resize=True)[1], 3)


def test_resize_scales_and_centre_crops(pets: Path, save: Save) -> None:
    wide = np.zeros((64, 192, 3), np.uint8)
    wide[:, 64:96], wide[:, 96:128] = (200, 0, 0), (0, 0, 200)  # the middle third; the rest is cropped away
    save("train/cat/0.png", wide)
    image, small, *_ = Folder(str(pets), resize=True).train().read(32).images
    assert np.array_equal(image[:, 2:14], np.broadcast_to([200, 0, 0], (32, 12, 3)))
    assert np.array_equal(image[:, 18:30], np.broadcast_to([0, 0, 200], (32, 12, 3)))
    assert np.array_equal(small, noise(0))


UPRIGHT = {
    1: lambda pixels: pixels,
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels.swapaxes(0, 1), 2),
    8: np.rot90,
}
"""What a viewer does with the pixels of a file, by its EXIF orientation."""

FORMATS = {
    "BMP": ("1", "L", "RGB", "RGBA"),
    "JPEG": ("1", "L", "RGB", "CMYK", "YCbCr"),
    "PNG": ("1", "L", "LA", "P", "P index", "P bytes", "RGB", "RGB index", "RGBA", "I;16", "I;16 index"),
    "TIFF": ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I", "F"),
    "WEBP": ("L", "LA", "PA", "RGB", "RGBA", "RGBa", "HSV", "LAB"),
}
"""The modes that Pillow writes into the formats that `Folder` reads; with ``index`` or ``bytes`` of transparency."""


def picture(mode: str) -> tuple[Image.Image, dict[str, Any]]:
    """Return noise in a mode, and how to save it."""
    mode, _, transparent = mode.partition(" ")
    rgba = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 4), np.uint8))
    rgb = rgba.convert("RGB")
    if mode == "LAB":
        return Image.frombytes("LAB", (32, 32), rgb.tobytes()), {}
    if mode in {"LA", "RGBa"}:
        return rgba.convert(mode), {}
    if mode == "PA":
        return rgba.convert("RGB").quantize(16).convert("PA"), {}
    if mode in {"I", "F", "I;16"}:
        levels = np.arange(32 * 32).reshape(32, 32) * 60
        kinds = {"I": np.int32, "F": np.float32, "I;16": np.uint16}
        return Image.fromarray(levels.astype(kinds[mode])), {"transparency": 60} if transparent else {}
    transparency: Any = {
        "": None,
        "index": tuple(np.asarray(rgb)[0, 0].tolist()) if mode == "RGB" else 3,
        "bytes": bytes(range(0, 256, 16)),
    }[transparent]
    image = rgb.quantize(16) if mode == "P" else (rgba if mode == "RGBA" else rgb).convert(mode)
    return image, {} if transparency is None else {"transparency": transparency}


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind, modes in FORMATS.items() for mode in modes])
def test_training_sees_the_pixels_that_prediction_sees(tmp_path: Path, kind: str, mode: str) -> None:
    """And both see them upright, whatever the orientation in which a camera stored them."""
    orientations = range(1, 9) if kind != "BMP" else range(1, 2)  # a BMP file has no place for it
    for name in ("cat", "dog"):
        folder = tmp_path / "train" / name
        folder.mkdir(parents=True)
        for orientation in orientations:
            image, options = picture(mode)
            if kind != "BMP":
                options["exif"] = Image.Exif()
                options["exif"][0x0112] = orientation
            if kind == "WEBP":
                options["lossless"] = True
            image.save(folder / f"{orientation}.{kind.lower()}", kind, **options)
    images = Folder(str(tmp_path)).train().read(32).images
    files = sorted(tmp_path.rglob(f"*.{kind.lower()}"))
    assert len(images) == len(files) == 2 * len(orientations)
    assert np.array_equal(images, [read(file).pixels for file in files])
    for orientation, pixels in zip(orientations, images, strict=False):
        assert np.array_equal(pixels, UPRIGHT[orientation](images[0]))
    if "index" in mode:
        transparent = {"P index": None, "RGB index": (0, 0), "I;16 index": (0, 1)}[mode]
        assert transparent is None or images[0][transparent].tolist() == [255, 255, 255]


def test_broken_images_are_named(pets: Path) -> None:
    for content in (b"", b"hello", (pets / "train/cat/a.png").read_bytes()[:700]):
        broken = pets / "test" / "cat" / "x.png"
        broken.write_bytes(content)
        refused(pets, str(broken), "repair or remove it")
    broken.unlink()
    broken.mkdir()
    refused(pets, str(broken), "repair or remove it")
    broken.rmdir()
    for target in ("nowhere", broken.name):
        broken.symlink_to(target)
        refused(pets, str(broken), "repair or remove it")
        broken.unlink()


def test_pipes_sockets_and_devices_are_no_images(pets: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("train/cat/pipe.png", "train/dog/pipe.png", "test/cat/pipe.png"):
        os.mkfifo(pets / name)
    (pets / "train/cat/noise.png").symlink_to("/dev/urandom")
    train = Folder(str(pets)).train()
    assert capfd.readouterr() == ("", f"{pets}/train/cat/noise.png and 2 more: a pipe, socket or device, skipped\n")
    assert well_formed(train.read(32), 4)
    (pets / "test/cat/a.png").unlink()
    refused(pets, "test/cat has no images")


def test_a_folder_that_leads_back_to_itself_is_a_class_like_any_other(pets: Path) -> None:
    (pets / "train" / "loop").symlink_to(".")
    refused(pets, "only in one of them: loop")
    (pets / "test" / "loop").symlink_to("..")
    refused(pets, "train/loop has no images")


@pytest.mark.parametrize("target", ["nowhere", "cow"])
def test_a_class_behind_a_link_that_leads_nowhere_is_said(pets: Path, target: str) -> None:
    (pets / "train" / "cow").symlink_to(target)
    refused(pets, f"{pets}/train/cow is a link that leads nowhere: repair or remove it")
    (pets / "train" / "cow").rename(pets / "train" / ".cow")  # what editors leave beside a file
    assert well_formed(Folder(str(pets)).train().read(32), 4)


@pytest.mark.parametrize(("name", "shown"), [("black\ncat", r"black\ncat"), (os.fsdecode(b"ch\xe4t"), r"ch\udce4t")])
def test_a_class_needs_a_name_that_can_be_printed(pets: Path, name: str, shown: str) -> None:
    (pets / "train" / "cat").rename(pets / "train" / name)
    refused(pets, f"train/{shown}: ", "rename the folder")


@pytest.mark.parametrize("name", ["line\nbreak.png", os.fsdecode(b"bytes\xff.png")])
def test_an_image_may_have_any_name(pets: Path, name: str) -> None:
    image = pets / "train" / "cat" / name
    (pets / "train" / "cat" / "b.png").rename(image)
    assert well_formed(Folder(str(pets)).train().read(32), 4)
    image.write_bytes(b"")
    refused(pets, f"train/cat/{printable(name)} cannot be read", "repair or remove it")


def test_a_name_that_is_too_long_is_said(pets: Path) -> None:
    refused(pets / ("l" * 300), "data.root=", "File name too long")


def test_an_image_of_absurd_size_is_named(pets: Path) -> None:
    Image.new("1", (13_000, 13_000)).save(pets / "train/cat/huge.png")
    with warnings.catch_warnings(action="ignore"):
        refused(pets, "train/cat/huge.png", "13,000×13,000 pixels are too many", "scale it down", resize=True)


@settings(deadline=None)
@given(st.data())
def test_no_damage_gives_anything_but_an_image_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    kind = data.draw(st.sampled_from(("JPEG", "PNG")))
    buffer = io.BytesIO()
    Image.fromarray(noise(0)).save(buffer, kind)
    content = bytearray(buffer.getvalue()[: data.draw(st.integers(0, len(buffer.getvalue())))])
    for _ in range(data.draw(st.integers(0, 4)) if content else 0):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file = tmp_path_factory.getbasetemp() / "damaged.png"
    file.write_bytes(content)
    with contextlib.suppress(InputError):
        image = read(file).pixels
        assert image.shape == (32, 32, 3)
        assert image.dtype == np.uint8


def test_each_half_can_be_read_without_the_other(pets: Path) -> None:
    (pets / "train").rename(pets / "elsewhere")
    assert well_formed(Folder(str(pets)).test().read(32), 2)
    refused(pets, "train: no such folder")
    (pets / "elsewhere").rename(pets / "train")
    (pets / "test").rename(pets / "elsewhere")
    assert well_formed(Folder(str(pets)).train().read(32), 4)
    refused(pets, "test: no such folder")


def test_nothing_is_opened_before_it_is_read(pets: Path) -> None:
    broken = pets / "train/cat/b.png"
    broken.write_bytes(b"broken")
    train = Folder(str(pets)).train()
    assert (len(train), train.classes, train.labels.tolist()) == (4, ("cat", "dog"), [0, 0, 1, 1])
    part = train.subset(np.array([3, 0])).read(32)
    assert (part.files, part.labels.tolist()) == (("train/dog/b.png", "train/cat/a.png"), [1, 0])
    assert np.array_equal(part.images, [noise(3), noise(0)])
    with pytest.raises(InputError, match=f"{broken} cannot be read"):
        train.read(32)


def test_the_first_broken_image_of_many_is_named(tmp_path: Path, save: Save) -> None:
    files = [save(f"train/{name}/{number:03}.png", noise(number)) for name in ("cat", "dog") for number in range(60)]
    for number in (117, 31, 94):
        files[number].write_bytes(b"broken")
    for _ in range(5):
        with pytest.raises(InputError, match=f"{files[31]} cannot be read"):
            Folder(str(tmp_path)).train().read(32)


def test_many_images_stay_in_order(tmp_path: Path, save: Save) -> None:
    for seed, name in enumerate(("cat", "dog")):
        for number in range(60):
            save(f"train/{name}/{number:03}.png", noise(100 * seed + number))
    images = Folder(str(tmp_path)).train().read(32).images
    assert np.array_equal(images, [noise(100 * seed + number) for seed in (0, 1) for number in range(60)])


def test_nothing_is_decoded_before_both_halves_are_listed(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (pets / "test" / "cow").mkdir()
    (pets / "train" / "cat" / "a.png").write_bytes(b"broken")
    for read_half in (Folder(str(pets)).train, Folder(str(pets)).test):
        with pytest.raises(InputError, match="same class folders; only in one of them: cow"):
            read_half()


def test_reading_waits_for_no_heavy_import() -> None:
    code = """
import sys
import cifar_resnet.data.images, cifar_resnet.data.sources
assert not {"torch", "torchvision", "lightning", "albumentations", "sklearn", "scipy"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_missing_is_said(pets: Path, tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "nowhere: no such folder", "one folder a class")
    refused(pets / "train" / "cat" / "a.png", "a.png", "no such folder")
    (pets / "test" / "dog" / "a.png").unlink()
    refused(pets, "test/dog", "no images", "remove the folder")
    (pets / "test" / "dog").rmdir()
    refused(pets, "same class folders", "dog")
    (pets / "test" / "cow").mkdir()
    refused(pets, "cow, dog")


def test_empty_folders_and_a_single_class_are_refused(tmp_path: Path, save: Save) -> None:
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
    refused(tmp_path, "train has no class folders", "no class can be called train or test")
    for split in ("train", "test"):
        save(f"{split}/cat/a.png", noise(0))
    refused(tmp_path, "only the class 'cat'", "two or more")


def test_a_locked_folder_is_said(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def locked(path: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", locked)  # a mode of 000 does not stop root, who runs tests in a container
    refused(pets, "data.root=", "Permission denied", "check its permissions")
