"""The data sets of torchvision: from the files of each layout to images, and a line for what cannot be had."""

import hashlib
import pickle
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import well_formed
from PIL import Image
from scipy.io import savemat
from torchvision import datasets
from torchvision.datasets import CIFAR100, SVHN

from cifar_resnet.data.of_torchvision import OPTIONS, Torchvision
from cifar_resnet.data.sources import ImageFiles, ImageSet
from cifar_resnet.errors import InputError

COUNT, CLASSES = 10, ("apple", "bee", "cup")


@pytest.fixture(autouse=True)
def _no_lock_is_left(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    temporary = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    yield
    assert list(temporary.iterdir()) == []


def pixels(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (COUNT, *shape), np.uint8)


LABELS = np.arange(COUNT) % 3


def write_cifar100(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layout of the official archive, unpacked: pickles of planes."""
    contents: dict[str, Any] = {
        name: {"data": pixels(seed, 3072), "fine_labels": LABELS.tolist(), "coarse_labels": [0] * COUNT}
        for seed, name in enumerate(("train", "test"))
    }
    contents["meta"] = {"fine_label_names": list(CLASSES), "coarse_label_names": ["thing"]}
    folder = root / CIFAR100.base_folder
    folder.mkdir(parents=True)
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content))
    sums = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in contents}
    monkeypatch.setattr(CIFAR100, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": sums["meta"]})


def test_cifar100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar100(tmp_path, monkeypatch)
    source = Torchvision("CIFAR100", str(tmp_path))
    source.prepare()
    for seed, part in enumerate((source.train(), source.test())):
        assert isinstance(part, ImageSet)
        assert well_formed(part, COUNT)
        assert np.array_equal(part.images, pixels(seed, 3, 32, 32).transpose(0, 2, 3, 1))
        assert (part.labels.tolist(), part.classes) == (LABELS.tolist(), CLASSES)
    assert source.settled() == {}


def test_grey_becomes_rgb(tmp_path: Path) -> None:
    folder = tmp_path / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for seed, name in enumerate(("train", "t10k")):
        images, labels = pixels(seed, 28, 28), np.arange(10, dtype=np.uint8)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 0x803, *images.shape) + images.tobytes())
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x801, COUNT) + labels.tobytes())
    source = Torchvision("FashionMNIST", str(tmp_path))
    source.prepare()
    train = source.train()
    assert isinstance(train, ImageSet)
    assert np.array_equal(train.images, np.stack([pixels(0, 28, 28)] * 3, axis=-1))
    assert (len(train.classes), train.classes[0]) == (10, "T-shirt/top")
    assert train.read(32).images.shape == (COUNT, 32, 32, 3)


def test_planes_become_rgb_and_classes_without_names_are_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lists = {}
    for seed, part in enumerate(("train", "test")):
        file = tmp_path / f"{part}_32x32.mat"
        digits = np.where(LABELS == 0, 10, LABELS)[:, None]
        savemat(file, {"X": pixels(seed, 32, 32, 3).transpose(1, 2, 3, 0), "y": digits})
        lists[part] = ["http://127.0.0.1:9/x", file.name, hashlib.md5(file.read_bytes()).hexdigest()]
    monkeypatch.setattr(SVHN, "split_list", lists)
    source = Torchvision("SVHN", str(tmp_path))
    source.prepare()
    for seed, part in enumerate((source.train(), source.test())):
        assert isinstance(part, ImageSet)
        assert well_formed(part, COUNT)
        assert np.array_equal(part.images, pixels(seed, 32, 32, 3))
        assert (part.labels.tolist(), part.classes) == (LABELS.tolist(), ("0", "1", "2"))


def test_pictures_in_files_are_read_as_any_are_and_divided_where_they_come_undivided(tmp_path: Path) -> None:
    for shade, name in enumerate(("Forest", "River")):
        (tmp_path / "eurosat" / "2750" / name).mkdir(parents=True)
        for number in range(5):
            Image.new("RGB", (64, 48), (shade, number, 0)).save(tmp_path / f"eurosat/2750/{name}/{number}.png")
    source = Torchvision("EuroSAT", str(tmp_path))
    source.prepare()
    train, test = source.train(), source.test()
    assert isinstance(train, ImageFiles)
    assert isinstance(test, ImageFiles)
    assert (len(train), len(test), train.classes) == (8, 2, ("Forest", "River"))
    assert [name[:13] for name in test.files] == ["eurosat/2750/"] * 2
    assert train.read(32).images[:, 0, 0, 0].tolist() == train.labels.tolist()
    assert source.settled() == {"test_files": list(test.files)}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_data_set_is_asked_for_in_its_own_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """And without a network each is refused in a line, with nothing left behind."""

    def unreachable(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    with pytest.raises(InputError, match=rf"data.name={name}: it is not in .* \(.*\): fetch it elsewhere") as error:
        Torchvision(name, str(tmp_path / "some" / "data")).prepare()
    assert "\n" not in str(error.value)
    assert "no network" in str(error.value) or "Error downloading" in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_what_is_fetched_arrives_whole_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar100(tmp_path / "elsewhere", monkeypatch)
    broken = tmp_path / "data" / CIFAR100.base_folder / "train"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"half")
    fetched = []

    def download(self: CIFAR100) -> None:
        fetched.append(self.root)
        if not Path(self.root, CIFAR100.base_folder).exists():
            (tmp_path / "elsewhere" / CIFAR100.base_folder).rename(Path(self.root, CIFAR100.base_folder))

    monkeypatch.setattr(CIFAR100, "download", download)
    for _ in range(2):
        Torchvision("CIFAR100", str(tmp_path / "data")).prepare()
    assert len(fetched) == 2  # a call for each part
    assert [path.name for path in (tmp_path / "data").iterdir()] == [CIFAR100.base_folder]
    assert len(Torchvision("CIFAR100", str(tmp_path / "data")).train()) == COUNT


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("CIFAR-100", "CIFAR100, CIFAR10"),
        ("cifar100", "CIFAR100, CIFAR10"),
        ("fashion-mnist", "FashionMNIST"),
        ("Cityscapes", ""),
    ],
)
def test_a_wrong_name_is_answered_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(InputError, match=f"data.name={name}: no such data set of labelled images; nearest: {near}"):
        Torchvision(name)


def test_each_data_set_is_there() -> None:
    assert [name for name in OPTIONS if not hasattr(datasets, name)] == []
