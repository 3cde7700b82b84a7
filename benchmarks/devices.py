"""Seconds of an optimizer step against the number of processes that share its batch; with --paper, of GPUs on paper.

Measured: `Trainer.fit` with the project's own configuration, its batch shared by so many processes of one thread each
that torchrun starts, or by as many GPUs where there are any. A measurement is the second epoch of a run of two. Beside
it, one process takes the share of the batch that each of several has: the difference is what sharing costs. Several
are measured with synchronized batch norm too.

On paper: the gradients of the assignment's network, summed by a ring of all GPUs of a machine at NVLink's speed and, an
eighth each, by rings between machines at InfiniBand's; its floating-point operations at --share of an H100's peak.
Nothing is hidden behind the backward pass: a step is the sum of both, "with the host" at least what that takes.
"""

import argparse
import contextlib
import functools
import io
import os
import subprocess
import sys
import tempfile
from typing import Any, NamedTuple

import measure
from train_step import flops_an_image

from cifar_resnet import build
from cifar_resnet.callbacks.history import History
from cifar_resnet.models import CustomResNet


class Link(NamedTuple):
    """What joins two GPUs: bytes a second in one direction, and seconds until the first byte is there."""

    speed: float
    latency: float

    def all_reduce(self, size: float, members: int) -> float:
        """Return the seconds in which a ring sums ``size`` bytes: each member sends 2 (n - 1) pieces of size / n.

        Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations".
        """
        return 2 * (members - 1) * (size / members / self.speed + self.latency)


MACHINE = 8  # GPUs that NVLink joins
NVLINK = Link(450e9, 3e-6)  # of an H100 SXM: 900 GB/s in both directions
INFINIBAND = Link(50e9, 5e-6)  # NDR, 400 Gb/s for each GPU
PEAK = 989.4e12  # FLOP/s of an H100 SXM in bf16, dense
HOST = 1.65e-3  # seconds a step of the host, which launches it (docs/performance.md)
BATCH = 512
GPUS = (1, 2, 8, 64, 512, 1024)


