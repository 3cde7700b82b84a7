"""Seconds until `scripts/train.py` answers: --help, a refused override, and the first optimizer step.

The first step comes after imports, reading scikit-learn's digits, building network, Trainer and logger; the bounds of
the schedule are given, so there is no search before it. Importing torch and Lightning alone is measured beside it.
"""

import logging
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import measure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TRAIN = Path(__file__).resolve().parents[1] / "scripts" / "train.py"
ONE_STEP = (
    "experiment=quickstart",
    "model.width=4",
    "schedule.lr_min=0.001",
    "schedule.lr_max=0.01",
    "schedule.peak_epoch=0.5",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=1",
    "trainer.limit_val_batches=0",
    "trainer.limit_test_batches=1",
    "trainer.log_every_n_steps=1",
)


def seconds_to_exit(*command: str, expected: int = 0) -> float:
    start = time.perf_counter()
    process = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if process.returncode != expected:
        raise RuntimeError(f"{command} ended with exit code {process.returncode}, not {expected}:\n{process.stderr}")
    return seconds


def seconds_to_first_step() -> float:
    """Return when the loss of the first step was logged, by TensorBoard's clock."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.time()
        seconds_to_exit(str(TRAIN), *ONE_STEP, f"trainer.default_root_dir={folder}")
        events = EventAccumulator(str(Path(folder, "lightning_logs", "version_0"))).Reload()
        return events.Scalars("step/loss")[0].wall_time - start


def main() -> None:
    options = measure.arguments(__doc__).parse_args()
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    tasks = {
        "scripts/train.py --help": lambda: seconds_to_exit(str(TRAIN), "--help"),
        "scripts/train.py data.batchsize=64 (refused)": lambda: seconds_to_exit(
            str(TRAIN), "data.batchsize=64", expected=2
        ),
        "import torch, lightning": lambda: seconds_to_exit("-c", "import torch, lightning.pytorch"),
        "scripts/train.py: first optimizer step": seconds_to_first_step,
    }
    measure.in_turn(tasks, 1)  # the first time, files come from the disk
    measured = measure.in_turn(tasks, options.repeats)
    rows = [{"what": name, "seconds": measure.spread(seconds, 2)} for name, seconds in measured.items()]
    measure.report("startup", f"Start-up: files in the disk cache, n = {options.repeats}", rows, measured, options)


if __name__ == "__main__":
    main()
