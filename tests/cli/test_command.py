"""The scripts as processes: quick to answer, without the heavy packages, with the right exit code."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import make_classifier, make_data, make_trainer
from lightning.pytorch import Callback

from cifar_resnet.cli import command
from cifar_resnet.cli.overrides import CONFIGS

SCRIPTS = CONFIGS.parent / "scripts"
HEAVY = ("torch", "lightning", "albumentations", "sklearn", "matplotlib", "torchvision", "torchmetrics")
LONGEST_ANSWER = 10
"""Seconds; it takes less than one on an idle machine, but tests share theirs."""


def run_script(folder: Path, script: str, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-X", "importtime", str(SCRIPTS / script), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=timeout, check=False)


def imported(done: subprocess.CompletedProcess[str]) -> set[str]:
    """Return the packages that ``-X importtime`` reports."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


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
    assert done.returncode == 2
    assert "torch" in imported(done)
    assert imported(done).isdisjoint({"albumentations", "tensorboard"})


def test_bad_images_end_in_one_line(tmp_path: Path) -> None:
    """From the command to the source and back, past all that Hydra and Lightning would say."""
    (tmp_path / "my photos" / "train").mkdir(parents=True)
    done = run_script(tmp_path, "train.py", "data=folder", "data.root=my photos")
    assert done.returncode == 2
    assert said(done) == [
        "train.py: my photos/train has no class folders; put the images of each class into a folder of its own"
    ]
    assert "torch" in imported(done)  # else the other tests could not tell
    assert [path.name for path in tmp_path.rglob("*")] == ["my photos", "train"]


def test_an_interrupted_training_ends_quietly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Lightning catches Ctrl-C, tears down, ignores further ones and exits by itself."""

    class Impatient(Callback):
        def on_train_batch_end(self, *_: object) -> None:
            raise KeyboardInterrupt

    def train(config: object) -> None:
        data = make_data()
        make_trainer(tmp_path, callbacks=[Impatient()]).fit(make_classifier(data), data)

    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as stopped:
        command.run("train", train)
    assert stopped.value.code == 130
    err = capfd.readouterr().err
    assert "Traceback" not in err
    assert "Error executing job" not in err
