"""Time and memory against the size of the images: reading files, what they take in memory, and an epoch.

Each size has a process of its own, whose peak memory is that of the whole: libraries, images, two epochs of training.
"""

import contextlib
import functools
import io
import multiprocessing
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import measure
import numpy as np

from cifar_resnet import build
from cifar_resnet.callbacks.history import History
from cifar_resnet.data.folder import Folder
from cifar_resnet.data.sources import ImageSet


def look(root: str, count: int, side: int, width: int, precision: str) -> dict[str, float]:
    """Read images, train two epochs on them, and return seconds and MiB; the second epoch is timed."""
    files = Folder(root).train()
    start = time.perf_counter()
    images: ImageSet = files.subset(np.arange(count) * 7919 % len(files)).read(side)
    read = time.perf_counter() - start
    options = {"model.width": width, "data.image_size": side, "trainer.max_epochs": 2, "trainer.precision": precision}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        config = measure.training_configuration(folder, options)
        build.prepare(config.seed)
        data = measure.image_data(images, images.subset(np.arange(10)), image_size=side)
        history = History()
        trainer = build.build_trainer(config, [history], precision)
        trainer.fit(build.build_classifier(config, data), datamodule=data)
    padded = data.train_dataloader().batches.padded
    return {
        "read": read,
        "images": images.images.nbytes / 2**20,
        "padded": padded.nbytes / 2**20,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
        "epoch": history.epochs[-1].seconds,
    }


def main() -> None:
    parser = measure.arguments(__doc__, repeats=3)
    parser.add_argument("--root", required=True, help="folder of train/CLASS")
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--precision", default="32-true", help="as trainer.precision, without auto")
    options = parser.parse_args()

    found: dict[int, list[dict[str, float]]] = {side: [] for side in options.sizes}
    for _ in range(options.repeats):
        for side in options.sizes:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
                work = functools.partial(look, options.root, options.images, side, options.width, options.precision)
                found[side].append(fresh.submit(work).result())

    def column(side: int, name: str, digits: int) -> str:
        return measure.spread([each[name] for each in found[side]], digits)

    rows: list[dict[str, Any]] = [
        {
            "image size": side,
            "seconds to read": column(side, "read", 1),
            "MiB of images": f"{found[side][0]['images']:,.0f}",
            "MiB padded": f"{found[side][0]['padded']:,.0f}",
            "MiB at the peak": column(side, "peak", 0),
            "seconds an epoch": column(side, "epoch", 1),
        }
        for side in options.sizes
    ]
    title = (
        f"{options.images:,} images of {options.root}, width {options.width}, batch size 512, {options.precision}, "
        f"n = {options.repeats}"
    )
    measure.report("image_size", title, rows, found, options)


if __name__ == "__main__":
    main()
