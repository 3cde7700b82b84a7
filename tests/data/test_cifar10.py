"""CIFAR-10 is downloaded once, whoever asks, and one clear line says why it could not be."""

import multiprocessing
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import well_formed
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import download_url

from cifar_resnet.data.cifar10 import Cifar10
from cifar_resnet.data.sources import ImageSet
from cifar_resnet.errors import InputError


@pytest.fixture(autouse=True)
def _no_lock_is_left(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    temporary = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    yield
    assert list(temporary.iterdir()) == []


def read(root: Path) -> tuple[ImageSet, ImageSet]:
    source = Cifar10(str(root))
    source.prepare()
    return source.train(), source.test()


def unreachable(official: SimpleNamespace) -> None:
    official.server.shutdown()
    official.server.server_close()


def fails(root: Path, *words: str) -> None:
    with pytest.raises(InputError) as error:
        read(root)
    message = str(error.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == []


def listing(root: Path) -> set[str]:
    return {path.name for path in root.iterdir()}


def test_cifar10_is_downloaded_once(official: SimpleNamespace, tmp_path: Path) -> None:
    root = tmp_path / "some" / "data"
    train, test = read(root)
    assert well_formed(train, 10)
    assert well_formed(test, 2)
    assert train.classes == test.classes == tuple(f"thing{number}" for number in range(10))
    for index, name in enumerate(official.names[:5]):
        part = slice(2 * index, 2 * index + 2)
        planes = official.batches[name]["data"].reshape(2, 3, 32, 32)  # the archive holds planes: RRR… GGG… BBB…
        assert np.array_equal(train.images[part], planes.transpose(0, 2, 3, 1))
        assert train.labels[part].tolist() == official.batches[name]["labels"]
    assert listing(root) == {CIFAR10.filename, CIFAR10.base_folder}

    unreachable(official)
    again, _ = read(root)
    assert np.array_equal(again.images, train.images)


def test_cifar10_takes_the_archive_or_the_batches_alone(official: SimpleNamespace, tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    official.served.rename(root / CIFAR10.filename)
    assert len(read(root)[0]) == 10
    (root / CIFAR10.filename).unlink()
    assert len(read(root)[0]) == 10


def test_a_corrupt_archive_is_named_and_kept(official: SimpleNamespace, tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    for content in (b"", b"not an archive", official.served.read_bytes()[:-100]):
        (root / CIFAR10.filename).write_bytes(content)
        fails(root, CIFAR10.filename, "is corrupt", "delete it")
        assert listing(root) == {CIFAR10.filename}


def test_corrupt_batches_are_mended_from_the_archive(official: SimpleNamespace, tmp_path: Path) -> None:
    root = tmp_path / "data"
    expected, _ = read(root)
    unreachable(official)
    (root / CIFAR10.base_folder / "data_batch_3").write_bytes(b"garbage")
    assert np.array_equal(read(root)[0].images, expected.images)

    (root / CIFAR10.filename).unlink()
    (root / CIFAR10.base_folder / "batches.meta").write_bytes(b"garbage")
    fails(root, "not intact", "could not be downloaded")
    assert listing(root) == {CIFAR10.base_folder}


def test_a_corrupt_archive_does_not_matter_beside_good_batches(official: SimpleNamespace, tmp_path: Path) -> None:
    root = tmp_path / "data"
    read(root)
    (root / CIFAR10.filename).write_bytes(b"half a download")
    assert len(read(root)[0]) == 10


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
        monkeypatch.setattr("cifar_resnet.data.fetching.DOWNLOAD_TIMEOUT", 0.2)
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
        read(tmp_path / "data")
    assert listing(tmp_path) == {"served"}


def test_a_root_that_cannot_be_a_folder(official: SimpleNamespace, tmp_path: Path) -> None:
    fails(official.served, "is a file", "name the folder")
    fails(tmp_path / ("l" * 300), "File name too long")
    fails(official.served / "data", "could not be downloaded", "Not a directory")
    assert official.served.is_file()


def at_the_same_time(root: Path, log: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Prepare in three processes at once; return how many downloads began, and fail where a process hangs."""

    def slow(*arguments: Any) -> None:
        with log.open("a") as file:
            file.write("began\n")
        time.sleep(0.2)
        download_url(*arguments)

    monkeypatch.setattr("cifar_resnet.data.cifar10.download_url", slow)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=Cifar10(str(root)).prepare) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert all(process.exitcode is not None for process in processes)
    return len(log.read_text().splitlines())


def test_processes_that_start_together_download_once(
    official: SimpleNamespace, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, log = tmp_path / "some" / "data", tmp_path_factory.mktemp("log") / "log"
    assert at_the_same_time(root, log, monkeypatch) == 1
    assert listing(root) == {CIFAR10.filename, CIFAR10.base_folder}
    assert len(read(root)[0]) == 10


def test_processes_that_fail_together_leave_nothing_behind(
    official: SimpleNamespace, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    unreachable(official)
    assert at_the_same_time(tmp_path / "some" / "data", tmp_path_factory.mktemp("log") / "log", monkeypatch) == 3
    assert listing(tmp_path) == {"served"}


@pytest.mark.usefixtures("official")
def test_intact_batches_are_read_where_nothing_may_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read(tmp_path)

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    # a mode of 555 does not stop root, who runs tests in a container
    monkeypatch.setattr("cifar_resnet.data.fetching.FileLock", refuse)
    monkeypatch.setattr(Path, "mkdir", refuse)
    assert len(read(tmp_path)[0]) == 10
