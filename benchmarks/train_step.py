"""Training steps: this project's `Trainer.fit` against a textbook loop and against the best bare PyTorch loop.

A row for each loop and each of --precisions.

(a) textbook: the network as it is written, NCHW floats, a plain optimizer, `loss.item()` at every step.
(b) bare: no framework; channels_last, bytes normalized on the device, the fused optimizer, freed memory kept, no
    synchronization. Nothing but the network's own work is left.
(c) this project: `Trainer.fit` whole, with augmentation, schedule, metrics, logging and checkpoints; timed, as its own
    summary is, from the start of an epoch to its end, without evaluation.

Each loop lives in a process of its own, since what one does to the allocator would help the others; they take turns.
(a) and (b) are given ready batches of the images that (c) augments anew. The device is a GPU where there is one.
--loops adds variants: (b) and (c) with torch.compile, (b) with freed memory returned to the system as glibc does it by
itself, (c) with one worker that augments; and (c)'s evaluation of as many images, whose work is the forward pass alone.
"""

import argparse
import contextlib
import functools
import io
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import measure
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cifar_resnet import build
from cifar_resnet.callbacks.history import History
from cifar_resnet.cli.schema import Train
from cifar_resnet.data.batches import Batch
from cifar_resnet.data.datamodule import ImageDataModule
from cifar_resnet.models import CustomResNet

TEMPERATURE = 8
SGD = {"lr": 1e-3, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")

Key = tuple[str, str]  # the name of a loop or of a peak, and a precision


class Turn:
    """One end of the pipe through which a loop is told when it is its turn, and tells how long it took."""

    def __init__(self, connection: Connection):
        self.connection = connection
        self.seconds: float | None = None

    def start(self) -> None:
        """Hand the machine over, wait for the next turn, and start the clock."""
        self.hand_over()
        self.connection.recv()
        self.started = time.perf_counter()

    def stop(self) -> None:
        """Stop the clock, once the GPU's work is done."""
        if CUDA:
            torch.cuda.synchronize()
        self.seconds = time.perf_counter() - self.started

    def hand_over(self) -> None:
        """Report the turn's seconds; until then no other loop has the machine."""
        if self.seconds is not None:
            self.connection.send(self.seconds)
            self.seconds = None


def matmul(options: argparse.Namespace, turn: Turn) -> None:
    """Multiply square matrices, by way of a peak."""
    size, count = (8192, 50) if CUDA else (2048, 10)
    left, right = torch.randn(2, size, size, device=DEVICE, dtype=data_type(options.precision))
    peak(options, turn, lambda: left @ right, count, 2.0 * size**3)


def convolution(options: argparse.Namespace, turn: Turn) -> None:
    """Pass a batch through layer3's first convolution, the fastest of the network's three largest, by way of a peak.

    Where a library multiplies matrices below what the processor can do, as MKL does on AMD's, this is the higher one.
    """
    build.keep_freed_memory()
    torch.backends.cudnn.benchmark = True
    channels, side = 4 * options.width, 8
    layer = nn.Conv2d(
        channels, 2 * channels, 3, padding=1, bias=False, device=DEVICE, dtype=data_type(options.precision)
    )
    layer.to(memory_format=torch.channels_last)
    images = layer.weight.new_ones(options.batch_size, channels, side, side).to(memory_format=torch.channels_last)
    peak(options, turn, lambda: layer(images), 200 if CUDA else 5, 2.0 * len(images) * side**2 * layer.weight.numel())


def peak(options: argparse.Namespace, turn: Turn, work: Callable[[], object], count: int, flops: float) -> None:
    """Do some work ``count`` times a turn, and report the seconds that 1e12 of its operations take."""
    torch.set_float32_matmul_precision("high")
    for _ in range(options.repeats + 1):
        turn.start()
        with torch.no_grad():
            for _ in range(count):
                work()
        turn.stop()
        assert turn.seconds is not None
        turn.seconds *= 1e12 / (count * flops)


def textbook(options: argparse.Namespace, turn: Turn) -> None:
    """Loop (a)."""
    data = image_data(options)
    mean, std = torch.tensor(data.mean), torch.tensor(data.std)
    batches = [
        (((images / 255 - mean) / std).permute(0, 3, 1, 2).contiguous(), labels) for images, labels in ready(data)
    ]
    network = CustomResNet(options.width).to(DEVICE)
    optimizer = torch.optim.SGD(network.parameters(), **SGD)
    scaler = torch.amp.GradScaler(DEVICE.type, enabled=options.precision == "16-mixed" and CUDA)
    for _ in range(options.repeats + 1):
        turn.start()
        running_loss, correct = 0.0, 0
        for images, labels in batches:
            images, labels = images.to(DEVICE), labels.to(DEVICE)  # noqa: PLW2901  (as tutorials write it)
            optimizer.zero_grad()
            with autocast(options.precision):
                logits = network(images) / TEMPERATURE
                loss = F.cross_entropy(logits, labels)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            running_loss += loss.item()
            correct += (logits.argmax(dim=1) == labels).sum().item()
        turn.stop()


def bare(options: argparse.Namespace, turn: Turn, compiled: bool = False, keep_memory: bool = True) -> None:
    """Loop (b)."""
    if keep_memory:
        build.keep_freed_memory()
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    data = image_data(options)
    batches = [
        (images.pin_memory(), labels.pin_memory()) if CUDA else (images, labels) for images, labels in ready(data)
    ]
    shape = (32, 32, 3)  # statistics of the whole image's shape: broadcasting 3 values is slow on a CPU
    mean, std = (
        (255 * torch.tensor(channels)).expand(shape).contiguous().to(DEVICE) for channels in (data.mean, data.std)
    )
    network: nn.Module = CustomResNet(options.width).to(DEVICE, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), **SGD, fused=True)
    scaler = torch.amp.GradScaler(DEVICE.type, enabled=options.precision == "16-mixed" and CUDA)
    if compiled:
        network.compile()
    for _ in range(options.repeats + 1):
        turn.start()
        for images, labels in batches:
            pixels = images.to(DEVICE, non_blocking=True).float().sub_(mean).div_(std).permute(0, 3, 1, 2)
            with autocast(options.precision):
                loss = F.cross_entropy(network(pixels) / TEMPERATURE, labels.to(DEVICE, non_blocking=True))
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        turn.stop()


