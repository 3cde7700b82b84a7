"""The sources: what they return, and one clear line for whatever is wrong with the files."""

import contextlib
import io
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10

from cifar_resnet.data.sources import ImageSet, cifar10, digits, folder, read_image
from cifar_resnet.errors import InputError


def noise(seed: int, height: int = 32, width: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def well_formed(images: ImageSet, count: int) -> bool:
    return (
        images.images.shape == (count, 32, 32, 3)
        and images.images.dtype == np.uint8
        and images.images.flags.c_contiguous
        and images.labels.shape == (count,)
        and images.labels.dtype == np.int64
    )


# ---- digits


def test_digits_are_the_real_ones_enlarged_and_split_by_class() -> None:
    train, test = digits()
    assert well_formed(train, 1437)
    assert well_formed(test, 360)
    assert train.classes == test.classes == tuple("0123456789")
    counts = np.bincount(load_digits().target)
    assert np.array_equal(np.bincount(train.labels) + np.bincount(test.labels), counts)
    assert np.abs(np.bincount(test.labels) - counts / 5).max() <= 1
    every = np.concatenate([train.images, test.images])
    assert (every == every[..., :1]).all()
    assert every.min() == 0
    assert every.max() == 255
    # Block means of the enlarged image give the original back, to within the bicubic filter's overshoot.
    small = np.concatenate([train.images, test.images])[..., 0].reshape(-1, 8, 4, 8, 4).mean(axis=(2, 4)) * 16 / 255
    labels = np.concatenate([train.labels, test.labels])
    originals = load_digits()
    for index in range(0, 1797, 150):
        distance = np.abs(originals.images - small[index]).mean(axis=(1, 2))
        assert distance.min() < 1
        assert originals.target[distance.argmin()] == labels[index]


def test_digits_are_always_split_alike() -> None:
    for first, second in zip(digits(), digits(), strict=True):
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


def refused(root: Path, *words: str, resize: bool = False) -> None:
    with pytest.raises(InputError) as error:
        folder(str(root), resize)
    message = str(error.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == []


def test_folder_takes_pixels_and_labels_as_they_are(pets: Path) -> None:
    train, test = folder(str(pets))
    assert well_formed(train, 4)
    assert well_formed(test, 2)
    assert train.classes == test.classes == ("cat", "dog")
    assert train.labels.tolist() == [0, 0, 1, 1]
    assert test.labels.tolist() == [0, 1]
    for index, seed in enumerate((0, 1, 2, 3)):
        assert np.array_equal(train.images[index], noise(seed))


def test_folder_sorts_by_class_and_name_whatever_the_suffix(pets: Path, save: Save) -> None:
    grey = np.full((32, 32, 3), 40, np.uint8)
    save("train/cat/0.JPG", grey)
    save("train/cat/z.jpeg", grey + 40)
    (pets / "train" / "cat" / "notes.txt").write_text("not an image")
    (pets / "train" / ".cache").mkdir()
    train, _ = folder(str(pets))
    assert train.labels.tolist() == [0, 0, 0, 0, 1, 1]
    assert [round(float(image.mean())) for image in train.images[[0, 3]]] == [40, 80]


def test_folder_names_may_be_anything(tmp_path: Path, save: Save) -> None:
    for split in ("train", "test"):
        for seed, name in enumerate(("Käfer groß", "日本")):
            save(f"meine Bilder/{split}/{name}/ein Bild.png", noise(seed))
    train, _ = folder(str(tmp_path / "meine Bilder"))
    assert train.classes == ("Käfer groß", "日本")


def test_grey_and_palette_images_become_rgb(pets: Path, save: Save) -> None:
    levels = noise(7)[..., 0]
    for number, image in enumerate(
        (Image.fromarray(levels), Image.fromarray(levels > 127), Image.fromarray(noise(8)).quantize(16))
    ):
        save(f"train/cat/{number}.png", image)
        read = folder(str(pets))[0].images[number]
        assert np.array_equal(read, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(("height", "width"), [(31, 32), (64, 64), (48, 32), (1, 1)])
def test_another_size_needs_resize(pets: Path, save: Save, height: int, width: int) -> None:
    save("test/dog/z.png", noise(0, height, width))
    refused(pets, "z.png", f"{width}×{height}", "data.resize=true")
    assert well_formed(folder(str(pets), resize=True)[1], 3)


def test_resize_scales_and_centre_crops(tmp_path: Path, save: Save) -> None:
    wide = np.zeros((64, 192, 3), np.uint8)
    wide[:, 64:96], wide[:, 96:128] = (200, 0, 0), (0, 0, 200)  # the middle third; the rest is cropped away
    image = read_image(save("wide.png", wide), resize=True)
    assert np.array_equal(image[:, 2:14], np.broadcast_to([200, 0, 0], (32, 12, 3)))
    assert np.array_equal(image[:, 18:30], np.broadcast_to([0, 0, 200], (32, 12, 3)))
    small = noise(3)
    assert np.array_equal(read_image(save("small.png", small), resize=True), small)


def test_resize_turns_a_photograph_upright(save: Save) -> None:
    lying = np.zeros((64, 64, 3), np.uint8)
    lying[:, :32] = 255  # the top of the scene, for a camera that lay on its side
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90° clockwise
    image = read_image(save("photo.jpg", lying, exif=exif), resize=True)
    assert image[:12].min() > 240
    assert image[20:].max() < 15


@pytest.mark.parametrize(("mode", "suffix"), [("RGBA", "png"), ("LA", "png"), ("I;16", "png"), ("CMYK", "jpg")])
def test_other_colours_are_refused(pets: Path, save: Save, mode: str, suffix: str) -> None:
    image = Image.new(mode, (32, 32))
    save(f"train/dog/odd.{suffix}", image)
    refused(pets, f"odd.{suffix}", "convert it to RGB", *([mode] if mode != "I;16" else ["I;16"]))


def test_broken_images_are_named(pets: Path) -> None:
    for content in (b"", b"hello", (pets / "train/cat/a.png").read_bytes()[:700]):
        broken = pets / "test" / "cat" / "x.png"
        broken.write_bytes(content)
        refused(pets, str(broken), "repair or remove it")
    broken.unlink()
    broken.mkdir()
    refused(pets, str(broken), "repair or remove it")


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
        image = read_image(file, resize=data.draw(st.booleans()))
        assert image.shape == (32, 32, 3)
        assert image.dtype == np.uint8


def test_what_is_missing_is_said(pets: Path, tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "nowhere/train", "no such folder", "one folder a class")
    refused(pets / "train" / "cat" / "a.png", "a.png", "no such folder")
    (pets / "test" / "dog" / "a.png").unlink()
    refused(pets, "test/dog", "no JPEG or PNG images", "remove the folder")
    (pets / "test" / "dog").rmdir()
    refused(pets, "same class folders", "dog")
    (pets / "test" / "cow").mkdir()
    refused(pets, "cow, dog")


def test_empty_folders_and_a_single_class_are_refused(tmp_path: Path, save: Save) -> None:
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
    refused(tmp_path, "train has no class folders")
    for split in ("train", "test"):
        save(f"{split}/cat/a.png", noise(0))
    refused(tmp_path, "only the class 'cat'", "two or more")


def test_a_locked_folder_is_said(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def locked(path: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", locked)  # a mode of 000 does not stop root, who runs tests in a container
    refused(pets, "data.root=", "Permission denied", "check its permissions")


# ---- CIFAR-10, from an archive like the official one with six images a batch


def unreachable(official: SimpleNamespace) -> None:
    official.server.shutdown()
    official.server.server_close()


def fails(root: Path, *words: str) -> None:
    with pytest.raises(InputError) as error:
        cifar10(str(root))
    message = str(error.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == []


def listing(root: Path) -> set[str]:
    return {path.name for path in root.iterdir()}


def test_cifar10_is_downloaded_once(official: SimpleNamespace, tmp_path: Path) -> None:
    root = tmp_path / "some" / "data"
    train, test = cifar10(str(root))
    assert well_formed(train, 30)
    assert well_formed(test, 6)
    assert train.classes == test.classes == tuple(f"thing{number}" for number in range(10))
    for index, name in enumerate(official.names[:5]):
        part = slice(6 * index, 6 * index + 6)
        planes = official.batches[name]["data"].reshape(6, 3, 32, 32)  # the archive holds planes: RRR… GGG… BBB…
        assert np.array_equal(train.images[part], planes.transpose(0, 2, 3, 1))
        assert train.labels[part].tolist() == official.batches[name]["labels"]
    assert listing(root) == {CIFAR10.filename, CIFAR10.base_folder}

    unreachable(official)
    again, _ = cifar10(str(root))
    assert np.array_equal(again.images, train.images)


def test_cifar10_takes_the_archive_or_the_batches_alone(official: SimpleNamespace, tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    official.served.rename(root / CIFAR10.filename)
    assert len(cifar10(str(root))[0]) == 30
    (root / CIFAR10.filename).unlink()
    assert len(cifar10(str(root))[0]) == 30


def test_a_corrupt_archive_is_named_and_kept(official: SimpleNamespace, tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    for content in (b"", b"not an archive", official.served.read_bytes()[:-100]):
        (root / CIFAR10.filename).write_bytes(content)
        fails(root, CIFAR10.filename, "is corrupt", "delete it")
        assert listing(root) == {CIFAR10.filename}


def test_corrupt_batches_are_mended_from_the_archive(official: SimpleNamespace, tmp_path: Path) -> None:
    root = tmp_path / "data"
    expected, _ = cifar10(str(root))
    unreachable(official)
    (root / CIFAR10.base_folder / "data_batch_3").write_bytes(b"garbage")
    assert np.array_equal(cifar10(str(root))[0].images, expected.images)

    (root / CIFAR10.filename).unlink()
    (root / CIFAR10.base_folder / "batches.meta").write_bytes(b"garbage")
    fails(root, "not intact", "could not be downloaded")
    assert listing(root) == {CIFAR10.base_folder}


def test_a_corrupt_archive_does_not_matter_beside_good_batches(official: SimpleNamespace, tmp_path: Path) -> None:
    root = tmp_path / "data"
    cifar10(str(root))
    (root / CIFAR10.filename).write_bytes(b"half a download")
    assert len(cifar10(str(root))[0]) == 30


@pytest.mark.parametrize("gone", ["server", "file"])
def test_no_network_leaves_nothing_behind(official: SimpleNamespace, tmp_path: Path, gone: str) -> None:
    if gone == "server":
        unreachable(official)
    else:
        official.served.unlink()
    fails(
        tmp_path / "some" / "data",
        "could not be downloaded",
        f"put {CIFAR10.filename} there",
        "experiment=quickstart",
        "data=folder",
    )
    assert listing(tmp_path) == {"served"}


def test_a_download_of_something_else_leaves_nothing_behind(official: SimpleNamespace, tmp_path: Path) -> None:
    official.served.write_bytes(b"<html>please log in to this hotel's network</html>")
    fails(tmp_path / "data", "could not be downloaded")
    assert listing(tmp_path) == {"served"}


def test_a_silent_server_is_not_waited_for_for_ever(
    official: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = socket.getdefaulttimeout()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{silent.getsockname()[1]}/{CIFAR10.filename}")
        monkeypatch.setattr("cifar_resnet.data.sources.PATIENCE", 0.2)
        fails(tmp_path / "data", "timed out")
    assert socket.getdefaulttimeout() == before
    assert listing(tmp_path) == {"served"}


def test_an_interrupted_download_leaves_nothing_behind(
    official: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cifar10(str(tmp_path / "data"))
    assert listing(tmp_path) == {"served"}


def test_a_root_that_cannot_be_a_folder(official: SimpleNamespace, tmp_path: Path) -> None:
    fails(official.served, "is a file", "name the folder")
    fails(official.served / "data", "could not be downloaded", "Not a directory")
    assert official.served.is_file()
