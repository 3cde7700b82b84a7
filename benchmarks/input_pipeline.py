"""Training images a second that one core crops, flips and cuts out: this project against two textbook pipelines.

Each pipeline makes the batches of a data loader in one process of one thread, and only that process's own CPU time
counts. The textbook pipelines end with normalized floats; this project's ends with bytes, which the classifier
normalizes on its device. On a CPU that is work of the same core, so one row counts it in.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import albumentations as A
import cv2
import measure
import numpy as np
import torch
from albumentations.pytorch import ToTensorV2
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as T

from cifar_resnet.data.datamodule import ImageDataModule
from cifar_resnet.data.sources import ImageSet
from cifar_resnet.training.classifier import ImageClassifier

CUTOUT = 8


class PerImage(Dataset[tuple[Tensor, int]]):
    """One image at a time, as tutorials do it: the loader collates them to a batch."""

    def __init__(self, images: ImageSet, transform: Callable[[np.ndarray], Tensor]):
        self.images = images
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images.images[index]), int(self.images.labels[index])


def textbook_albumentations(mean: list[float], std: list[float]) -> Callable[[np.ndarray], Tensor]:
    pipeline = A.Compose(
        [
            A.PadIfNeeded(40, 40, border_mode=cv2.BORDER_REFLECT_101),
            A.RandomCrop(32, 32),
            A.HorizontalFlip(p=0.5),
            A.CoarseDropout(
                num_holes_range=(1, 1),
                hole_height_range=(CUTOUT, CUTOUT),
                hole_width_range=(CUTOUT, CUTOUT),
                fill=tuple(255 * channel for channel in mean),
                p=1.0,
            ),
            A.Normalize(mean, std),
            ToTensorV2(),
        ]
    )
    return lambda image: pipeline(image=image)["image"]


def textbook_torchvision(mean: list[float], std: list[float]) -> Callable[[np.ndarray], Tensor]:
    area = (CUTOUT / 32) ** 2
    pipeline = T.Compose(
        [
            T.RandomCrop(32, padding=4, padding_mode="reflect"),
            T.RandomHorizontalFlip(),
            T.ToTensor(),
            T.Normalize(mean, std),
            T.RandomErasing(p=1.0, scale=(area, area), ratio=(1.0, 1.0), value=0),
        ]
    )
    return lambda image: pipeline(Image.fromarray(image))


class Normalized:
    """The same batches as floats of mean 0 and deviation 1."""

    def __init__(self, loader: Iterable[Any], data: ImageDataModule):
        statistics = {"mean": data.mean, "std": data.std, "test_mean": data.test_mean, "test_std": data.test_std}
        network = {"_target_": "cifar_resnet.models.CustomResNet", "width": 1}
        self.classifier = ImageClassifier(network, data.classes, **statistics, optimizer={})
        self.loader = loader

    def __iter__(self) -> Iterator[Tensor]:
        return (self.classifier.normalize(images) for images, _ in self.loader)


def cpu_seconds(batches: Iterable[Any]) -> float:
    start = time.process_time()
    for _ in batches:
        pass
    return time.process_time() - start


def main() -> None:
    parser = measure.arguments(__doc__, repeats=7)
    measure.add_root(parser)
    parser.add_argument("--images", type=int, default=4096, help="images of a measurement")
    parser.add_argument("--batch-size", type=int, default=512)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)

    images, origin = measure.images(options.root, options.images)
    data = measure.image_data(images, images, batch_size=options.batch_size, cutout=CUTOUT, num_workers=0)
    ours = data.train_dataloader()
    loaders: dict[str, Iterable[Any]] = {
        "this project": ours,
        "this project, normalized by the same core": Normalized(ours, data),
    }
    for name, transform in (("albumentations", textbook_albumentations), ("torchvision", textbook_torchvision)):
        dataset = PerImage(images, transform(data.mean, data.std))
        loaders[f"textbook, {name}"] = DataLoader(dataset, options.batch_size, shuffle=True, drop_last=True)
    tasks = {name: lambda loader=loader: cpu_seconds(loader) for name, loader in loaders.items()}
    measure.in_turn(tasks, 1)  # first calls import, compile and allocate
    seconds = measure.in_turn(tasks, options.repeats)

    count = len(ours) * ours.batches.batch_size
    rates = {name: [count / second for second in measured] for name, measured in seconds.items()}
    textbook = rates["textbook, albumentations"]
    rows = [
        {
            "pipeline": name,
            "images/s a core": measure.spread(rate),
            "µs an image": f"{1e6 / measure.median(rate):.1f}",
            "× textbook": f"{measure.median([one / other for one, other in zip(rate, textbook, strict=True)]):.1f}",
        }
        for name, rate in rates.items()
    ]
    title = f"Input pipeline: {count:,} images of {origin}, batch size {options.batch_size}, n = {options.repeats}"
    measure.report("input_pipeline", title, rows, rates, options)


if __name__ == "__main__":
    main()
