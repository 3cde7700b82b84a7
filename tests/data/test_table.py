"""A table of images: what it says is what is trained on, and what is wrong with it is one line."""

import contextlib
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from cifar_resnet.data.sources import ImageFiles
from cifar_resnet.data.table import Table
from cifar_resnet.errors import InputError

TABLE = "path,label\n" + "".join(f"{name}/{number}.png,{name}\n" for name in ("dog", "cat") for number in range(5))
GIVEN = "path,label,split\ncat/0.png,cat,train\ncat/1.png,cat,test\ndog/0.png,dog,train\n"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for shade, name in enumerate(("cat", "dog")):
        (tmp_path / name).mkdir()
        for number in range(5):
            Image.new("RGB", (8, 8), (shade, number, 0)).save(tmp_path / name / f"{number}.png")
    return tmp_path


def table(root: Path, content: str | bytes) -> Table:
    file = root / "labels.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return Table(str(file))


def test_the_test_is_split_off_where_the_table_does_not_say(photos: Path) -> None:
    source = table(photos, TABLE)
    train, test = source.train(), source.test()
    assert train.classes == test.classes == ("cat", "dog")
    assert train.files is not None
    assert test.files is not None
    assert {*train.files, *test.files} == {line.partition(",")[0] for line in TABLE.split()[1:]}
    assert np.bincount(test.labels).tolist() == [1, 1]
    assert source.settled() == {"test_files": list(test.files)}
    images = train.read(8)
    for name, label, pixel in zip(train.files, images.labels, images.images[:, 0, 0], strict=True):
        assert pixel.tolist() == [label, int(name[4]), 0]
        assert name.startswith(images.classes[label])


def test_the_table_may_say_what_each_image_is_for(photos: Path) -> None:
    source = table(photos, GIVEN)
    assert (source.train().files, source.test().files) == (("cat/0.png", "dog/0.png"), ("cat/1.png",))
    assert source.train().classes == source.test().classes == ("cat", "dog")
    assert source.settled() == {}


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + GIVEN.encode(),
        GIVEN.replace("\n", "\r\n"),
        GIVEN.replace(",", ", "),
        GIVEN.replace("cat/0.png", '"./cat/0.png"').rstrip(),
        GIVEN.replace("\n", ",by me\n").replace("split,by me", "split,note"),
    ],
)
def test_tables_of_other_programs_are_understood(photos: Path, content: str | bytes) -> None:
    assert table(photos, content).train().files == ("cat/0.png", "dog/0.png")


def test_images_may_be_anywhere(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("tables")
    away = os.path.relpath(photos, elsewhere)
    source = table(elsewhere, GIVEN.replace("dog/", f"{photos}/dog/").replace("cat/", f"{away}/cat/"))
    assert source.train().read(8).images[:, 0, 0].tolist() == [[0, 0, 0], [1, 0, 0]]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "has no column path but nothing: begin with a line path,label"),
        ("path;label\ncat/0.png;cat\n", "has no column path but path;label: begin with a line path,label, with commas"),
        ("path,class\ncat/0.png,cat\n", "has no column label but path, class"),
        ("path,label\n", "has 0 images, 0 classes"),
        ("path,label\ncat/0.png,cat\n", "has 1 images, 1 classes: a classifier needs two or more"),
        (b"\x89PNG\r\n\x1a\n", "cannot be read as a table (it is no text in UTF-8)"),
        ('path,label\n"cat/0.png,cat\n', "cannot be read as a table (unexpected end of data)"),
        ("path,label\ncat/0.png\n", "line 2: no label"),
        ("path,label\n,cat\n", "line 2: no path"),
        ("path,label\ncat,0.png,cat\n", "line 2: more values than columns"),
        ("path,label\ncat/0.png,c\x00t\n", "line 2: the label c\\x00t cannot be printed"),
        ("path,label\ncat/9.png,cat\n", "line 2: cat/9.png: no such file in"),
        ("path,label\ncat,cat\n", "line 2: cat: no such file in"),
        (TABLE + "./cat/1.png,dog\n", "line 12: ./cat/1.png is in an earlier line too"),
        (GIVEN.replace("cat,test", "cat,valid"), "line 3: the split 'valid' is neither train nor test"),
        (GIVEN.replace("cat,test", "cat"), "line 3: the split '' is neither train nor test"),
        (GIVEN.replace("test", "train"), "no image has the split test"),
        (GIVEN.replace("dog,train", "dog,test"), "the class 'dog' has no image to train with"),
        ("path,label\ncat/0.png,cat\ncat/1.png,cat\ndog/0.png,dog\n", "cannot split the class 'dog', which has one"),
    ],
)
def test_what_is_wrong_with_a_table_is_one_line(photos: Path, content: str | bytes, words: str) -> None:
    source = table(photos, content)
    with pytest.raises(InputError) as error:
        source.train(), source.test()
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_table_that_cannot_be_opened_is_said(photos: Path) -> None:
    os.mkfifo(photos / "pipe.csv")
    for name, words in (("nowhere.csv", "No such file"), ("cat", "Is a directory"), ("pipe.csv", "a pipe")):
        with pytest.raises(InputError, match=rf"data.csv=.*/{name} cannot be read as a table \(.*{words}"):
            Table(str(photos / name)).train()


CELL = st.sampled_from(["path", "label", "split", "train", "test", "cat", "dog", "cat/0.png", "dog/0.png", "dog/1.png"])
LINES = st.lists(st.lists(CELL, max_size=4).map(",".join), max_size=6).map("\n".join)


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(st.binary(max_size=80), LINES.map(str.encode), LINES.map(lambda lines: f"path,label\n{lines}".encode()))
)
@example(b"path,label\n" + b"x" * 200_000)
def test_any_file_is_a_table_or_one_line(photos: Path, content: bytes) -> None:
    source = table(photos, content)
    with contextlib.suppress(InputError):
        try:
            images = source.train()
        except InputError as error:
            assert "\n" not in str(error)  # noqa: PT017  either may be right
            raise
        assert isinstance(images, ImageFiles)
        assert all((images.root / name).is_file() for name in images.files)
