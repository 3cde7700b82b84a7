"""The scripts as processes: quick to answer, without the heavy packages, with the right exit code."""

import errno
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import make_classifier, make_data, make_trainer
from lightning.pytorch import Callback

from cifar_resnet.cli import command
from cifar_resnet.cli.overrides import CONFIGS
from cifar_resnet.errors import Finished, InputError, RunError
from cifar_resnet.interruption import Interrupted

SCRIPTS = CONFIGS.parent / "scripts"
HEAVY = ("torch", "lightning", "albumentations", "sklearn", "matplotlib", "torchvision", "torchmetrics")
LOADING = "loading PyTorch and Lightning"
LONGEST_ANSWER = 10
"""Seconds; it takes less than one on an idle machine, but tests share theirs."""


def run_script(folder: Path, script: str, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-X", "importtime", str(SCRIPTS / script), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=timeout, check=False)


def imported(done: subprocess.CompletedProcess[str]) -> set[str]:
    """Return the packages that ``-X importtime`` reports."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


def first_line(done: subprocess.CompletedProcess[str]) -> str:
    """Return what was said before torch was imported, which takes seconds."""
    before, torch, _ = done.stderr.partition(" torch")
    assert torch
    return "\n".join(line for line in before.splitlines() if not line.startswith("import time:"))


def said(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if not line.startswith("import time:")]


@pytest.mark.parametrize(
    ("script", "arguments", "line"),
    [
        ("train.py", ["data.batchsize=4"], "train.py: data.batchsize: no such key; did you mean data.batch_size?"),
        ("lr_find.py", ["schedule.lr_max=high"], "lr_find.py: schedule.lr_max=high: expected a number"),
        ("train.py", ["--epochs", "3"], "train.py: --epochs: no such option"),
    ],
)
def test_a_mistake_is_answered_at_once(tmp_path: Path, script: str, arguments: list[str], line: str) -> None:
    started = time.monotonic()
    done = run_script(tmp_path, script, *arguments)
    assert time.monotonic() - started < LONGEST_ANSWER
    assert done.returncode == 2
    assert done.stdout == ""
    assert [answer.startswith(line) for answer in said(done)] == [True]
    assert imported(done).isdisjoint(HEAVY)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("script", ["train.py", "lr_find.py"])
def test_help_is_shown_at_once(tmp_path: Path, script: str) -> None:
    started = time.monotonic()
    done = run_script(tmp_path, script, "--help")
    assert time.monotonic() - started < LONGEST_ANSWER
    assert done.returncode == 0
    assert said(done) == []
    assert f"python scripts/{script} experiment=quickstart" in done.stdout
    assert imported(done).isdisjoint(HEAVY)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("script", "arguments"), [("predict.py", ["images=x.png"]), ("export.py", [])])
def test_what_does_not_train_does_not_wait_for_what_training_needs(
    tmp_path: Path, script: str, arguments: list[str]
) -> None:
    done = run_script(tmp_path, script, "ckpt=absent.ckpt", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert first_line(done) == LOADING
    assert imported(done).isdisjoint({"albumentations", "tensorboard"})


def test_bad_images_end_in_one_line(tmp_path: Path) -> None:
    """From the command to the source and back, past all that Hydra and Lightning would say."""
    (tmp_path / "my photos" / "train").mkdir(parents=True)
    done = run_script(tmp_path, "train.py", "data=folder", "data.root=my photos")
    assert done.returncode == 2
    assert first_line(done) == LOADING
    assert said(done) == [
        LOADING,
        "train.py: my photos/train has no class folders; put the images of each class into a folder of its own; "
        "no class can be called train or test",
    ]
    assert "torch" in imported(done)  # else the other tests could not tell
    assert [path.name for path in tmp_path.rglob("*")] == ["my photos", "train"]


def test_an_interrupted_training_ends_quietly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Impatient(Callback):
        def on_train_batch_end(self, *_: object) -> None:
            raise Interrupted(signal.SIGTERM)

    def train(config: object) -> None:
        data = make_data()
        make_trainer(tmp_path, callbacks=[Impatient()]).fit(make_classifier(data), data)

    monkeypatch.setattr(sys, "argv", ["scripts/train.py", "model.width=2", "ckpt_path=last"])
    with pytest.raises(SystemExit) as stopped:
        command.run("train", train)
    assert stopped.value.code == 143
    said = capfd.readouterr().err.strip()
    assert said == "interrupted; it goes on with: python scripts/train.py model.width=2 ckpt_path=last"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("seed: no"), 2, "train.py: seed: no"),
        (RunError("a.ckpt cannot be saved"), "train.py: a.ckpt cannot be saved", ""),
        (OSError(errno.ENOSPC, "No space left on device", "x.png"), "train.py: x.png cannot be written", ""),
        (OSError(errno.EROFS, "Read-only file system"), "train.py: the run folder cannot be written", ""),
        (Interrupted(signal.SIGINT), 130, "interrupted; it goes on with: python train.py ckpt_path=last"),
    ],
)
def test_what_ends_a_command_is_a_line_and_an_exit_code(
    error: BaseException,
    code: int | str,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def end(config: object) -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(SystemExit) as stopped:
        command.run("train", end)
    assert str(stopped.value.code).startswith(str(code))  # a text is printed, and means 1
    assert capfd.readouterr().err.strip() == line


def test_what_is_done_already_is_no_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """In a sweep too, so that the same command goes on with one that was interrupted."""

    def finished(config: Any) -> None:
        raise Finished(f"version_{config.seed} is finished")

    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "seed=3,4"])
    command.run("train", finished)
    assert capsys.readouterr().out == "version_3 is finished\nversion_4 is finished\n"


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_command_starts_ends_it_quietly(signum: int, tmp_path: Path) -> None:
    code = f"import sys; sys.argv = ['train.py', 'seed=1']; exec(open({str(SCRIPTS / 'train.py')!r}).read())"
    hook = f"""
import os, sys
from cifar_resnet import interruption
interruption.listen()
class Stop:
    def find_spec(self, name, *_):
        if name == "pydantic":
            os.kill(os.getpid(), {int(signum)})
sys.meta_path.insert(0, Stop())
"""
    done = subprocess.run(
        [sys.executable, "-c", hook + code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (128 + signum, "", "")
