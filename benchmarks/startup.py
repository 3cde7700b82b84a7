"""Seconds until `scripts/train.py` answers: --help, a refused override, the first line, the first optimizer step.

The first step comes after imports, reading scikit-learn's digits, building network, Trainer and logger; the bounds of
the schedule are given, so there is no search before it. Importing torch and Lightning alone is measured beside it. With
--root, the files of that folder are read too: alone, and ahead of a first step. With --beside, all is measured in
another checkout in turn. --rows chooses among the rows.
"""

import functools
import logging
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import measure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

HERE = Path(__file__).resolve().parents[1]
ONE_STEP = (
    "model.width=4",
    "schedule.lr_min=0.001",
    "schedule.lr_max=0.01",
    "schedule.peak_epoch=0.5",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=1",
    "trainer.limit_val_batches=0",
    "trainer.limit_test_batches=1",
    "trainer.log_every_n_steps=1",
    "gallery.count=0",
)
READ = """
import sys
try:
    from cifar_resnet.data.folder import Folder
except ImportError:  # an older checkout
    from cifar_resnet.data.sources import Folder
source = Folder(sys.argv[1])
for part in (source.train(), source.test()):
    if hasattr(part, "read"):  # an older checkout has read it by now
        part.read(32)
"""


class Spent(NamedTuple):
    """Seconds that passed, and seconds of all processors that a command and its children took."""

    seconds: float
    processor: float


def start(checkout: Path, *command: str) -> "subprocess.Popen[str]":
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen([sys.executable, *command], cwd=checkout, env=environment, text=True, **output)


def run(checkout: Path, *command: str, expected: int = 0) -> Spent:
    before, began = processor_seconds(), time.perf_counter()
    process = start(checkout, *command)
    said, _ = process.communicate()
    spent = Spent(time.perf_counter() - began, processor_seconds() - before)
    if process.returncode != expected:
        raise RuntimeError(f"{command} ended with exit code {process.returncode}, not {expected}:\n{said}")
    return spent


def processor_seconds() -> float:
    """Return what all children that have ended took."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def until_the_first_line(train: Path) -> Spent:
    with tempfile.TemporaryDirectory() as folder:
        before, began = processor_seconds(), time.perf_counter()
        process = start(train.parents[1], str(train), "data=digits", *ONE_STEP, f"trainer.default_root_dir={folder}")
        assert process.stdout is not None
        process.stdout.readline()
        seconds = time.perf_counter() - began
        process.kill()
        process.communicate()
    return Spent(seconds, processor_seconds() - before)


def until_the_first_step(train: Path, *typed: str) -> Spent:
    """Return when the loss of the first step was logged, by TensorBoard's clock, and what the whole command took."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.time()
        spent = run(train.parents[1], str(train), *typed, *ONE_STEP, f"trainer.default_root_dir={folder}")
        events = EventAccumulator(str(Path(folder, "lightning_logs", "version_0"))).Reload()
        return Spent(events.Scalars("step/loss")[0].wall_time - began, spent.processor)


def tasks_of(checkout: Path, root: Path | None) -> dict[str, Callable[[], Spent]]:
    train = checkout / "scripts" / "train.py"
    call = functools.partial(run, checkout)
    tasks: dict[str, Callable[[], Spent]] = {
        "train.py --help": lambda: call(str(train), "--help"),
        "train.py data.batchsize=64 (refused)": lambda: call(str(train), "data.batchsize=64", expected=2),
        "import torch, lightning": lambda: call("-c", "import torch, lightning.pytorch"),
        "train.py: first line": lambda: until_the_first_line(train),
        "train.py: first step": lambda: until_the_first_step(train, "data=digits"),
    }
    if root is not None:
        folder = str(root.resolve())
        files = ("data=folder", f"data.root={folder}")
        tasks |= {
            "files: read": lambda: call("-c", READ, folder),
            "files: first step": lambda: until_the_first_step(train, *files),
            "files: first step, data.train_size=2000": lambda: until_the_first_step(
                train, *files, "data.train_size=2000", "data.val_size=1000"
            ),
        }
    return tasks


def main() -> None:
    parser = measure.arguments(__doc__)
    parser.add_argument("--root", type=Path, help="folder of train/CLASS and test/CLASS, whose files are read too")
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="measure these alone, by their names in the table")
    parser.add_argument("--beside", type=Path, help="another checkout, such as one of an earlier commit")
    options = parser.parse_args()
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    checkouts = {"": HERE} | ({"beside: ": options.beside.resolve()} if options.beside else {})
    tasks = {
        prefix + name: task
        for name in options.rows or tasks_of(HERE, options.root)
        for prefix, checkout in checkouts.items()
        for task in [tasks_of(checkout, options.root)[name]]
    }
    measure.in_turn(tasks, 1)  # the first time, files come from the disk
    measured = measure.in_turn(tasks, options.repeats)
    rows = [
        {
            "what": name,
            "seconds": measure.spread([each.seconds for each in spent], 2),
            "processor seconds of the command": measure.spread([each.processor for each in spent], 2),
        }
        for name, spent in measured.items()
    ]
    measure.report("startup", f"Start-up: files in the disk cache, n = {options.repeats}", rows, measured, options)


if __name__ == "__main__":
    main()
