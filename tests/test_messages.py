"""What is said while something is done: soon, on standard error, once, and with a bar where a terminal shows it."""

import io
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cifar_resnet.cli import command
from cifar_resnet.cli.overrides import CONFIGS
from cifar_resnet.data.folder import Folder
from cifar_resnet.errors import InputError
from cifar_resnet.messages import progress_bar, say

SCRIPTS = CONFIGS.parent / "scripts"
LOADING = "loading PyTorch and Lightning"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for folder in ("train/cat", "train/dog", "test/cat", "test/dog"):
        (tmp_path / "photos" / folder).mkdir(parents=True)
        for number in range(20):
            Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "photos" / folder / f"{number}.png")
    return tmp_path / "photos"


def test_the_package_says_it_too_and_only_where_it_is_so(tmp_path: Path) -> None:
    code = """
from cifar_resnet import evaluate
from cifar_resnet.errors import InputError
for _ in range(2):
    try:
        evaluate("ckpt=absent")
    except InputError:
        print("refused")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("refused\nrefused\n", f"{LOADING}\n")


@pytest.mark.parametrize(
    ("ranks", "says"),
    [
        ({}, True),
        ({"LOCAL_RANK": "0"}, True),
        ({"LOCAL_RANK": "1"}, False),
        ({"RANK": "2", "LOCAL_RANK": "0"}, False),
        ({"SLURM_PROCID": "1"}, False),
    ],
)
def test_the_first_device_speaks_for_all(ranks: dict[str, str], says: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ranks.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stderr", Terminal())
    say("reading [bold]5[/] images")
    assert sys.stderr.getvalue() == ("reading [bold]5[/] images\n" if says else "")
    assert progress_bar().disable is not says


def test_each_run_of_several_says_what_is_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for typed in (["-m", "seed=1,2", "data=digits"], ["-m", "seed=3"], ["seed=4"]):
        monkeypatch.setattr(sys, "argv", ["train.py", *typed])
        command.run("train", lambda config: say(f"trains seed {config.seed}"))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "run 1 of 2: seed=1", "trains seed 1", "run 2 of 2: seed=2", "trains seed 2",
        "run 1 of 1", "trains seed 3", "trains seed 4",
    ]  # fmt: skip


def test_reading_images_is_a_line_and_in_a_terminal_a_bar(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Folder(str(photos)).train().read(32)
    assert capsys.readouterr() == ("", f"reading 40 images from {photos}\n")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    Folder(str(photos)).train().read(32)
    assert terminal.getvalue().startswith(f"reading 40 images from {photos}\n")
    assert "40/40" in terminal.getvalue()
    assert capsys.readouterr().out == ""


def test_a_broken_image_ends_the_bar_and_is_all_that_is_said(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (photos / "train/cat/7.png").write_bytes(b"broken")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with pytest.raises(InputError, match=r"cat/7\.png cannot be read"):
        Folder(str(photos)).train().read(32)
    assert terminal.getvalue().count("\x1b[?25l") == terminal.getvalue().count("\x1b[?25h") == 1  # the cursor is back


def test_a_signal_while_images_are_read_ends_it_at_once(photos: Path, tmp_path: Path) -> None:
    large = tmp_path / "large.png"
    Image.effect_noise((2000, 2000), 50).save(large)
    for number in range(1000):  # minutes
        (photos / "train/cat" / f"z{number}.png").symlink_to(large)
    typed = ["data=folder", f"data.root={photos}", "data.resize=true"]
    run = subprocess.Popen(
        [sys.executable, SCRIPTS / "train.py", *typed],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert run.stderr is not None
    assert any(line.startswith("reading 1,0") for line in run.stderr)
    time.sleep(1)
    sent = time.monotonic()
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=60)
    assert (run.returncode, out) == (130, "")
    assert err.startswith("interrupted; it goes on with: ")
    assert err.count("\n") == 1
    assert time.monotonic() - sent < 20  # a moment, on a machine that does nothing else
