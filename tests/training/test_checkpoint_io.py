"""Whatever happens while a checkpoint is saved, the one before it can be read; and what is saved is what is read."""

import errno
import os
import subprocess
import sys
import tempfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from cifar_resnet.build import build_trainer
from cifar_resnet.cli.compose import compose
from cifar_resnet.errors import InputError, RunError
from cifar_resnet.training.checkpoint_io import AtomicCheckpointIO, read_contents, remove_leftovers
from cifar_resnet.training.fingerprint import fingerprint

OLD, NEW = ({"epoch": epoch, "state_dict": {"weight": torch.full((50_000,), float(epoch))}} for epoch in (1, 2))


def save(contents: dict[str, Any], path: Path) -> None:
    AtomicCheckpointIO().save_checkpoint(contents, path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Of a checkpoint, in a folder of its own."""
    save(OLD, tmp_path / "checkpoints" / "last.ckpt")
    return tmp_path / "checkpoints" / "last.ckpt"


def intact(path: Path) -> bool:
    """Whether the older checkpoint is all that is there."""
    return read_contents(path)["epoch"] == 1 and [file.name for file in path.parent.iterdir()] == [path.name]


def test_what_is_saved_is_what_is_loaded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/nowhere")
    monkeypatch.setattr(tempfile, "tempdir", None)
    save(NEW, path)
    loaded = AtomicCheckpointIO().load_checkpoint(path, weights_only=False)
    assert loaded.keys() == NEW.keys()
    assert torch.equal(loaded["state_dict"]["weight"], NEW["state_dict"]["weight"])
    assert torch.load(path, weights_only=True)["sha256"] == fingerprint(NEW) != fingerprint(OLD)
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]
    with pytest.raises(TypeError, match="storage_options"):
        AtomicCheckpointIO().save_checkpoint(NEW, path, {})
    with pytest.raises(InputError, match=r"absent\.ckpt: no such file"):
        AtomicCheckpointIO().load_checkpoint(path.with_name("absent.ckpt"))


def test_runs_save_so(tmp_path: Path) -> None:
    for command, options in (("train", ["data=digits"]), ("evaluate", ["ckpt=x"])):
        config = compose(command, *options, f"trainer.default_root_dir={tmp_path}", "trainer.accelerator=cpu")
        assert isinstance(build_trainer(config, [], "32-true").strategy.checkpoint_io, AtomicCheckpointIO)


STATE = torch.arange(24.0).reshape(2, 3, 2, 2)


def test_a_sum_tells_contents_apart() -> None:
    versioned = OrderedDict(a=1)
    versioned.version = 2  # type: ignore[attr-defined]
    different = [
        None, False, 0, 0.0, -0.0, "0", b"0", 1, True, 1.0, "1", "1.0", "", [], (), {}, set(), [[]], [""], ["a", "b"],
        ["ab"], ["b", "a"], ("a", "b"), {"a": "b"}, {"b": "a"}, {"a": 1, "b": 2}, {"b": 2, "a": 1}, OrderedDict(a=1),
        versioned, {"a": 1}, [["a"], "b"], ["a", ["b"]], torch.float32, torch.float16, torch.tensor(1.0), torch.ones(1),
        torch.ones(1, 1), torch.ones(1, dtype=torch.float64), torch.ones(1, dtype=torch.bfloat16), torch.zeros(1),
        torch.ones(1, dtype=torch.bool), torch.zeros(0), torch.zeros(0, 3), STATE, STATE.transpose(0, 1), "\ud800", "é",
        [torch.ones(1), torch.zeros(1)], [torch.zeros(1), torch.ones(1)],
    ]  # fmt: skip
    sums = [fingerprint(each) for each in different]
    assert len(set(sums)) == len(different)
    assert sums == [fingerprint(each) for each in different]


def test_a_sum_is_of_values_and_not_of_memory() -> None:
    expected = fingerprint(STATE)
    assert fingerprint(STATE.contiguous(memory_format=torch.channels_last)) == expected
    assert fingerprint(STATE.clone().requires_grad_()) == expected
    assert fingerprint(torch.cat([STATE, STATE])[2:]) == expected
    with pytest.raises(ValueError, match="more than its size allows"):
        fingerprint([STATE], most=90)


@pytest.mark.parametrize("call", ["open", "fsync", "replace", "mkdir"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EACCES, errno.EIO])
def test_a_save_that_fails_is_one_line_and_leaves_what_was(
    path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path if call in {"open", "mkdir"} else os, call, fail)
    with pytest.raises(RunError) as error:
        save(NEW, path)
    monkeypatch.undo()
    assert str(error.value).startswith(f"{path} cannot be saved ({os.strerror(code)}); the one before it is intact")
    assert f"go on with ckpt_path={path}" in str(error.value)
    assert str(error.value).isprintable()
    assert intact(path)


def test_a_first_save_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    for parent in ("file", "file/below"):
        with pytest.raises(RunError, match="there was none before it"):
            save(NEW, tmp_path / parent / "last.ckpt")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save(NEW, tmp_path / "last.ckpt")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_file_system_that_cannot_flush_a_folder_is_no_failure(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "open", lambda *_: (_ for _ in ()).throw(OSError(errno.EINVAL, "no")))
    save(NEW, path)
    monkeypatch.undo()
    assert read_contents(path)["epoch"] == 2


KILLED = """
import os, random, resource, signal, sys, time
from pathlib import Path
import torch
from cifar_resnet.errors import RunError
from cifar_resnet.training import checkpoint_io

path = Path(sys.argv[1])
old, new = ({"epoch": epoch, "state_dict": {"weight": torch.full((50_000,), float(epoch))}} for epoch in (1, 2))
io = checkpoint_io.AtomicCheckpointIO()
die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
write, fsync, replace = Path.open, os.fsync, os.replace

def before(owner, name, real):
    setattr(owner, name, lambda *given, **named: die())

def after(owner, name, real):
    setattr(owner, name, lambda *given, **named: (real(*given, **named), die()))

def midway(share):
    class Half:
        def __init__(self, file): self.file = file
        def __enter__(self): return self
        def __exit__(self, *_): self.file.close()
        def write(self, content): self.file.write(content[: int(share * len(content))]); self.file.flush(); die()
    Path.open = lambda *given: Half(write(*given))

def limited(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

def child(prepare, *given):
    pid = os.fork()
    if pid == 0:
        prepare(*given)
        try:
            io.save_checkpoint(new, path)
        except RunError as error:
            path.with_name("said").write_text(str(error))
            os._exit(3)
        os._exit(0)
    return pid

def report(name, pid, status):
    epoch = checkpoint_io.read_contents(path)["epoch"]
    left = len(list(path.parent.iterdir())) - 1
    said = path.with_name("said")
    line = said.read_text() if said.exists() else ""
    said.unlink(missing_ok=True)
    checkpoint_io.remove_leftovers(path.parent)
    clean = [file.name for file in path.parent.iterdir()] == [path.name]
    ended = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    print(name, ended, epoch, left, clean, line, sep="|")
    io.save_checkpoint(old, path)

cases = {f"{when.__name__} {name}": (when, owner, name, real) for when in (before, after)
         for owner, name, real in ((os, "fsync", fsync), (os, "replace", replace), (Path, "open", write))}
cases |= {f"midway {share}": (midway, share) for share in (0.0, 0.3, 0.999)}
cases |= {f"limited {size}": (limited, size) for size in (0, 1000, 100_000)}
torch.set_num_threads(1)
io.save_checkpoint(old, path)
for name, case in cases.items():
    pid = child(*case)
    report(name, pid, os.waitpid(pid, 0)[1])
rng = random.Random(0)
for number in range(25):
    pid = child(lambda: None)
    time.sleep(rng.uniform(0, 0.012))
    os.kill(pid, signal.SIGKILL)
    report(f"somewhere {number}", pid, os.waitpid(pid, 0)[1])
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What each of many saves left that were ended on the way, in processes of their own."""
    path = tmp_path_factory.mktemp("killed") / "last.ckpt"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(path)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return {name: rest for name, *rest in (line.split("|") for line in done.stdout.splitlines())}


def test_a_kill_leaves_one_whole_checkpoint(killed: dict[str, list[str]]) -> None:
    expected = {
        "before open": "1", "after open": "1", "midway 0.0": "1", "midway 0.3": "1", "midway 0.999": "1",
        "before fsync": "1", "after fsync": "1", "before replace": "1", "after replace": "2",
    }  # fmt: skip
    assert {name: killed[name][1] for name in expected} == expected
    assert {killed[name][0] for name in expected} == {"-9"}
    assert {killed[name][2] for name in expected} == {"0", "1"}  # some leave an unfinished file
    somewhere = [rest for name, rest in killed.items() if name.startswith("somewhere")]
    assert len(somewhere) == 25
    assert {epoch for _, epoch, *_ in somewhere} <= {"1", "2"}
    assert {clean for *_, clean, _ in killed.values()} == {"True"}  # which the next one removes


def test_a_limit_of_the_system_is_one_line(killed: dict[str, list[str]]) -> None:
    limited = [rest for name, rest in killed.items() if name.startswith("limited")]
    assert len(limited) == 3
    for code, epoch, left, clean, line in limited:
        assert (epoch, clean) == ("1", "True")
        if line:  # where even the line could be written
            assert (code, left) == ("3", "1")
            assert "cannot be saved (File too large); the one before it is intact" in line


@pytest.mark.skipif(sys.platform != "linux", reason="it mounts a file system of Linux")
def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(tmp_path)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this user may not mount a file system")
    try:
        path = tmp_path / "last.ckpt"
        save(OLD, path)
        with pytest.raises(RunError, match=r"cannot be saved \(No space left on device\); the one before it is intact"):
            save(NEW, path)
        assert intact(path)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_leftovers_of_ended_processes_alone_are_removed(path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    keep = [f".last.ckpt.{os.getpid()}.tmp", ".last.ckpt.1.tmp", "notes.tmp", ".notes.tmp", f".notes.{ended.pid}.tmp"]
    for name in (*keep, f".last.ckpt.{ended.pid}.tmp", f".last.ckpt.{10**30}.tmp"):
        path.with_name(name).write_text("")
    AtomicCheckpointIO().load_checkpoint(path)
    assert {file.name for file in path.parent.iterdir()} == {*keep, path.name}
    remove_leftovers(path.with_name("absent"))


def test_what_lightning_is_told_to_remove_is_one_checkpoint(path: Path, tmp_path: Path) -> None:
    """A resumed checkpoint holds the name of the file that is removed when a better one is saved."""
    folder, other, outside = tmp_path / "folder.ckpt", tmp_path / "notes.txt", tmp_path / "outside.ckpt"
    folder.mkdir()
    other.write_text("")
    outside.write_text("")
    for name in (folder, other, tmp_path / "absent.ckpt", path.parent / ".." / "outside.ckpt", "s3://bucket/a.ckpt"):
        AtomicCheckpointIO().remove_checkpoint(name)
    assert all(each.exists() for each in (path, folder, other, outside))
    AtomicCheckpointIO().remove_checkpoint(path)
    assert not path.exists()


def test_a_resumed_checkpoint_cannot_have_other_files_removed(tmp_path: Path) -> None:
    precious = tmp_path / "precious.ckpt"
    precious.write_text("")
    config = compose("train", "data=digits", f"trainer.default_root_dir={tmp_path}", "trainer.accelerator=cpu")
    trainer = build_trainer(config, [], "32-true")
    (keeper,) = (callback for callback in trainer.callbacks if isinstance(callback, ModelCheckpoint))  # type: ignore[attr-defined]
    keeper.dirpath = str(tmp_path / "checkpoints")
    leading = f"{keeper.dirpath}/../precious.ckpt"
    keeper.load_state_dict({"dirpath": "elsewhere", "best_model_path": leading})
    assert keeper.best_model_path == leading  # Lightning would have it removed
    trainer.strategy.remove_checkpoint(keeper.best_model_path)
    assert precious.exists()
