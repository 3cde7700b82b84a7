"""A run that is ended, killed or broken at any moment goes on in its own folder, to the bit as if nothing had been."""

import json
import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from filelock import FileLock
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from cifar_resnet import interruption, train
from cifar_resnet.callbacks.evaluator import Evaluator
from cifar_resnet.callbacks.gallery import MisclassifiedGallery
from cifar_resnet.cli.overrides import CONFIGS
from cifar_resnet.errors import Finished, InputError, RunError
from cifar_resnet.interruption import Answer, Interrupted
from cifar_resnet.lr.search import Probe
from cifar_resnet.results import record
from cifar_resnet.training.classifier import ImageClassifier

SMALL = [
    "data=digits",
    "data.train_size=200",
    "data.batch_size=32",
    "model.width=2",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=2",
    "trainer.log_every_n_steps=2",
    "schedule.peak_epoch=1",
    "lr_search.num_training=30",
    "gallery.count=1",
]
"""Six steps an epoch."""
GIVEN = ["schedule.lr_min=0.01", "schedule.lr_max=0.3"]
EVERY_STEP = "checkpoint.minutes=1e-9"
TRICKS = [
    *("model=resnet9", "model.celu=0.3", "model.ghost=8", "model.norm_scale=false", "model.whiten=true"),
    *("data.flip=alternating", "averaging.decay=0.9", "averaging.every=2"),
    *("schedule.lr_end=0", "schedule.flat_epochs=0.3", "schedule.bias_factor=64", "classifier.label_smoothing=0.2"),
]
LOGS = Path("lightning_logs")
RUN = LOGS / "version_0"