def one_of(options: argparse.Namespace) -> None:
    """Train as one of several processes; the first prints the seconds of a step."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = {
            "model.width": options.width,
            "trainer.max_epochs": 2,
            "trainer.precision": options.precision,
            "trainer.devices": options.one_of,
            "trainer.strategy": "ddp" if options.one_of > 1 else "auto",
            "trainer.sync_batchnorm": str(options.synchronized).lower(),
        }
        with contextlib.redirect_stdout(io.StringIO()):
            config = measure.training_configuration(folder, overrides)
            build.prepare(config.seed)
            images, _ = measure.images(None, options.steps * options.batch_size)
            data = measure.image_data(images, images, batch_size=options.batch_size, num_workers=0)
            history = History()
            trainer = build.build_trainer(config, [history], options.precision)
            trainer.fit(build.build_classifier(config, data), datamodule=data)
            trainer.strategy.barrier()  # so that none has ended while another still looks for its folder
    if trainer.is_global_zero:
        print(history.epochs[-1].seconds / options.steps)


def seconds_a_step(processes: int, batch_size: int, synchronized: bool, options: argparse.Namespace) -> float:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    kept = {"width": options.width, "steps": options.steps, "precision": options.precision}
    words = {"one-of": processes, "batch-size": batch_size} | kept
    command = [sys.executable, *launcher, __file__, *(f"--{key}={value}" for key, value in words.items())]
    command += ["--synchronized"] if synchronized else []
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{processes} processes ended with exit code {done.returncode}:\n{done.stderr}")
    return float(done.stdout.splitlines()[-1])


def measured(options: argparse.Namespace) -> None:
    size = options.batch_size
    several = [processes for processes in options.processes if processes > 1]
    shared = [(processes, size, False) for processes in options.processes]
    others = [each for processes in several for each in ((processes, size, True), (1, size // processes, False))]
    tasks = {key: functools.partial(seconds_a_step, *key, options) for key in [*shared, *others]}
    seconds = measure.in_turn(tasks, options.repeats)

    def ratio(ours: tuple[int, int, bool], theirs: tuple[int, int, bool]) -> str:
        return measure.spread([one / other for one, other in zip(seconds[ours], seconds[theirs], strict=True)], 2)

    rows = [
        {
            "processes": key[0],
            "images in a step": key[1],
            "batch norm": "synchronized" if key[2] else "of each",
            "ms a step": measure.spread([1e3 * each for each in own], 1),
            f"1 process with {size} / this": ratio((1, size, False), key),
            "this / 1 process with its share": ratio(key, (1, key[1] // key[0], False)),
        }
        for key, own in seconds.items()
    ]
    title = (
        f"Step time: synthetic noise, width {options.width}, {options.precision}, one thread a process, "
        f"epochs of {options.steps} steps, n = {options.repeats}"
    )
    figures = {
        f"{processes} × {images // processes}{', synchronized' if synchronized else ''}": own
        for (processes, images, synchronized), own in seconds.items()
    }
    measure.report("devices", title, rows, figures, options)


def all_reduce(size: float, gpus: int) -> float:
    """Return the seconds in which all GPUs sum ``size`` bytes: within a machine, an eighth each between machines."""
    inside = min(gpus, MACHINE)
    return NVLINK.all_reduce(size, inside) + INFINIBAND.all_reduce(size / inside, gpus // inside)


def on_paper(options: argparse.Namespace) -> None:
    parameters = sum(each.numel() for each in CustomResNet(64).parameters())
    flops = flops_an_image(64, backward=True)
    an_image = flops / (options.share * PEAK)
    alone = BATCH * an_image

    def row(gpus: int) -> dict[str, Any]:
        sums = all_reduce(4 * parameters, gpus)
        shared, whole = alone / gpus + sums, alone + sums
        host, possible = max(shared, HOST), gpus <= BATCH
        return {
            "GPUs": f"{gpus:,}",
            "all-reduce, ms": f"{1e3 * sums:.2f}",
            "in bf16, ms": f"{1e3 * all_reduce(2 * parameters, gpus):.2f}",
            "images a GPU computes meanwhile": f"{sums / an_image:,.0f}",
            f"{BATCH} shared, ms (× faster)": f"{1e3 * shared:.2f} ({alone / shared:.1f})" if possible else "–",
            "with the host": f"{1e3 * host:.2f} ({alone / host:.1f})" if possible else "–",
            f"{BATCH} a GPU, ms (of linear)": f"{1e3 * whole:.2f} ({alone / whole:.0%})",
            "its global batch": f"{BATCH * gpus:,}",
        }

    title = (
        f"On paper, nothing measured: {parameters:,} parameters, {flops / 1e9:.2f} GFLOP an image, "
        f"{an_image * 1e6:.2f} µs an image at {options.share:.0%} of an H100's bf16 peak"
    )
    rows = [row(gpus) for gpus in GPUS]
    measure.report("devices_on_paper", title, rows, rows, options)


def main() -> None:
    parser = measure.arguments(__doc__, repeats=3)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=BATCH, help="of all processes together")
    parser.add_argument("--steps", type=int, default=8, help="in each of the two epochs")
    parser.add_argument("--precision", default="32-true", help="as trainer.precision, without auto")
    parser.add_argument("--paper", action="store_true", help="print what GPUs would take, and measure nothing")
    parser.add_argument("--share", type=float, default=0.4, help="with --paper: of an H100's peak that is reached")
    parser.add_argument("--one-of", type=int, help=argparse.SUPPRESS)  # how the processes are started, as the next
    parser.add_argument("--synchronized", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one_of is not None:
        one_of(options)
    elif options.paper:
        on_paper(options)
    else:
        measured(options)


if __name__ == "__main__":
    main()
