"""From image sets to loaders: splits, the statistics of normalization, padding, workers."""

import multiprocessing
from dataclasses import KW_ONLY, dataclass, replace

import numpy as np
import torch
from lightning.fabric.utilities import suggested_max_num_workers
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from cifar_resnet.data.augment import Augmentation, pad, padding_of
from cifar_resnet.data.batches import TrainingBatches, TrainingLoader, batch_size_for, shared_batch_size
from cifar_resnet.data.memory import check_memory
from cifar_resnet.data.sources import ImageSet, Source
from cifar_resnet.data.split import split_training
from cifar_resnet.errors import InputError

EVALUATION_BATCH_SIZE = 1000
MOST_WORKERS = 8  # of a device unless told otherwise; each augments some 50,000 images a second


def channel_statistics(images: np.ndarray) -> tuple[list[float], list[float]]:
    """Return the exact mean and (population) standard deviation of each channel, in 0 to 1; uint8 ``[N, H, W, 3]``."""
    levels = np.arange(256) / 255
    shares = [np.bincount(images[..., i].ravel(), minlength=256) / images[..., i].size for i in range(3)]
    means = [float(share @ levels) for share in shares]
    deviations = [float(np.sqrt(share @ (levels - mean) ** 2)) for share, mean in zip(shares, means, strict=True)]
    # One constant image has no deviation; a floor of one grey level keeps the division finite.
    return means, [max(deviation, 1 / 255) for deviation in deviations]