def project(options: argparse.Namespace, turn: Turn, compiled: bool = False, workers: int | None = None) -> None:
    """Loop (c)."""
    with configuration(options, {"classifier.compile": str(compiled).lower()}) as config:
        data = image_data(options, workers)
        trainer = build.build_trainer(config, [EpochTurn(turn), History()], str(config.trainer.precision))
        trainer.fit(build.build_classifier(config, data), datamodule=data)


def evaluation(options: argparse.Namespace, turn: Turn) -> None:
    """Loop (c)'s evaluation."""
    with configuration(options, {}) as config:
        data = image_data(options)
        trainer = build.build_trainer(config, [EpochTurn(turn)], str(config.trainer.precision))
        classifier = build.build_classifier(config, data)
        for _ in range(options.repeats + 1):
            trainer.test(classifier, datamodule=data, verbose=False)


@contextlib.contextmanager
def configuration(options: argparse.Namespace, overrides: dict[str, Any]) -> Iterator[Train]:
    """Prepare the process as `scripts/train.py` does; yields the configuration of the run."""
    overrides |= {
        "model.width": options.width,
        "trainer.max_epochs": options.repeats + 1,
        "trainer.precision": options.precision,
        "trainer.log_every_n_steps": min(10, options.steps),
    }
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        config = measure.training_configuration(folder, overrides)
        build.prepare(config.seed)
        yield config


class EpochTurn(Callback):
    """Makes every epoch wait for its turn; a checkpoint is saved after the clock has stopped, before the next loop."""

    def __init__(self, turn: Turn):
        self.turn = turn

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait."""
        self.turn.start()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report."""
        self.turn.stop()

    on_test_epoch_start, on_test_epoch_end = on_train_epoch_start, on_train_epoch_end


LOOPS: dict[str, Callable[..., None]] = {
    "(a) textbook": textbook,
    "(b) bare": bare,
    "(c) project": project,
    "(b) compiled": functools.partial(bare, compiled=True),
    "(c) compiled": functools.partial(project, compiled=True),
    "(b) memory returned": functools.partial(bare, keep_memory=False),
    "(c) one worker": functools.partial(project, workers=1),
    "(c) evaluation": evaluation,
}
PEAKS: dict[str, Callable[..., None]] = {"matmul": matmul, "convolution": convolution}


def image_data(options: argparse.Namespace, workers: int | None = 0) -> ImageDataModule:
    images, _ = measure.images(options.root, options.steps * options.batch_size)
    return measure.image_data(images, images, batch_size=options.batch_size, num_workers=workers)


def ready(data: ImageDataModule) -> list[Batch]:
    """Return the batches of an epoch."""
    batches = data.train_dataloader().batches
    return [batches[0, batch] for batch in range(len(batches))]


def data_type(precision: str) -> torch.dtype:
    if not precision.endswith("-mixed"):
        return torch.float32
    return torch.float16 if precision == "16-mixed" and CUDA else torch.bfloat16


