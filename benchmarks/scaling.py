"""Time of an epoch of `Trainer.fit` against the number of training images: it should be linear.

A small network leaves the share of whatever is not the network large. Each measurement is the second epoch of a run
of two; the first one warms up.
"""

import contextlib
import functools
import io
import tempfile

import measure
import numpy as np

from cifar_resnet import build
from cifar_resnet.callbacks.history import History
from cifar_resnet.data.sources import ImageSet


def seconds_an_epoch(images: ImageSet, width: int, workers: int | None) -> float:
    """Train two epochs with the project's own configuration, and return the time of the second."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        config = measure.training_configuration(folder, {"model.width": width, "trainer.max_epochs": 2})
        build.prepare(config.seed)
        data = measure.image_data(images, images.subset(np.arange(10)), num_workers=workers)
        history = History()
        trainer = build.build_trainer(config, [history], str(config.trainer.precision))
        trainer.fit(build.build_classifier(config, data), datamodule=data)
        return history.epochs[-1].seconds


def main() -> None:
    parser = measure.arguments(__doc__)
    measure.add_root(parser)
    parser.add_argument("--images", type=int, nargs="+", default=[5_000, 10_000, 20_000, 50_000])
    parser.add_argument("--width", type=int, default=2)
    parser.add_argument("--workers", type=int, help="as data.num_workers")
    options = parser.parse_args()

    largest = max(options.images)
    images, origin = measure.images(options.root, largest)
    tasks = {
        count: functools.partial(seconds_an_epoch, images.subset(np.arange(count)), options.width, options.workers)
        for count in options.images
    }
    measured = measure.in_turn(tasks, options.repeats)
    batches = {count: count // 512 for count in options.images}
    per_batch = {count: measure.median(measured[count]) / batches[count] for count in options.images}
    rows = [
        {
            "images": f"{count:,}",
            "steps": batches[count],
            "seconds an epoch": measure.spread(seconds, 2),
            "ms a step": f"{1e3 * per_batch[count]:.2f}",
            f"of that at {largest:,}": f"{per_batch[count] / per_batch[largest] - 1:+.1%}",
        }
        for count, seconds in measured.items()
    ]
    title = f"Epoch time: {origin}, width {options.width}, batch size 512, n = {options.repeats}"
    measure.report("scaling", title, rows, measured, options)


if __name__ == "__main__":
    main()