@dataclass(eq=False)
class ImageDataModule(LightningDataModule):
    """Batches of uint8 images for training, validation and test.

    Training batches are shuffled and augmented. Without a validation split the validation loop watches the test
    images, so that there is a test curve; nothing is chosen by it. Several devices share every batch, and what is
    evaluated.

    Args, beside those that `cifar_resnet.cli.sections.Data` describes with their ranges:
        source: offers the training and the test images, of which none are read before `setup` asks for them.
        batch_size: over all devices together, if gradients are not accumulated; None: `batch_size_for` as many images.
        seed: of the splits, the order and the augmentation.
        devices: how many share a batch.
        machines: that have the devices, as many each.
        accumulate_grad_batches: batches in an optimizer step; an epoch leaves out those that would make a weaker one.

    Attributes:
        train, val, test: the images; None for those that `setup` has not read, and ``val`` where there is no split.
        mean, std: of the training images that are trained on, ``[3]`` in 0 to 1, after ``setup("fit")``.
        test_mean, test_std: used for evaluation, likewise.
    """

    source: Source
    _: KW_ONLY
    image_size: int = 32
    batch_size: int | None = 512
    num_workers: int | None = None
    padding: str = "reflect"
    flip: bool | str = True
    cutout: int | None = None
    val_size: int = 0
    train_size: int | None = None
    test_statistics: str = "train"
    seed: int = 0
    accumulate_grad_batches: int = 1
    devices: int = 1
    machines: int = 1

    def __post_init__(self) -> None:
        super().__init__()
        self.train: ImageSet | None = None
        self.val: ImageSet | None = None
        self.test: ImageSet | None = None
        self._padded: tuple[Tensor, Tensor] | None = None
        self._loader: TrainingLoader | None = None
        self._place: dict[str, int] = {}

    def prepare_data(self) -> None:
        """Have the source fetch what is not on this machine yet, unless its images were read before."""
        if self.train is None and self.test is None:
            self.source.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Read what was not read before; `InputError` where images, or the sizes of their splits, cannot be used.

        The stage ``test`` reads the test images alone; ``fit`` the training images and those that are watched or give
        the statistics; None reads all.
        """
        first_fit = stage != "test" and self.train is None
        needs_test = stage in (None, "test") or "test" in (self.validation_name, self.test_statistics)
        # All that can be refused unread is refused before the slow part, which reads what is used and no more.
        split = split_training(self.source.train(), self.val_size, self.train_size, self.seed) if first_fit else None
        test = self.source.test() if needs_test and self.test is None else None
        train, val = split or (None, None)
        others = sum(len(part) for part in (val, test) if part is not None)
        check_memory(0 if train is None else len(train), others, self.image_size, self.devices // self.machines)
        if split is not None:
            self.train, self.val = (None if part is None else part.read(self.image_size) for part in split)
        if test is not None:
            self.test = test.read(self.image_size)
        if first_fit:
            if self.batch_size is None:
                self.batch_size = batch_size_for(len(_read(self.train)), self.accumulate_grad_batches, self.devices)
            self.mean, self.std = channel_statistics(_read(self.train).images)
            self.test_mean, self.test_std = self.mean, self.std
            if self.test_statistics == "test":
                self.test_mean, self.test_std = channel_statistics(_read(self.test).images)

    def teardown(self, stage: str) -> None:
        """Let the workers go."""
        if self._loader is not None:
            self._loader.stop()

    def on_exception(self, exception: BaseException) -> None:
        """Let the workers go, for after a failure Lightning calls this and not `teardown`."""
        self.teardown("fit")

    def state_dict(self) -> dict[str, int]:
        """Return how far training has come; Lightning's own way loses it where a schedule asks for the steps."""
        return self._loader.state_dict() if self._loader else {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Let training go on there."""
        self._place = state_dict

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, by label."""
        return _read(self.test if self.train is None else self.train).classes

    @property
    def class_counts(self) -> dict[str, int]:
        """How many images each class has: of those that are trained on, where they were read, else of the test's."""
        counts = _read(self.test if self.train is None else self.train).class_counts
        return dict(zip(self.classes, counts, strict=True))

    @property
    def batch_size_in_effect(self) -> int:
        """How many images a batch has, over all devices, after ``setup("fit")``."""
        assert self.batch_size is not None, "call setup() first"
        return shared_batch_size(self.batch_size, len(_read(self.train)), self.devices)

    @property
    def validation_name(self) -> str:
        """What the validation loop evaluates: ``val`` where there is a validation split, else ``test``."""
        return "val" if self.val_size else "test"

    def train_dataloader(self) -> TrainingLoader:
        """Return the shuffled, augmented batches; `InputError` where an epoch has too few for an optimizer step."""
        rank, world_size = self._place_among_devices(self.train, "to train on")
        fill = np.round(np.array(self.mean) * 255).astype(np.uint8)
        workers = self._workers()
        arrays = self._pad(fill, shared=workers > 0 and multiprocessing.get_start_method() != "fork")  # forks inherit
        cutout = self.image_size // 4 if self.cutout is None else self.cutout
        alternating = self.flip == "alternating"  # by the images' places, which the augmentation does not know
        augmentation = Augmentation(self.image_size, self.flip is True, cutout, fill)
        assert self.batch_size is not None, "call setup() first"
        accumulated = self.accumulate_grad_batches
        batches = TrainingBatches(
            *arrays, augmentation, self.batch_size, self.seed, rank, world_size, accumulated, alternating
        )
        if not len(batches):
            raise InputError(
                f"trainer.accumulate_grad_batches={accumulated}: with data.batch_size={self.batch_size} an epoch has "
                f"only {len(batches.labels) // batches.batch_size} batches: lower one of the two"
            )
        self._loader = TrainingLoader(batches, workers, pin_memory=self._on_gpu())
        if self._place:
            self._loader.load_state_dict(self._place)
        return self._loader

    def _pad(self, fill: np.ndarray, shared: bool) -> tuple[Tensor, Tensor]:
        """Return the padded training images and their labels, which are in memory once, however many processes read.

        They are moved to shared memory before ``train`` becomes a view of them, for a view would stay behind.
        """
        train = _read(self.train)
        if self._padded is None or (shared and not self._padded[0].is_shared()):
            padded = torch.from_numpy(pad(train.images, self.padding, fill))
            self._padded = padded, torch.from_numpy(train.labels.copy())
            if shared:
                self._padded = padded.share_memory_(), self._padded[1].share_memory_()
            margin = padding_of(self.image_size)
            inside = padded[:, margin:-margin, margin:-margin]
            self.train = replace(train, images=inside.numpy(), labels=self._padded[1].numpy())
        return self._padded

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return the images that are watched during training, shared likewise: the validation split, else the test."""
        return self._evaluation_loader(self.test if self.val is None else self.val)

    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return the test images, in order; of several devices, each its share of them."""
        return self._evaluation_loader(self.test)

    def _evaluation_loader(self, images: ImageSet | None) -> DataLoader[tuple[Tensor, ...]]:
        rank, world_size = self._place_among_devices(images, "to evaluate")
        first, last = (len(_read(images)) * place // world_size for place in (rank, rank + 1))
        arrays = (each[first:last] for each in (_read(images).images, _read(images).labels))
        batches = zip(*(torch.from_numpy(array).split(EVALUATION_BATCH_SIZE) for array in arrays), strict=True)
        # Views of what is in memory: a worker would only add a copy.
        return DataLoader(list(batches), batch_size=None, pin_memory=self._on_gpu())  # type: ignore[arg-type]

    def _place_among_devices(self, images: ImageSet | None, purpose: str) -> tuple[int, int]:
        """Return this device's number, and how many there are; `InputError` where these are more than the images."""
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        if len(_read(images)) < world_size:  # each has to take part, or the others would wait for it
            raise InputError(
                f"trainer.devices={world_size}: there are only {len(_read(images))} images {purpose}: ask for no more"
            )
        return rank, world_size

    def _on_gpu(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    def _workers(self) -> int:
        if self.num_workers is not None:
            return self.num_workers
        if self.trainer is None or self.trainer.strategy.root_device.type == "cpu":
            return 0  # the network is what one waits for
        return min(MOST_WORKERS, suggested_max_num_workers(self.trainer.num_devices))


def _read(images: ImageSet | None) -> ImageSet:
    assert images is not None, "call setup() first"
    return images