def autocast(precision: str) -> torch.autocast:
    return torch.autocast(DEVICE.type, data_type(precision), enabled=precision.endswith("-mixed"))


def take_turns(loop: Callable[..., None], options: argparse.Namespace, connection: Connection) -> None:
    turn = Turn(connection)
    loop(options, turn)
    turn.hand_over()


@contextlib.contextmanager
def turns(loop: Callable[..., None], options: argparse.Namespace) -> Iterator[Callable[[], float]]:
    """Start a loop in a process of its own; yields a function that gives it a turn and returns its seconds."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=take_turns, args=(loop, options, there))
    process.start()
    there.close()

    def turn() -> float:
        here.send(None)
        return here.recv()

    try:
        yield turn
    finally:
        here.close()  # a loop that still waits ends with this
        process.join()


def flops_an_image(width: int, backward: bool) -> float:
    """Return the floating-point operations of convolutions and FC layer for one image."""
    network = CustomResNet(width).eval()
    with FlopCounterMode(display=False) as counter:
        outputs = network(torch.zeros(1, 3, 32, 32))
        if backward:
            outputs.sum().backward()
    return float(counter.get_total_flops())


def main() -> None:
    parser = measure.arguments(__doc__, repeats=15)
    measure.add_root(parser)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=388 if CUDA else 2, help="steps of a turn (%(default)s here)")
    parser.add_argument(
        "--precisions",
        nargs="+",
        default=["16-mixed" if CUDA else "32-true"],
        help="as trainer.precision, without auto",
    )
    parser.add_argument(
        "--loops", nargs="+", choices=LOOPS, default=list(LOOPS)[:3], metavar="LOOP", help=f"of {', '.join(LOOPS)}"
    )
    options = parser.parse_args()

    with contextlib.ExitStack() as stack:
        tasks = {
            (name, precision): stack.enter_context(turns(loop, with_precision(options, precision)))
            for precision in options.precisions
            for name, loop in [*((name, LOOPS[name]) for name in options.loops), *PEAKS.items()]
        }
        measure.in_turn(tasks, 1)  # first steps allocate, choose algorithms and compile
        seconds = measure.in_turn(tasks, options.repeats)

    images = options.steps * options.batch_size
    peaks = {key: [1e12 / second for second in own] for key, own in seconds.items() if key[0] in PEAKS}
    rates = {key: [images / second for second in own] for key, own in seconds.items() if key[0] not in PEAKS}
    rows = [row(key, rates, peaks, flops_an_image(options.width, "evaluation" not in key[0])) for key in rates]
    where = torch.cuda.get_device_name() if CUDA else f"CPU, {torch.get_num_threads()} threads"
    title = (
        f"Training on {where}: width {options.width}, batch size {options.batch_size}; turns of {options.steps} steps, "
        f"n = {options.repeats}; GFLOP/s of a peak: "
        + ", ".join(f"{' '.join(key)} {measure.median(own) / 1e9:,.0f}" for key, own in peaks.items())
    )
    figures = {" ".join(key): own for key, own in (rates | peaks).items()}
    measure.report("train_step", title, rows, figures, options)


def with_precision(options: argparse.Namespace, precision: str) -> argparse.Namespace:
    return argparse.Namespace(**vars(options), precision=precision)


def row(
    key: tuple[str, str],
    rates: dict[tuple[str, str], list[float]],
    peaks: dict[tuple[str, str], list[float]],
    flops: float,
) -> dict[str, Any]:
    """Return a row of the table; every ratio is the median over the turns, with its 95 % interval.

    The peak is what is faster in the precision of the row, convolution or matmul.
    """
    own, (name, precision) = rates[key], key
    highest = max((peaks[kind, precision] for kind in PEAKS), key=measure.median)

    def ratios(others: list[float]) -> list[float]:
        return [one / other for one, other in zip(own, others, strict=True)]

    def ratio(other: Key) -> str:
        low, high = measure.median_interval(ratios(rates[other]))
        return "1" if other == key else f"{measure.median(ratios(rates[other])):.3f} ({low:.3f}–{high:.3f})"

    return {
        "loop": name,
        "precision": precision,
        "images/s": measure.spread(own, 1 if max(own) < 1000 else 0),
        "GFLOP/s": f"{measure.median(own) * flops / 1e9:,.0f}",
        "of the peak": f"{measure.median(ratios(highest)) * flops:.1%}",
    } | {f"× {' '.join(other)}": ratio(other) for other in list(rates)[:2]}


if __name__ == "__main__":
    main()
