"""What safety costs: a checkpoint saved and read by this project and by Lightning's own way, and the hooks of a step.

Lightning's own writes through a temporary file and verifies nothing. This project's writes beside the old file, waits
for the disk, and puts a sum of the contents in, which it compares on reading. The hooks are all that a step of training
does for resuming, signals and divergence where nothing is saved.
"""

import contextlib
import functools
import io
import tempfile
import time
from pathlib import Path
from typing import Any

import measure
from lightning.fabric.plugins.io import CheckpointIO, TorchCheckpointIO
from lightning.pytorch import Callback, Trainer

from cifar_resnet import build
from cifar_resnet.callbacks.history import History
from cifar_resnet.callbacks.resumption import ResumableCheckpoint
from cifar_resnet.training.checkpoint_io import AtomicCheckpointIO

WAYS: dict[str, CheckpointIO] = {"Lightning's own": TorchCheckpointIO(), "this project's": AtomicCheckpointIO()}
CALLS = 2000


class HookTimer(Callback):
    """Times what two callbacks do in one step, in the middle of a training, as the mean of many calls."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def on_train_batch_end(self, trainer: Trainer, *step: Any) -> None:
        """Call the hooks of a step that saves nothing, again and again."""
        if trainer.global_step != 3:
            return
        module, _outputs, batch, batch_idx = step
        history, saving = trainer.callbacks[0], next(c for c in trainer.callbacks if isinstance(c, ResumableCheckpoint))
        started = time.perf_counter()
        for _ in range(CALLS):
            history.on_train_batch_start(trainer, module, batch, batch_idx)
            saving.on_train_batch_start(trainer, module, batch, batch_idx)
            saving.on_train_batch_end(trainer, *step)
        self.seconds = (time.perf_counter() - started) / CALLS


def train_once(folder: str, width: int) -> tuple[dict[str, Any], float]:
    """Train an epoch of eight steps; return its checkpoint, and the seconds that the hooks of a step take."""
    with contextlib.redirect_stdout(io.StringIO()):
        config = measure.training_configuration(folder, {"model.width": width, "trainer.max_epochs": 2})
        build.prepare(config.seed)
        images, _ = measure.images(None, 256)
        data, timer = measure.image_data(images, images, batch_size=32), HookTimer()
        trainer = build.build_trainer(config, [History(), timer])
        trainer.fit(build.build_classifier(config, data), datamodule=data)
    file = next(Path(folder).rglob("last.ckpt"))
    return WAYS["Lightning's own"].load_checkpoint(str(file), weights_only=True), timer.seconds


def seconds_of(action: Any, *arguments: Any) -> float:
    started = time.perf_counter()
    action(*arguments)
    return time.perf_counter() - started


def main() -> None:
    parser = measure.arguments(__doc__, repeats=9)
    parser.add_argument("--width", type=int, default=64)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as folder:  # where runs are, which may not be where TMPDIR is
        checkpoint, hooks = train_once(folder, options.width)
        checkpoint.pop("sha256")
        file = {name: str(Path(folder, f"{number}.ckpt")) for number, name in enumerate(WAYS)}
        saves = {
            f"save, {name}": functools.partial(seconds_of, way.save_checkpoint, checkpoint, file[name])
            for name, way in WAYS.items()
        }
        loads = {
            f"read, {name}": functools.partial(seconds_of, way.load_checkpoint, file[name])
            for name, way in WAYS.items()
        }
        measured = measure.in_turn(saves | loads, options.repeats)
        size = Path(file["this project's"]).stat().st_size / 1e6
    rows = [{"": name, "seconds": measure.spread(seconds, 3)} for name, seconds in measured.items()]
    title = (
        f"A checkpoint of {size:.1f} MB (width {options.width}), n = {options.repeats}; "
        f"hooks of a step {1e6 * hooks:.1f} µs (mean of {CALLS:,})"
    )
    measure.report("saving", title, rows, measured | {"hooks": hooks}, options)


if __name__ == "__main__":
    main()
