"""Batches: a function of (seed, epoch, batch, rank) alone; splits and statistics as promised."""

import multiprocessing
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_data, make_image_set, make_trainer
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from lightning.pytorch import LightningModule
from torch.utils.data import DataLoader

from cifar_resnet.data.batches import Batch, TrainingBatches, TrainingLoader
from cifar_resnet.data.datamodule import ImageDataModule, channel_statistics
from cifar_resnet.data.sources import ImageSet
from cifar_resnet.errors import InputError


def numbered(count: int, classes: int = 3) -> ImageSet:
    """Images that show their own position in the set, in every pixel: see `numbers`."""
    position = np.arange(count)
    pixels = np.stack([position % 256, position // 256, np.zeros(count, int)], axis=-1).astype(np.uint8)
    images = np.broadcast_to(pixels[:, None, None], (count, 32, 32, 3)).copy()
    return ImageSet(images, position % classes, tuple(f"class{label}" for label in range(classes)))


def numbers(images: np.ndarray | torch.Tensor) -> list[int]:
    """Return the positions that the upper left pixels of `numbered` images show."""
    pixels = np.asarray(images)[:, 0, 0].astype(int)
    return (pixels[:, 0] + 256 * pixels[:, 1]).tolist()


def numbered_data(count: int, **options: Any) -> ImageDataModule:
    return ImageDataModule(numbered(count), numbered(30), **{"cutout": 0, "num_workers": 0} | options)


def epoch_batches(loader: DataLoader[Batch], epoch: int) -> list[Batch]:
    loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    return list(loader)


def fingerprints(batches: list[Batch]) -> list[int]:
    return [zlib.crc32(images.numpy().tobytes() + labels.numpy().tobytes()) for images, labels in batches]


@pytest.fixture
def start_method(request: pytest.FixtureRequest) -> Iterator[str]:
    """Start processes as this platform, or another one, does."""
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(request.param, force=True)
    yield request.param
    multiprocessing.set_start_method(before, force=True)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("start_method", ["fork"], indirect=True)
def test_batches_do_not_depend_on_the_workers(start_method: str, workers: int) -> None:
    alone, helped = make_data().train_dataloader(), make_data(num_workers=workers).train_dataloader()
    for epoch in (0, 1, 2, 5):
        assert fingerprints(epoch_batches(helped, epoch)) == fingerprints(epoch_batches(alone, epoch))


@pytest.mark.parametrize("start_method", ["spawn"], indirect=True)
def test_spawned_workers_make_the_same_batches_from_the_same_memory(start_method: str) -> None:
    alone = make_data(cutout=0).train_dataloader()
    helped = make_data(cutout=0, num_workers=2).train_dataloader()
    for epoch in (0, 1):
        assert fingerprints(epoch_batches(helped, epoch)) == fingerprints(epoch_batches(alone, epoch))
    helped.dataset.padded.zero_()  # type: ignore[attr-defined]
    for epoch in (2, 3):  # the workers had made a part of them by then
        epoch_batches(helped, epoch)
    assert all((images == 0).all() for images, _ in epoch_batches(helped, 4))


def test_batches_are_new_in_every_epoch_batch_and_seed() -> None:
    seen = [
        fingerprint
        for seed in (0, 1)
        for epoch in range(4)
        for fingerprint in fingerprints(epoch_batches(make_data(seed=seed).train_dataloader(), epoch))
    ]
    assert len(set(seen)) == len(seen) == 2 * 4 * 3


def test_draws_of_workers_differ() -> None:
    """Albumentations alone gives each worker the same draws (test_augment.py)."""
    one_image = ImageSet(
        np.broadcast_to(make_image_set(1).images, (96, 32, 32, 3)).copy(), np.arange(96) % 2, ("even", "odd")
    )
    loader = ImageDataModule(one_image, one_image, batch_size=24, num_workers=2).train_dataloader()
    images = torch.cat([images for epoch in range(3) for images, _ in epoch_batches(loader, epoch)])
    assert len({image.numpy().tobytes() for image in images}) >= 0.99 * len(images) == 0.99 * 3 * 96


@given(count=st.integers(1, 60), batch_size=st.integers(1, 80), epoch=st.integers(0, 1000), seed=st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_an_epoch_visits_each_image_at_most_once(count: int, batch_size: int, epoch: int, seed: int) -> None:
    loader = numbered_data(count, batch_size=batch_size, seed=seed).train_dataloader()
    batches = epoch_batches(loader, epoch)
    size = min(batch_size, count)
    assert [len(labels) for _, labels in batches] == [size] * len(loader) == [size] * (count // size)
    seen = [number for images, _ in batches for number in numbers(images)]
    assert len(set(seen)) == len(seen)
    for images, labels in batches:
        assert (images.dtype, images.shape[1:]) == (torch.uint8, (32, 32, 3))
        assert labels.dtype == torch.int64
        assert labels.tolist() == [number % 3 for number in numbers(images)]


def test_order_is_shuffled_anew_in_every_epoch() -> None:
    loader = numbered_data(64, batch_size=64).train_dataloader()
    orders = [tuple(numbers(epoch_batches(loader, epoch)[0][0])) for epoch in range(5)]
    assert len(set(orders)) == 5
    assert all(sorted(order) == list(range(64)) != list(order) for order in orders)


def rank_loader(rank: int, world_size: int, **options: Any) -> DataLoader[Batch]:
    """The training loader of one process of a distributed run, as its Trainer would ask for it."""
    data = numbered_data(67, batch_size=20, **options)
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size, strategy=strategy)  # type: ignore[assignment]
    return data.train_dataloader()


def test_ranks_partition_the_global_batch() -> None:
    alone = epoch_batches(rank_loader(0, 1), epoch=1)
    shared = [epoch_batches(rank_loader(rank, 2), epoch=1) for rank in range(2)]
    assert len(alone) == len(shared[0]) == len(shared[1]) == 3
    for (images, _), (first, _), (second, _) in zip(alone, *shared, strict=True):
        assert len(first) == len(second) == 10
        assert sorted(numbers(first) + numbers(second)) == sorted(numbers(images))


def test_ranks_draw_differently() -> None:
    batches = []
    for rank in range(2):
        loader = rank_loader(rank, 2)
        rows = torch.arange(40, dtype=torch.uint8)[:, None, None].expand(40, 40, 3)
        loader.dataset.padded.copy_(rows)  # type: ignore[attr-defined]  # now all images are the same
        batches.append(epoch_batches(loader, 0)[0][0])
    assert (batches[0] != batches[1]).any()


def test_a_batch_that_the_devices_cannot_share_evenly_is_refused(tmp_path: Path) -> None:
    data = make_data(batch_size=21)
    data.trainer = make_trainer(tmp_path, devices=2)
    with pytest.raises(InputError, match=r"data\.batch_size=21 is shared by 2 devices: choose a multiple"):
        data.train_dataloader()


class Recorder(LightningModule):
    """Remembers what it is given to train on."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.batches: list[Batch] = []

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        self.batches.append(batch)

    def configure_optimizers(self) -> None:
        return None


def recorded(data: ImageDataModule, folder: Path, ckpt_path: Path | None = None, **options: Any) -> list[int]:
    """Return the fingerprints of the batches that Lightning trains on; leave ``last.ckpt``."""
    recorder = Recorder()
    trainer = make_trainer(folder, limit_val_batches=0, **options)
    trainer.fit(recorder, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    trainer.save_checkpoint(folder / "last.ckpt")
    return fingerprints(recorder.batches)


def expected(epochs: range, batches: int = 3) -> list[int]:
    dataset = make_data().train_dataloader().dataset
    return fingerprints([dataset[epoch, batch] for epoch in epochs for batch in range(batches)])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("limit", [3, 2])
def test_lightning_trains_on_the_epochs_in_order(tmp_path: Path, workers: int, limit: int) -> None:
    data = make_data(num_workers=workers)
    assert recorded(data, tmp_path, max_epochs=4, limit_train_batches=limit) == expected(range(4), limit)


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_training_goes_on_with_the_batches_that_were_due(tmp_path: Path, workers: int) -> None:
    data = make_data(num_workers=workers)
    assert recorded(data, tmp_path, max_epochs=2) == expected(range(2))
    assert recorded(data, tmp_path, tmp_path / "last.ckpt", max_epochs=5) == expected(range(2, 5))


class Witness(TrainingBatches):
    """Writes down, where all processes see it, which batches have been made."""

    made: torch.Tensor

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        batch = super().__getitem__(key)
        self.made[key] = True
        return batch


@pytest.mark.parametrize("start_method", ["fork"], indirect=True)
def test_workers_go_on_with_the_next_epoch_during_evaluation(start_method: str) -> None:
    batches = make_data().train_dataloader().dataset
    batches.__class__, batches.made = Witness, torch.zeros(3, 3, dtype=torch.bool).share_memory_()
    loader = TrainingLoader(batches, num_workers=1, pin_memory=False)
    epoch = iter(loader)
    for _ in range(3):
        next(epoch)
    deadline = time.monotonic() + 20
    while not batches.made[1, :2].all() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert batches.made[1, :2].all()
    assert not batches.made[2].any()
    assert fingerprints(epoch_batches(loader, 1)) == expected(range(1, 2))


def test_the_images_are_in_memory_once() -> None:
    """The training images are a view of the padded ones from which the batches are cut."""
    data = make_data(num_workers=2)
    images = data.train.images
    padded = data.train_dataloader().dataset.padded
    np.testing.assert_array_equal(data.train.images, images)
    assert np.shares_memory(data.train.images, padded.numpy())
    assert data.train_dataloader().dataset.padded is padded


@given(arrays(np.uint8, st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 6), st.just(3))))
@settings(max_examples=100, deadline=None)
def test_statistics_are_those_of_numpy(images: np.ndarray) -> None:
    mean, std = channel_statistics(images)
    pixels = images.reshape(-1, 3) / 255
    np.testing.assert_allclose(mean, pixels.mean(axis=0), rtol=0, atol=1e-12)
    np.testing.assert_allclose(std, np.maximum(pixels.std(axis=0), 1 / 255), rtol=0, atol=1e-9)


def test_statistics_are_of_the_images_that_are_trained_on() -> None:
    data = make_data(60, val_size=12, train_size=30)
    assert (data.mean, data.std) == channel_statistics(data.train.images)
    assert (data.test_mean, data.test_std) == (data.mean, data.std)


def test_the_test_images_can_be_normalized_by_their_own_statistics() -> None:
    data = make_data(test_statistics="test")
    assert (data.mean, data.std) == channel_statistics(data.train.images)
    assert (data.test_mean, data.test_std) == channel_statistics(data.test.images)
    assert data.test_mean != data.mean


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_splits_are_disjoint_stratified_and_repeatable(drawn: st.DataObject) -> None:
    classes, count = drawn.draw(st.integers(2, 5)), drawn.draw(st.integers(40, 120))
    val_size = drawn.draw(st.integers(classes, count // 2 - classes))
    train_size = drawn.draw(st.one_of(st.none(), st.integers(classes, count // 2 - classes)))
    seed = drawn.draw(st.integers(0, 2**32 - 1))
    images = numbered(count, classes)

    data, again = (
        ImageDataModule(images, images, val_size=val_size, train_size=train_size, seed=seed) for _ in range(2)
    )
    assert data.val is not None
    assert again.val is not None
    train, val = numbers(data.train.images), numbers(data.val.images)
    assert (train, val) == (numbers(again.train.images), numbers(again.val.images))
    assert len(set(train)) == len(train) == (train_size or count - val_size)
    assert len(set(val)) == len(val) == val_size
    assert not set(train) & set(val)
    for part in (data.train, data.val):
        share = np.bincount(part.labels, minlength=classes) - len(part) * np.bincount(images.labels) / count
        assert np.abs(share).max() < 2


def test_splits_depend_on_the_seed() -> None:
    first, second = (numbered_data(60, train_size=12, seed=seed).train for seed in (0, 1))
    assert numbers(first.images) != numbers(second.images)


def test_a_train_size_beyond_the_images_that_are_left_takes_them_all() -> None:
    assert len(numbered_data(60, train_size=60).train) == 60


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_size": 60}, "ask for more than the 60 training images"),
        ({"val_size": 12, "train_size": 49}, "ask for more than the 60 training images"),
        ({"train_size": 61}, "ask for more than the 60 training images"),
        ({"val_size": 2}, "at least one image of each of the 3 classes"),
        ({"val_size": 58}, "at least one image of each of the 3 classes"),
        ({"train_size": 2}, "at least one image of each of the 3 classes"),
    ],
)
def test_impossible_splits_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        numbered_data(60, **options)


def test_evaluation_is_unchanged_and_in_order() -> None:
    test = make_image_set(2_345)
    data = ImageDataModule(make_image_set(48), test, num_workers=2)
    for loader in (data.test_dataloader(), data.val_dataloader()):
        batches = list(loader)
        np.testing.assert_array_equal(torch.cat([images for images, _ in batches]), test.images)
        np.testing.assert_array_equal(torch.cat([labels for _, labels in batches]), test.labels)


def test_the_validation_split_is_watched_where_there_is_one() -> None:
    data = numbered_data(60, val_size=12)
    assert data.val is not None
    assert (data.watched, numbered_data(60).watched) == ("val", "test")
    ((images, labels),) = data.val_dataloader()
    assert (numbers(images), labels.tolist()) == (numbers(data.val.images), data.val.labels.tolist())


def test_a_cpu_is_not_given_workers_unasked(tmp_path: Path) -> None:
    data = make_data(num_workers=None)
    data.trainer = make_trainer(tmp_path)
    loader = data.train_dataloader()
    assert (loader.num_workers, loader.pin_memory) == (0, False)
