"""Several devices, as processes on a CPU: interrupted together, resumed to the bit, and none waits for a dead one."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import free_port, make_classifier, make_data, make_trainer, start

from cifar_resnet.analysis.metrics import evaluate_predictions
from cifar_resnet.callbacks.outputs import OutputCollector
from cifar_resnet.cli.overrides import CONFIGS
from cifar_resnet.data.sources import Digits

COMMAND = [
    sys.executable, str(CONFIGS.parent / "scripts" / "train.py"), "data=digits", "data.train_size=200",
    "data.batch_size=32", "model.width=2", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.strategy=ddp",
    "trainer.log_every_n_steps=2", "schedule.peak_epoch=1", "schedule.lr_min=0.01", "schedule.lr_max=0.3",
    "gallery.count=0",
]  # fmt: skip
LONG = "trainer.max_epochs=400"  # so that it is under way when it is interrupted
LONGEST_WAIT = 60  # seconds, for the others after one device has died


def begin(*typed: str) -> "subprocess.Popen[str]":
    return subprocess.Popen([*COMMAND, *typed], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def read_until(run: "subprocess.Popen[str]", words: str) -> None:
    assert run.stdout is not None
    assert any(words in line for line in run.stdout), "the run ended before"


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def ends(pid: int) -> bool:
    """Whether a process ends before the others may wait no longer."""
    limit = time.monotonic() + LONGEST_WAIT
    while Path(f"/proc/{pid}/status").exists() and time.monotonic() < limit:
        if "Z (zombie)" in Path(f"/proc/{pid}/status").read_text():
            return True
        time.sleep(0.2)
    return not Path(f"/proc/{pid}").exists()


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def weights(version: int) -> dict[str, Any]:
    return torch.load(f"lightning_logs/version_{version}/checkpoints/last.ckpt", weights_only=True)["state_dict"]


def test_a_signal_to_the_first_device_ends_all_where_nothing_is_lost() -> None:
    run = begin("trainer.max_epochs=4")
    said, _ = run.communicate(timeout=300)
    assert run.returncode == 0, said
    run = begin("trainer.max_epochs=4")
    read_until(run, "epoch   1/")
    run.send_signal(signal.SIGTERM)
    said, _ = run.communicate(timeout=300)
    assert (run.returncode, "Traceback" in said) == (143, False), said
    assert said.count("it goes on with") == 1
    run = begin("trainer.max_epochs=4", "ckpt_path=last")
    said, _ = run.communicate(timeout=300)
    assert (run.returncode, "goes on after step" in said) == (0, True), said
    assert sorted(os.listdir("lightning_logs")) == ["version_0", "version_1"]
    one, other = weights(0), weights(1)
    assert all(torch.equal(values, other[name]) for name, values in one.items())


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="processes are found by way of /proc")
@pytest.mark.parametrize("dies", [lambda run, other: other, lambda run, other: run], ids=["second", "first"])
def test_no_device_waits_for_a_dead_one(dies: Callable[[int, int], int]) -> None:
    run = begin(LONG)
    read_until(run, "epoch   2/")
    (other,) = children(run.pid)
    dead = dies(run.pid, other)
    os.kill(dead, signal.SIGKILL)
    assert ends(run.pid)
    assert ends(other)
    said, _ = run.communicate(timeout=10)
    assert run.returncode != 0
    assert "has ended" in said or "terminated with code" in said, said
    assert "Traceback" not in said


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="processes are found by way of /proc")
def test_torchrun_ends_all_where_a_process_has_died() -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launcher, *COMMAND[1:], LONG]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    read_until(run, "epoch   2/")
    first, second = children(run.pid)
    os.kill(first, signal.SIGKILL)
    assert ends(run.pid)
    assert ends(second)
    said, _ = run.communicate(timeout=10)
    assert run.returncode == 1
    assert "Signal 9 (SIGKILL)" in said, said


def evaluate(rank: int, devices: int, sizes: tuple[int, ...], port: int) -> None:
    """Evaluate so many images as one of several processes; the first writes down what it comes to."""
    if devices > 1:
        os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    counts = []
    for size in sizes:
        data, outputs = make_data(test=size), OutputCollector(flip=True)
        trainer = make_trainer(Path(), devices=devices, strategy="ddp" if devices > 1 else "auto", callbacks=[outputs])
        (metrics,) = trainer.test(make_classifier(data), datamodule=data, verbose=False)
        assert data.test is not None
        found = evaluate_predictions(outputs.probabilities, outputs.labels, data.classes, outputs.mirrored)
        if trainer.is_global_zero:
            assert outputs.labels.tolist() == data.test.labels.tolist()
            means = [round(metrics["test/accuracy"], 6), round(metrics["test/loss"], 4)]
            counts.append([found.images, found.confusion, found.flip_accuracy.value, *means])
            Path("counts.json").write_text(json.dumps(counts))
        trainer.strategy.barrier()  # so that none has ended while another still looks for it


def evaluated(devices: int, *sizes: int) -> list[Any]:
    """What an evaluation of so many images by so many processes comes to."""
    start(evaluate, devices, devices, sizes, free_port())
    counts = json.loads(Path("counts.json").read_text())
    Path("counts.json").unlink()  # the next are not compared with themselves
    return counts


def test_an_evaluation_by_several_processes_counts_each_image_once() -> None:
    sizes = (10_000, 360, 7)  # three processes divide none of them
    alone = evaluated(1, *sizes)
    assert len(alone) == 3
    for devices in (2, 3):
        assert evaluated(devices, *sizes) == alone


def test_two_nodes_leave_one_run() -> None:
    meeting = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{free_port()}"]
    own = ["trainer.devices=1", "trainer.num_nodes=2", "trainer.sync_batchnorm=true", "trainer.max_epochs=1"]
    command = [sys.executable, "-m", "torch.distributed.run", *meeting, *COMMAND[1:], *own, "schedule.peak_epoch=0.5"]
    nodes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)]
    said = [node.communicate(timeout=240)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert os.listdir("lightning_logs") == ["version_0"]
    summary = json.loads(Path("lightning_logs/version_0/summary.json").read_text())
    assert (summary["data"], summary["epochs"], summary["batch_size"]) == ("Digits", 1, 32)
    assert summary["misclassified"] == round((1 - summary["test_accuracy"]) * len(Digits().test()))
    assert sorted("look at it" in each for each in said) == [False, True]
