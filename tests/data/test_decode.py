"""Many files are decoded as one at a time is, whoever does it, and an end of it leaves nobody behind."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import read_data
from PIL import Image

from cifar_resnet.data import decode as decoding
from cifar_resnet.data.decode import FORKED_FROM, decode
from cifar_resnet.data.folder import Folder
from cifar_resnet.data.images import read
from cifar_resnet.errors import InputError, RunError

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="files are decoded by threads here")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """As many files as processes are started for; some pictures of them over and over."""
    folder = tmp_path_factory.mktemp("many")
    for number in range(20):
        noise = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
    return [folder / f"{number % 20}.png" for number in range(FORKED_FROM + 7)]


@pytest.mark.parametrize("count", [0, 1, 2, 130, FORKED_FROM, FORKED_FROM + 7])
def test_every_file_is_where_it_belongs(files: list[Path], count: int) -> None:
    images = decode(files[:count], 32, True)
    assert images.shape == (count, 32, 32, 3)
    for index in range(0, count, 97):
        assert np.array_equal(images[index], read(files[index]).pixels)
    assert not count or np.array_equal(images[-1], read(files[count - 1]).pixels)


@pytest.mark.parametrize("count", [30, FORKED_FROM])
def test_the_first_bad_file_is_named(files: list[Path], count: int) -> None:
    broken = [Path("none.png") if index in (20, count - 1) else file for index, file in enumerate(files[:count])]
    broken[25] = Path("neither.png")
    with pytest.raises(InputError, match=r"^none.png cannot be read as an image"):
        decode(broken, 32, True)


@LINUX
def test_signals_are_heard_again_where_no_process_can_be_started(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> int:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refuse)
    with pytest.raises(RunError, match=r"^the system starts no process to read images: .*unavailable: close others"):
        decode(files, 32, True)
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & {signal.SIGINT, signal.SIGTERM}


@LINUX
def test_a_process_that_the_system_ends_is_said(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "read", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(RunError, match="is memory short"):
        decode(files, 32, True)


@LINUX
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_signal_ends_all_processes_in_a_line(signum: int, code: int, files: list[Path], tmp_path: Path) -> None:
    """Sent to the whole group, as a terminal does, where it is SIGINT."""
    script = f"""
import sys, time
from pathlib import Path
from cifar_resnet import interruption
from cifar_resnet.cli.command import run
from cifar_resnet.data import decode
interruption.listen()
class Slow:
    size, pixels = (1, 1), 0
    def __init__(self, file, side):
        Path(sys.argv[0] + ".begun").touch()
        time.sleep(0.02)
decode.read = Slow
sys.argv = [{str(tmp_path / "train")!r}, "data=digits"]
run("train", lambda config: decode.decode([Path()] * {FORKED_FROM}, 1, True))
"""
    child = subprocess.Popen(
        [sys.executable, "-c", script],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not (tmp_path / "train.begun").exists():
        time.sleep(0.05)
    (os.killpg if signum == signal.SIGINT else os.kill)(child.pid, signum)
    _, err = child.communicate(timeout=30)  # until the last process has closed its ends
    assert child.returncode == code
    assert "Traceback" not in err
    assert err.count("it goes on with") == (signum != signal.SIGKILL)


def test_what_is_not_used_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("train/cat", "train/dog", "test/cat", "test/dog"):
        (tmp_path / name).mkdir(parents=True)
        for number in range(10):
            Image.new("RGB", (32, 32), (number, 0, 0)).save(tmp_path / name / f"{number}.png")
    source, read_files = Folder(str(tmp_path)), list[Path]()
    monkeypatch.setattr(decoding, "read", lambda file, side: (read_files.append(file), read(file, side))[1])
    data = read_data(source, train_size=4, val_size=6)
    assert (len(data.train), len(data.val), len(data.test)) == (4, 6, 20)
    assert len(read_files) == len(set(read_files)) == 4 + 6 + 20


@LINUX
def test_a_process_whose_parent_was_killed_before_it_looked_ends_too() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    code = f"import time; from cifar_resnet import interruption as i; i.end_with_parent({gone.pid}); time.sleep(60)"
    done = subprocess.run([sys.executable, "-c", code], timeout=30, check=False)
    assert done.returncode == 1
