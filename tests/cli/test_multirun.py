"""Several runs by Hydra's launchers, and values that Optuna chooses: each is one of many, and none ends the others."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cifar_resnet.cli import command, multirun
from cifar_resnet.cli.overrides import ends
from cifar_resnet.errors import RunError

PARALLEL = ["joblib", "submitit_local"]
SCRIPT = """
import os
from pathlib import Path
from types import SimpleNamespace

from cifar_resnet.cli.command import run
from cifar_resnet.errors import RunError


def job(config):
    print(f"seed {config.seed} is run by {os.getpid()}", flush=True)
    os.system(f"echo from a process of seed {config.seed}")
    if config.seed == 2:
        raise RunError("it fails by design")
    return SimpleNamespace(folder=Path("lightning_logs", config.name))


def compare(folders):
    print(*folders)


print("started", os.getpid())
run("train", job, afterwards=compare)
"""


@pytest.mark.parametrize("launcher", PARALLEL)
def test_runs_at_the_same_time_have_processes_and_outputs_of_their_own(launcher: str, tmp_path: Path) -> None:
    pytest.importorskip(multirun.PLUGINS["launcher"][launcher], reason="the extra sweep is not installed")
    (tmp_path / "script.py").write_text(SCRIPT)
    typed = ["-m", "seed=1,2,3", "data=folder", "data.root=it's here", f"hydra/launcher={launcher}"]
    done = subprocess.run(
        [sys.executable, "script.py", *typed], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    listed = ["train.py: 1 of 3 runs failed", "run 2 of 3: seed=2: it fails by design"]
    assert done.stderr.splitlines()[-2:] == listed
    started, folders = done.stdout.splitlines()
    assert folders.split() == ["lightning_logs/seed=1", "lightning_logs/seed=3"]
    (sweep,) = (tmp_path / "lightning_logs" / "sweeps").iterdir()
    for seed in (1, 2, 3):
        log = (sweep / f"run_{seed}.log").read_text()
        assert f"seed {seed} is run by " in log
        assert f"from a process of seed {seed}\n" in log
        assert started.split()[1] not in log.split()
        assert json.loads((sweep / f"run_{seed}.json").read_text())["words"] == [f"seed={seed}"]
    if launcher == "joblib":
        assert "run 3 of 3: seed=3: begins; what it says is in run_3.log" in done.stderr


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Search with a job whose accuracy is best at a momentum of 0.7, and which fails above 0.95."""
    pytest.importorskip(multirun.PLUGINS["sweeper"]["optuna"], reason="the extra sweep is not installed")
    monkeypatch.chdir(tmp_path)

    def job(config: Any) -> object:
        momentum = config.optimizer.momentum
        if momentum > 0.95:
            raise RunError("it fails by design")
        return SimpleNamespace(folder=Path("lightning_logs", config.name), val_accuracy=1 - abs(momentum - 0.7))

    def search(*typed: str, score: Any = lambda result: result.val_accuracy) -> None:
        words = ["train.py", "-m", "data=digits", "hydra/sweeper=optuna", *typed]
        monkeypatch.setattr(sys, "argv", words)
        command.run("train", job, score=score)

    return search


def test_a_search_goes_by_the_validation_and_says_what_was_best(
    search: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    values = "optimizer.momentum=choice(0.2,0.5,0.8,0.99)"
    sampler = "hydra/sweeper/sampler=grid"
    with pytest.raises(SystemExit) as stopped:
        search("data.val_size=100", values, sampler, "hydra.sweeper.n_trials=4")
    assert "1 of 4 runs failed" in str(stopped.value.code)
    assert str(stopped.value.code).endswith("optimizer.momentum=0.99: it fails by design")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["90.00%", "80.00%", "50.00%"]
    assert lines[4].startswith("best: python train.py data=digits data.val_size=100 ")
    assert lines[4].endswith(" optimizer.momentum=0.8")


def test_a_search_over_a_range_stays_in_it(search: Any, capsys: pytest.CaptureFixture[str]) -> None:
    search("data.val_size=100", "optimizer.momentum=interval(0.5,0.9)", "hydra.sweeper.n_trials=3")
    best = capsys.readouterr().out.splitlines()[-1]
    assert 0.5 <= float(best.rpartition("=")[2]) <= 0.9
    assert len(list(Path("lightning_logs").glob("sweeps/*/run_*.json"))) == 3


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("optimizer.momentum=0.5,0.9", "goes by images held out of training, never by the test's: set data.val_size"),
        ("data.val_size=100 optimizer.momentum=interval(0.5,1.5)", "optimizer.momentum=1.5: expected"),
        ("data.val_size=100 optimizer.momntum=0.5,0.9", "did you mean optimizer.momentum?"),
        ("data.val_size=100 seed=1,2 hydra.sweeper.trials=3", "hydra: Could not override 'hydra.sweeper.trials'"),
    ],
)
def test_a_search_that_cannot_be_is_refused(
    search: Any, typed: str, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        search(*typed.split())
    out, err = capfd.readouterr()
    assert (stopped.value.code, out) == (2, "")
    assert words in err.splitlines()[-1]
    assert "Traceback" not in err


def test_what_has_no_score_is_not_searched(search: Any, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        search("data.val_size=100", "seed=1,2", score=None)
    assert capfd.readouterr().err == "train.py: hydra/sweeper=optuna: train.py has nothing to search by\n"


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("hydra/launcher=slurm", "no such choice; choose hydra/launcher=basic | joblib | submitit_local | submitit_"),
        ("hydra/launcher=joblib", "needs more packages: pip install 'cifar-resnet[sweep]'"),
        ("hydra.launcher.jobs=2", "hydra: Could not override 'hydra.launcher.jobs'"),
    ],
)
def test_a_launcher_that_cannot_be_is_refused(
    typed: str, words: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(multirun.PLUGINS["launcher"], "joblib", "hydra_plugins.not_here")
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "seed=1,2", *typed.split()])
    with pytest.raises(SystemExit) as stopped:
        command.run("train", pytest.fail)
    assert stopped.value.code == 2
    assert words in capfd.readouterr().err


def test_runs_at_the_same_time_have_one_device_each(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(multirun.PLUGINS["launcher"]["joblib"], reason="the extra sweep is not installed")
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "seed=1,2", "trainer.devices=2", "hydra/launcher=joblib"])
    with pytest.raises(SystemExit):
        command.run("train", pytest.fail)
    assert "trainer.devices=2: hydra/launcher=joblib gives each run one device" in capfd.readouterr().err


def test_a_mistake_in_one_run_keeps_its_traceback_and_ends_no_other(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    seen: list[int] = []

    def job(config: Any) -> None:
        seen.append(config.seed)
        if config.seed == 1:
            raise ZeroDivisionError("by zero")

    environment = dict(os.environ)
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "seed=1,2"])
    with pytest.raises(SystemExit) as stopped:
        command.run("train", job)
    assert seen == [1, 2]
    assert str(stopped.value.code).endswith("run 1 of 2: seed=1: ZeroDivisionError: by zero")
    assert "Traceback" in capfd.readouterr().err
    assert dict(os.environ) == environment


@settings(max_examples=20)
@given(st.integers(0, 50), st.integers(51, 100))
def test_a_range_is_tried_at_both_ends_before_a_search(low: int, high: int) -> None:
    typed = [f"seed=int(interval({low},{high}))", "data=digits", f"model.width=range({low + 1},{high + 1},1)"]
    first, last = ends(typed, "train")
    assert first == (f"seed={low}", "data=digits", f"model.width={low + 1}")
    assert last == (f"seed={high}", "data=digits", f"model.width={high}")
