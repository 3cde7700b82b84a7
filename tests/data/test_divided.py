"""Images that come undivided: the test is split off once, class by class, and can be had again."""

from pathlib import Path

import numpy as np
import pytest
from conftest import read_data
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cifar_resnet.data.divided import draw_test
from cifar_resnet.data.folder import Folder
from cifar_resnet.errors import InputError


def write(root: Path, **counts: int) -> Path:
    """Make images of one colour each: ``write(root, cat=10, dog=5)``."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(root / name / f"{number:03}.png")
    return root


def files(folder: Folder) -> tuple[set[str], set[str]]:
    train, test = folder.train().files, folder.test().files
    assert train is not None
    assert test is not None
    return {*train}, {*test}


@given(st.lists(st.integers(2, 40), min_size=1, max_size=5), st.floats(0.01, 0.99), st.integers(0, 2**32 - 1))
def test_each_class_gives_its_share_and_keeps_an_image(counts: list[int], share: float, seed: int) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    drawn = draw_test(labels, share, seed)
    assert drawn.tolist() == sorted({*drawn.tolist()}) == draw_test(labels, share, seed).tolist()
    for count, taken in zip(counts, np.bincount(labels[drawn], minlength=len(counts)), strict=True):
        assert 1 <= taken < count
        assert abs(taken - share * count) <= 1


def test_class_folders_alone_are_divided_by_share_and_seed(tmp_path: Path) -> None:
    root = str(write(tmp_path, cat=10, dog=5, owl=2))
    train, test = files(Folder(root))
    assert train | test == {path.relative_to(root).as_posix() for path in tmp_path.rglob("*.png")}
    assert not train & test
    assert sorted(name[:3] for name in test) == ["cat", "cat", "dog", "owl"]
    assert files(Folder(root, seed=0)) == (train, test)
    assert files(Folder(root, seed=1)) != (train, test)
    assert len(files(Folder(root, test_share=0.5))[1]) == 5 + 2 + 1
    data = read_data(Folder(root), batch_size=4)
    assert data.classes == ("cat", "dog", "owl")
    assert (len(data.train or ()), len(data.test or ())) == (13, 4)


def test_what_is_settled_gives_the_same_test_images_whatever_is_added(tmp_path: Path) -> None:
    folder = Folder(str(write(tmp_path, cat=10, dog=5)))
    train, test = files(folder)
    write(tmp_path / "cat" / "..", owl=3)
    Image.new("RGB", (8, 8)).save(tmp_path / "cat" / "new.png")
    assert files(folder) == (train, test)
    assert files(Folder(folder.root)) != (train, test)
    again = Folder(folder.root, test_share=0.5, seed=7, **folder.settled())
    assert files(again) == (train | {"owl/000.png", "owl/001.png", "owl/002.png", "cat/new.png"}, test)
    assert again.settled() == folder.settled()


def test_what_comes_divided_has_nothing_to_settle(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write(tmp_path / part, cat=2, dog=2)
    assert Folder(str(tmp_path)).settled() == {}


def test_test_images_that_are_gone_are_said(tmp_path: Path) -> None:
    folder = Folder(str(write(tmp_path, cat=10, dog=5)))
    settled = folder.settled()
    for name in settled["test_files"][1:]:
        (tmp_path / name).unlink()
    with pytest.raises(
        InputError, match=rf"^{settled['test_files'][1]}: no such image; of the 3 .* 2 are not"
    ) as error:
        Folder(folder.root, **settled).test()
    assert "\n" not in str(error.value)


def test_what_cannot_be_divided_is_said(tmp_path: Path) -> None:
    root = str(write(tmp_path, cat=2, dog=1))
    with pytest.raises(InputError, match=r"data.test_share=0.2 cannot split the class 'dog', which has one image"):
        Folder(root).train()
    alone = Folder(root, test_files=["dog/000.png"])
    assert len(alone.test()) == 1
    with pytest.raises(InputError, match="the class 'dog' has no image to train with"):
        alone.train()
