"""Memory of the whole process tree with 0, 2 and 4 workers, whose images should be there once however many they are.

The proportional set size is counted (a page that three processes share is a third of a page in each), after the
workers have made batches. How much of it the workers' interpreters take is measured with hardly any images. With a
GPU, the peak of its memory during training steps is measured as well.
"""

import argparse
import functools
import multiprocessing
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import measure
import torch
import torch.nn.functional as F

from cifar_resnet.data.datamodule import ImageDataModule
from cifar_resnet.models import CustomResNet

FEW_IMAGES = 512
MIB = 2**20


def alone(function: Any, *arguments: Any) -> Any:
    """Call a function in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def tree_memory(images: int, workers: int, start_method: str, root: str | None) -> float:
    """Return the MiB of this process and its workers after a few batches."""
    multiprocessing.set_start_method(start_method, force=True)
    warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than this machine has cores
    data = image_data(images, workers, root)
    batches = iter(data.train_dataloader())
    for _ in range(min(4 * workers + 4, images // data.batch_size)):
        next(batches)
    processes = ["self", *(str(child.pid) for child in multiprocessing.active_children())]
    memory = sum(proportional_set_size(process) for process in processes) / MIB
    del batches  # ends the workers before the interpreter ends
    return memory


def image_data(images: int, workers: int, root: str | None) -> ImageDataModule:
    train, _ = measure.images(root, images)
    return measure.image_data(train, train.subset(train.labels[:1]), num_workers=workers)


def proportional_set_size(process: str) -> int:
    for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return 1024 * int(line.split()[1])
    raise ValueError(f"/proc/{process}/smaps_rollup has no line Pss")


def gpu_memory(width: int, batch_size: int) -> float:
    """Return the MiB that training steps under 16-mixed take from the GPU at most."""
    network = CustomResNet(width).to("cuda", memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, fused=True)
    pixels = torch.randn(batch_size, 3, 32, 32, device="cuda").to(memory_format=torch.channels_last)
    labels = torch.zeros(batch_size, dtype=torch.long, device="cuda")
    for _ in range(3):
        with torch.autocast("cuda", torch.float16):
            loss = F.cross_entropy(network(pixels), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return torch.cuda.max_memory_allocated() / MIB


def main() -> None:
    parser = measure.arguments(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    measure.add_root(parser)
    parser.add_argument("--images", type=int, default=50_000, help="training images")
    parser.add_argument("--start-methods", nargs="+", default=["fork", "spawn"], help="how workers are started")
    parser.add_argument("--width", type=int, default=64, help="of the network on the GPU")
    options = parser.parse_args()

    tasks = {
        (method, images, workers): functools.partial(alone, tree_memory, images, workers, method, options.root)
        for method in options.start_methods
        for images in (FEW_IMAGES, options.images)
        for workers in (0, 2, 4)
    }
    measured = measure.in_turn(tasks, options.repeats)
    rows = []
    for method in options.start_methods:
        few, many = (
            {workers: measure.median(measured[method, images, workers]) for workers in (0, 2, 4)}
            for images in (FEW_IMAGES, options.images)
        )
        rows += [
            {
                "workers": f"{workers}, {method}",
                "MiB": measure.spread(measured[method, options.images, workers]),
                "of it interpreters of the workers": f"{few[workers] - few[0]:,.0f}",
                "the rest, × 0 workers": f"{(many[workers] - few[workers] + few[0]) / many[0]:.2f}",
            }
            for workers in (0, 2, 4)
        ]
    title = f"Memory of the process tree: {options.images:,} training images, n = {options.repeats}"
    if torch.cuda.is_available():
        title += f"; GPU, batch size 512 at width {options.width}: {alone(gpu_memory, options.width, 512):,.0f} MiB"
    figures = {
        f"{method} {images} images {workers} workers": own for (method, images, workers), own in measured.items()
    }
    measure.report("memory", title, rows, figures, options)


if __name__ == "__main__":
    main()