class Killed(BaseException):
    """What a test raises in the place of a SIGKILL: nothing between it and the test takes it for its own."""


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def _listening(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = {signum: signal.getsignal(signum) for signum in interruption.SIGNALS}
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    interruption.listen()
    yield
    interruption.forget()
    for signum, handler in before.items():
        signal.signal(signum, handler)


def act_at(monkeypatch: pytest.MonkeyPatch, owner: type | ModuleType, hook: str, call: int, act: Any) -> None:
    """Act in the beginning of the n-th call of a method or a function, counted from 1; once."""
    original, calls = getattr(owner, hook), [0]

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            act()
        return original(self, *args, **kwargs)

    monkeypatch.setattr(owner, hook, counted)


def kill() -> None:
    raise Killed


def kill_at(patch: pytest.MonkeyPatch, owner: type | ModuleType, hook: str, call: int, *words: str) -> None:
    """Train until the n-th call of a method, which raises."""
    with patch.context() as broken:
        act_at(broken, owner, hook, call, kill)
        with pytest.raises(Killed):
            train(*words)


def wait_for_the_next_second() -> None:
    """As a new process would, whose imports take seconds: TensorBoard reads its files in the order of their seconds."""
    time.sleep(1.01 - time.time() % 1)


def go_on(*words: str) -> None:
    wait_for_the_next_second()
    train(*words, "ckpt_path=last")


def send(signum: int) -> Any:
    return lambda: os.kill(os.getpid(), signum)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a run of the same words that nothing interrupted; each is run once."""

    @cache
    def run(*words: str) -> Path:
        folder = train(*words, f"trainer.default_root_dir={tmp_path_factory.mktemp('whole')}").folder
        assert folder is not None
        return folder

    return run


def contents(run: Path) -> dict[str, Any]:
    """What two runs have in common if one is the other, interrupted: all of the checkpoint but paths and times."""
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    history = checkpoint["callbacks"].pop("History")
    checkpoint["epochs"] = [{**epoch, "seconds": 0} for epoch in history["epochs"]]
    checkpoint["images"] = history["images"]
    for state in checkpoint["callbacks"].values():
        for name in [name for name in state if "path" in name or "dir" in name or "models" in name]:
            state.pop(name)
        state.pop("current_score", None)  # of the last epoch that was the best, which Lightning does not restore
    return {key: value for key, value in checkpoint.items() if key != "sha256"}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Every scalar that TensorBoard shows of a run, with its steps; but for the time."""
    found = {}
    for part in filter(Path.is_dir, (run, run / "train", run / "val", run / "test")):
        shown = EventAccumulator(str(part), size_guidance={"scalars": 0}).Reload()
        tags = [tag for tag in shown.Tags()["scalars"] if "second" not in tag]
        found |= {f"{part.name}/{tag}": [(event.step, event.value) for event in shown.Scalars(tag)] for tag in tags}
    return found


def figures(run: Path) -> dict[str, Any]:
    """What ``summary.json`` says, times left out."""
    summary = json.loads((run / "summary.json").read_text())
    return {key: value for key, value in summary.items() if "second" not in key and key != "resumed"}


def assert_nothing_was_lost(whole: Path, resumed: int) -> None:
    """Whether the one run here is the one that nothing interrupted."""
    assert list(LOGS.iterdir()) == [RUN]
    assert same(contents(whole), contents(RUN))
    assert figures(whole) == figures(RUN)
    assert json.loads((RUN / "summary.json").read_text())["resumed"] == resumed
    assert scalars(whole) == scalars(RUN)


@pytest.mark.parametrize(
    ("step", "typed"),
    [
        (1, []),
        (6, []),  # the last of an epoch
        (9, ["data.num_workers=2"]),
        (4, ["trainer.accumulate_grad_batches=3"]),
        (3, ["data.val_size=40"]),
        (5, ["trainer.precision=bf16-mixed"]),
        (7, TRICKS),
        (5, ["optimizer=muon", "schedule.bias_factor=4"]),
    ],
)
@pytest.mark.usefixtures("_listening")
def test_a_signal_ends_a_run_where_nothing_is_lost(
    step: int, typed: list[str], whole: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*SMALL, *GIVEN, *typed]
    act_at(monkeypatch, ImageClassifier, "training_step", step, send(signal.SIGTERM))
    with pytest.raises(Interrupted) as stopped, interruption.answering(Answer.RAISE):
        train(*words)
    assert stopped.value.exit_code == 143
    interruption.forget()
    go_on(*words)
    assert_nothing_was_lost(whole(*words), resumed=1)


@pytest.mark.parametrize(
    ("owner", "hook", "call", "resumed"),
    [
        (Probe, "training_step", 7, 0),
        (ImageClassifier, "training_step", 1, 0),
        (ImageClassifier, "training_step", 5, 1),
        (ImageClassifier, "validation_step", 1, 1),
        (ImageClassifier, "training_step", 12, 1),
        (ImageClassifier, "test_step", 1, 1),
        (Evaluator, "on_test_epoch_end", 1, 1),
        (MisclassifiedGallery, "on_test_epoch_end", 1, 1),
        (record, "write_report", 1, 1),
    ],
)
def test_a_kill_at_any_moment_loses_nothing(
    owner: type | ModuleType,
    hook: str,
    call: int,
    resumed: int,
    whole: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = [*SMALL, EVERY_STEP]
    kill_at(monkeypatch, owner, hook, call, *words)
    go_on(*words)
    assert_nothing_was_lost(whole(*words), resumed)


@pytest.mark.parametrize(
    ("owner", "hook", "call"),
    [(ImageClassifier, "training_step", 5), (ImageClassifier, "validation_step", 2), (ImageClassifier, "test_step", 1)],
)
def test_a_kill_loses_nothing_of_a_mean_of_the_weights(
    owner: type, hook: str, call: int, whole: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind the last epoch Lightning trains no more, and the test still has to have the mean."""
    words = [*SMALL, *GIVEN, *TRICKS, EVERY_STEP]
    kill_at(monkeypatch, owner, hook, call, *words)
    go_on(*words)
    assert_nothing_was_lost(whole(*words), resumed=1)


@pytest.mark.parametrize("left", [[], [".lock"], [".lock", ".config.yaml"]])
def test_a_kill_before_the_run_is_written_down_leaves_no_folder_behind(left: list[str]) -> None:
    RUN.mkdir(parents=True)
    for name in left:
        (RUN / name).write_text("data: {so")
    assert train(*SMALL, *GIVEN, "ckpt_path=last").folder == RUN
    assert list(LOGS.iterdir()) == [RUN]


def test_a_kill_within_the_writing_down_is_one_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(Path, "replace", lambda *_: kill())
        with pytest.raises(Killed):
            train(*SMALL, *GIVEN)
    assert not (RUN / "config.yaml").exists()
    assert train(*SMALL, *GIVEN, "ckpt_path=last").folder == RUN


@pytest.mark.usefixtures("_listening")
def test_a_network_with_dropout_draws_on_where_it_was(
    whole: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*SMALL, *GIVEN, f"model._target_={__name__}.Dropping", "~model.width"]
    act_at(monkeypatch, ImageClassifier, "training_step", 9, send(signal.SIGINT))
    with pytest.raises(Interrupted), interruption.answering(Answer.RAISE):
        train(*words)
    interruption.forget()
    go_on(*words)
    assert_nothing_was_lost(whole(*words), resumed=1)


class Dropping(torch.nn.Sequential):
    """A network that draws random numbers at every step."""

    def __init__(self, num_classes: int):
        super().__init__(torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(3 * 32 * 32, num_classes))


def test_a_run_can_be_broken_off_again_and_again(whole: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*SMALL, EVERY_STEP]
    for _ in range(3):
        wait_for_the_next_second()
        kill_at(monkeypatch, ImageClassifier, "training_step", 4, *words, "ckpt_path=last")
    go_on(*words)
    assert_nothing_was_lost(whole(*words), resumed=3)


@pytest.mark.usefixtures("_listening")
def test_a_signal_that_comes_where_nothing_can_be_raised_comes_again(capfd: pytest.CaptureFixture[str]) -> None:
    def callback(_: object) -> None:
        send(signal.SIGTERM)()
        time.sleep(0)  # where Python answers it

    watched = [Killed()]
    kept = weakref.ref(watched[0], callback)

    def work() -> None:
        watched.clear()
        time.sleep(5)

    with pytest.raises(Interrupted), interruption.answering(Answer.RAISE):
        work()
    assert kept() is None
    assert capfd.readouterr().err == ""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="workers inherit nothing here")
def test_workers_that_outlive_a_killed_run_do_not_hold_its_lock() -> None:
    RUN.mkdir(parents=True)
    lock = f"from filelock import FileLock; lock = FileLock({str(RUN / '.lock')!r}); lock.acquire(); "
    outlived = "import os, time; os.fork() or (time.sleep(20), os._exit(0)); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", lock + outlived], check=False)
    with FileLock(RUN / ".lock", timeout=3):  # the worker may not have let go of it yet, but does not keep it
        pass


@pytest.mark.parametrize("script", sorted((CONFIGS.parent / "scripts").glob("*.py")), ids=lambda file: file.stem)
def test_an_interrupt_before_anyone_listens_is_no_traceback(script: Path, tmp_path: Path) -> None:
    (tmp_path / "cifar_resnet").mkdir()
    (tmp_path / "cifar_resnet" / "__init__.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGINT)")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")  # 130 in a shell


def test_last_is_the_newest_unfinished_run_of_the_same_configuration(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*SMALL, *GIVEN]
    for seed in ("seed=0", "seed=1", "seed=0"):
        kill_at(monkeypatch, ImageClassifier, "training_step", 8, *words, seed)
    with FileLock(LOGS / "version_2" / ".lock"):  # another process runs it
        assert train(*words, "ckpt_path=last", "data.num_workers=1").folder == RUN
    assert train(*words, "ckpt_path=last").folder == LOGS / "version_2"
    with pytest.raises(Finished, match="lightning_logs/version_2 is finished"):
        train(*words, "ckpt_path=last")
    capsys.readouterr()
    assert train(*words, "ckpt_path=last", "seed=2").folder == LOGS / "version_3"
    assert "no unfinished run of this configuration, so a new one begins" in capsys.readouterr().out


def test_a_run_of_an_earlier_version_goes_on_though_it_had_fewer_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*SMALL, *GIVEN]
    kill_at(monkeypatch, ImageClassifier, "training_step", 8, *words)
    config = yaml.safe_load((RUN / "config.yaml").read_text())
    del config["checkpoint"], config["gallery"]["count"]
    (RUN / "config.yaml").write_text(yaml.safe_dump(config))
    assert train(*words, "ckpt_path=last", "model.width=3").folder == LOGS / "version_1"
    assert train(*words, "ckpt_path=last").folder == RUN


def test_a_path_leads_to_its_own_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*SMALL, *GIVEN]
    kill_at(monkeypatch, ImageClassifier, "training_step", 8, *words)
    words.append(f"ckpt_path={RUN}/checkpoints/last.ckpt")
    with FileLock(RUN / ".lock"), pytest.raises(InputError, match="version_0 is being run by another process"):
        train(*words)
    assert train(*words).folder == RUN
    with pytest.raises(Finished, match="version_0 is finished"):
        train(*words)


@pytest.mark.parametrize(("typed", "seen"), [([], "the loss is nan"), ([EVERY_STEP], "the weights are not finite")])
def test_a_training_that_diverges_is_no_result(typed: list[str], seen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: ImageClassifier, images: Tensor) -> Tensor:
        return self.network(self.normalize(images)) * float("nan")

    act_at(
        monkeypatch,
        ImageClassifier,
        "training_step",
        9,
        lambda: monkeypatch.setattr(ImageClassifier, "forward", broken),
    )
    with pytest.raises(RunError, match=rf"diverged at step (9|10) \(epoch 2\), at a rate of .*{seen}.*schedule.lr_max"):
        train(*SMALL, *GIVEN, *typed)
    assert not (RUN / "summary.json").exists()
    weights = torch.load(RUN / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"].values()
    assert all(values.isfinite().all() for values in weights)


def test_a_search_that_fails_leaves_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    act_at(monkeypatch, Probe, "training_step", 2, lambda: (_ for _ in ()).throw(InputError("no use")))
    with pytest.raises(InputError, match="no use"):
        train(*SMALL)
    assert not LOGS.exists()


def test_a_full_disk_ends_in_one_line_and_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    """Here every file may have 400 kB: enough for all but the gallery in TensorBoard's."""
    words = ["data=digits", "data.train_size=200", "model.width=2", "trainer.max_epochs=2", "schedule.peak_epoch=1"]
    script = str(CONFIGS.parent / "scripts" / "train.py")
    code = "import resource as r, runpy, sys; r.setrlimit(r.RLIMIT_FSIZE, (400_000, 400_000)); sys.argv = sys.argv[1:]"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; runpy.run_path(sys.argv[0], run_name='__main__')", script, *words, *GIVEN],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert [line for line in done.stderr.splitlines() if not line.startswith("epoch")][-1].startswith("train.py: ")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / RUN / "summary.json").exists()
    assert train(*words, *GIVEN, "ckpt_path=last").folder == RUN
