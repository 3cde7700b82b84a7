"""Images that do not fit in memory are refused before any of them is decoded."""

from pathlib import Path

import pytest
from conftest import DATA
from PIL import Image

from cifar_resnet.data import memory
from cifar_resnet.data.datamodule import ImageDataModule
from cifar_resnet.data.folder import Folder
from cifar_resnet.data.memory import check_memory, total_memory
from cifar_resnet.errors import InputError


def test_what_images_take_is_counted_to_the_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = 3 * (100 * (64 * 64 + 80 * 80) + 20 * 64 * 64)
    monkeypatch.setattr(memory, "total_memory", lambda: needed)
    check_memory(100, 20, 64)
    for train, others, devices in ((101, 20, 1), (100, 21, 1), (100, 20, 2)):
        with pytest.raises(InputError, match=r"data\.image_size=64"):
            check_memory(train, others, 64, devices)
    monkeypatch.setattr(memory, "total_memory", lambda: None)
    check_memory(10**12, 0, 64)


def test_each_machine_has_room_for_its_own_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("train/cat/a", "train/dog/a", "test/cat/a", "test/dog/a"):
        (tmp_path / name).parent.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    monkeypatch.setattr(memory, "total_memory", lambda: 2 * 3 * (2 * (32**2 + 40**2) + 2 * 32**2))
    ImageDataModule(Folder(str(tmp_path)), **DATA, devices=8, machines=4).setup("fit")
    with pytest.raises(InputError, match="images take"):
        ImageDataModule(Folder(str(tmp_path)), **DATA, devices=3).setup("fit")


def test_the_line_says_what_is_taken_and_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "total_memory", lambda: 8 * 10**9)
    with pytest.raises(InputError) as error:
        check_memory(100_000, 10_000, 256)
    assert str(error.value) == (
        "data.image_size=256: 110,000 images take 52.3 GB decoded, and this machine has 8.0 GB: lower it, or "
        "data.train_size"
    )


@pytest.mark.parametrize(("limit", "counts"), [("1000000\n", True), ("max\n", False), ("9" * 19, False), ("", False)])
def test_a_container_has_what_its_limit_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, counts: bool
) -> None:
    monkeypatch.setattr(memory, "LIMITS", ())
    machine = total_memory()
    (tmp_path / "memory.max").write_text(limit)
    monkeypatch.setattr(memory, "LIMITS", (str(tmp_path / "memory.max"), str(tmp_path / "nowhere")))
    assert total_memory() == (1_000_000 if counts else machine)


def test_a_system_that_does_not_say_what_it_has_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "LIMITS", ())
    monkeypatch.delattr("os.sysconf")
    assert total_memory() is None


@pytest.mark.parametrize(("stage", "images"), [("fit", "4 images"), ("test", "2 images")])
def test_nothing_is_decoded_that_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, images: str
) -> None:
    for name in ("train/cat/a", "train/dog/a", "test/cat/a", "test/dog/a"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / f"{name}.png").write_bytes(b"broken")
    monkeypatch.setattr(memory, "total_memory", lambda: 3 * 32 * 32)
    with pytest.raises(InputError, match=f"data.image_size=32: {images}"):
        ImageDataModule(Folder(str(tmp_path)), **DATA).setup(stage)


def test_only_what_is_used_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(4 if part == "train" else 1):
                Image.new("RGB", (8, 8)).save(tmp_path / part / name / f"{number}.png")
    monkeypatch.setattr(memory, "total_memory", lambda: 3 * (2 * (32**2 + 40**2) + 2 * 32**2))
    ImageDataModule(Folder(str(tmp_path)), **DATA | {"train_size": 2}).setup("fit")
    with pytest.raises(InputError, match="10 images"):
        ImageDataModule(Folder(str(tmp_path)), **DATA).setup("fit")
