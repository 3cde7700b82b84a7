"""Batches: a function of (seed, epoch, batch, rank) alone; splits and statistics as promised."""

import multiprocessing
import signal
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DATA, make_classifier, make_data, make_image_set, make_trainer, read_data
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from lightning.pytorch import LightningModule
from lightning.pytorch.tuner import Tuner
from PIL import Image

from cifar_resnet.data.batches import Batch, TrainingBatches, TrainingLoader, batch_size_for
from cifar_resnet.data.datamodule import ImageDataModule, channel_statistics
from cifar_resnet.data.folder import Folder
from cifar_resnet.data.sources import ImageSet, InMemory, Source
from cifar_resnet.errors import InputError
from cifar_resnet.lr.search import Probe


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
    return read_data(InMemory(numbered(count), numbered(30)), **{"batch_size": 512, "cutout": 0} | options)


def epoch_batches(loader: TrainingLoader, epoch: int) -> list[Batch]:
    loader.sampler.set_epoch(epoch)
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
    helped.batches.padded.zero_()
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
    loader = read_data(InMemory(one_image, one_image), batch_size=24, num_workers=2).train_dataloader()
    images = torch.cat([images for epoch in range(3) for images, _ in epoch_batches(loader, epoch)])
    assert len({image.numpy().tobytes() for image in images}) >= 0.99 * len(images) == 0.99 * 3 * 96


@given(count=st.integers(1, 60), batch_size=st.integers(1, 80), epoch=st.integers(0, 1000), seed=st.integers(0, 2**32))
@settings(max_examples=20)
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


def rank_loader(rank: int, world_size: int, images: int = 67, **options: Any) -> TrainingLoader:
    """The training loader of one process of a distributed run, as its Trainer would ask for it."""
    data = numbered_data(images, **{"batch_size": 20} | options)
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


def test_ranks_have_shares_of_one_size_where_there_are_fewer_images_than_a_batch_has() -> None:
    """With others, the mean of their gradients would not be that of the images."""
    data = make_data(train=25, batch_size=64, devices=2)
    assert data.batch_size_in_effect == 24
    for rank in range(2):
        ((images, _),) = epoch_batches(rank_loader(rank, 2, 25, batch_size=64), epoch=0)
        assert len(images) == 12
    with pytest.raises(InputError, match="only 3 images to train on"):
        rank_loader(0, 4, 3)


def test_ranks_draw_differently() -> None:
    batches = []
    for rank in range(2):
        loader = rank_loader(rank, 2)
        rows = torch.arange(40, dtype=torch.uint8)[:, None, None].expand(40, 40, 3)
        loader.batches.padded.copy_(rows)  # now all images are the same
        batches.append(epoch_batches(loader, 0)[0][0])
    assert (batches[0] != batches[1]).any()


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
    made = make_data().train_dataloader().batches
    return fingerprints([made[epoch, batch] for epoch in epochs for batch in range(batches)])


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
    batches = make_data().train_dataloader().batches
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


@pytest.mark.parametrize("start_method", ["spawn"], indirect=True)
def test_images_and_labels_are_moved_to_shared_memory_before_they_are_viewed(start_method: str) -> None:
    """Also where they had been padded for this process alone, as to count the batches of an epoch."""
    data = make_data()
    before = data.train.images.copy()
    assert not data.train_dataloader().batches.padded.is_shared()
    data.num_workers = 2
    batches = data.train_dataloader().batches
    for tensor, view in ((batches.padded, data.train.images), (batches.labels, data.train.labels)):
        assert tensor.is_shared()
        assert np.shares_memory(tensor.numpy(), view)
    np.testing.assert_array_equal(data.train.images, before)
    assert data.train_dataloader().batches.padded is batches.padded


def test_the_images_are_in_memory_once() -> None:
    """The training images are a view of the padded ones from which the batches are cut."""
    data = make_data(num_workers=2)
    images = data.train.images
    padded = data.train_dataloader().batches.padded
    np.testing.assert_array_equal(data.train.images, images)
    assert np.shares_memory(data.train.images, padded.numpy())
    assert data.train_dataloader().batches.padded is padded


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
        read_data(InMemory(images, images), val_size=val_size, train_size=train_size, seed=seed) for _ in range(2)
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
        ({"classes": 31, "val_size": 31}, "'class30', of which one image is left: give it more images"),
        ({"classes": 31, "train_size": 31}, "'class30', of which one image is left: give it more images"),
    ],
)
def test_impossible_splits_are_refused(options: dict[str, int], message: str) -> None:
    images = numbered(60 + (options.get("classes") == 31), options.pop("classes", 3))
    with pytest.raises(InputError, match=message):
        read_data(InMemory(images, images), **options)


def files_of(images: ImageSet, root: Path) -> Source:
    """Write images as the training images of a folder, whose order of files is theirs, and its test images."""
    for number, (image, label) in enumerate(zip(images.images, images.labels, strict=True)):
        for name in ("train", "test"):
            folder = root / name / images.classes[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{number:03}.png")
    return Folder(str(root))


@pytest.mark.parametrize("options", [{"train_size": 12}, {"val_size": 9}, {"val_size": 9, "train_size": 12}, {}])
def test_a_folder_is_split_like_the_same_images_in_memory(tmp_path: Path, options: dict[str, int]) -> None:
    images = numbered(60)
    images = images.subset(np.argsort(images.labels, kind="stable"))
    expected = read_data(InMemory(images, images), **options, seed=3)
    data = read_data(files_of(images, tmp_path), **options, seed=3)
    assert data.train is not None
    for part, same in ((data.train, expected.train), (data.val, expected.val), (data.test, expected.test)):
        assert (part is None) == (same is None)
        if part is not None and same is not None:
            np.testing.assert_array_equal(part.images, same.images)
            np.testing.assert_array_equal(part.labels, same.labels)
    assert (data.mean, data.std) == (expected.mean, expected.std)


def test_an_image_that_no_split_uses_is_not_read(tmp_path: Path) -> None:
    source, options = files_of(numbered(60), tmp_path), {"train_size": 12, "val_size": 9}
    before = read_data(source, **options)
    used = [name for part in (before.train, before.val) if part is not None for name in part.files or ()]
    unused = {path.relative_to(tmp_path).as_posix() for path in (tmp_path / "train").rglob("*.png")} - {*used}
    assert len(unused) == 60 - 12 - 9
    for name in unused:
        (tmp_path / name).write_bytes(b"broken")
    after = read_data(source, **options)
    assert before.train is not None
    assert after.train is not None
    assert after.train.files == before.train.files
    np.testing.assert_array_equal(after.train.images, before.train.images)
    (tmp_path / used[0]).write_bytes(b"broken")
    with pytest.raises(InputError, match=f"{used[0]} cannot be read"):
        read_data(source, **options)


def test_what_can_be_refused_unread_is(tmp_path: Path) -> None:
    source = files_of(numbered(60), tmp_path)
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"broken")
    with pytest.raises(InputError, match="ask for more than the 60 training images"):
        read_data(source, val_size=60)
    for path in (tmp_path / "test").rglob("*.png"):
        path.unlink()
    with pytest.raises(InputError, match="has no images"):
        read_data(source)


class Watched(Source):
    """Writes down what is asked of it."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def prepare(self) -> None:
        self.asked.append("prepare")

    def train(self) -> ImageSet:
        self.asked.append("train")
        return make_image_set(48)

    def test(self) -> ImageSet:
        self.asked.append("test")
        return make_image_set(12, seed=1)


@pytest.mark.parametrize(
    ("stage", "options", "asked"),
    [
        ("fit", {}, ["train", "test"]),
        ("fit", {"val_size": 12}, ["train"]),
        ("fit", {"val_size": 12, "test_statistics": "test"}, ["train", "test"]),
        ("validate", {}, ["train", "test"]),
        ("test", {}, ["test"]),
        ("test", {"val_size": 12, "test_statistics": "test"}, ["test"]),
        (None, {"val_size": 12}, ["train", "test"]),
    ],
)
def test_a_stage_reads_what_it_needs_and_that_once(
    stage: str | None, options: dict[str, Any], asked: list[str]
) -> None:
    source = Watched()
    data = ImageDataModule(source, **DATA | options)
    data.prepare_data()
    for _ in range(2):
        data.setup(stage)
        data.prepare_data()
    assert source.asked == ["prepare", *asked]
    assert data.classes == ("class0", "class1", "class2")
    assert [name for name in ("train", "test") if getattr(data, name) is not None] == asked
    assert (data.val is not None) == ("train" in asked and "val_size" in options)


@pytest.mark.parametrize("statistics", ["train", "test"])
def test_what_was_read_for_the_test_is_not_read_again_for_training(statistics: str) -> None:
    source = Watched()
    data = ImageDataModule(source, **DATA | {"test_statistics": statistics})
    data.setup("test")
    data.setup("fit")
    assert source.asked == ["test", "train"]
    expected = make_data(test_statistics=statistics)
    for name in ("mean", "std", "test_mean", "test_std"):
        assert getattr(data, name) == getattr(expected, name)


@given(count=st.integers(1, 60), batch_size=st.integers(1, 30), accumulated=st.integers(1, 8))
@settings(deadline=None)
def test_an_epoch_has_whole_optimizer_steps(count: int, batch_size: int, accumulated: int) -> None:
    data = numbered_data(count, batch_size=batch_size, accumulate_grad_batches=accumulated)
    whole = count // min(batch_size, count)
    if whole < accumulated:
        with pytest.raises(InputError) as refused:
            data.train_dataloader()
        assert str(refused.value).startswith(f"trainer.accumulate_grad_batches={accumulated}: ")
        assert f"data.batch_size={batch_size} an epoch has only {whole} batch" in str(refused.value)
        return
    loader = data.train_dataloader()
    assert len(loader) % accumulated == 0
    assert 0 <= whole - len(loader) < accumulated
    assert len(epoch_batches(loader, 1)) == len(loader)


class Failing(Recorder):
    """Fails, or is interrupted, in the second epoch."""

    def __init__(self, error: type[BaseException]):
        super().__init__()
        self.error = error

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        if self.current_epoch == 1:
            raise self.error


@pytest.mark.parametrize("limit", [3, 2])
@pytest.mark.parametrize("start_method", ["fork"], indirect=True)
def test_no_worker_survives_training(start_method: str, tmp_path: Path, limit: int) -> None:
    data = make_data(num_workers=2)
    trainer = make_trainer(tmp_path, limit_val_batches=0, limit_train_batches=limit)
    trainer.fit(Recorder(), datamodule=data)
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(("error", "raised"), [(ZeroDivisionError, ZeroDivisionError), (KeyboardInterrupt, SystemExit)])
@pytest.mark.parametrize("start_method", ["fork"], indirect=True)
def test_no_worker_survives_training_that_fails(
    start_method: str, tmp_path: Path, error: type[BaseException], raised: type[BaseException]
) -> None:
    data = make_data(num_workers=2)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(raised):
        make_trainer(tmp_path, limit_val_batches=0).fit(Failing(error), datamodule=data)
    signal.signal(signal.SIGINT, handler)  # Lightning ignores it from its first on
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("start_method", ["fork"], indirect=True)
def test_no_worker_survives_its_loader(start_method: str) -> None:
    loader = make_data(num_workers=2).train_dataloader()
    next(iter(loader))
    assert len(multiprocessing.active_children()) == 2
    del loader
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("start_method", ["fork"], indirect=True)
def test_the_tuner_takes_the_loader_and_leaves_no_worker(start_method: str, tmp_path: Path) -> None:
    data = make_data(num_workers=2)
    finder = Tuner(make_trainer(tmp_path, max_epochs=-1, max_steps=8, limit_val_batches=0)).lr_find(
        Probe(make_classifier(data)), datamodule=data, num_training=8, early_stop_threshold=None, update_attr=False
    )
    assert finder is not None
    assert len(finder.results["loss"]) == 8
    assert multiprocessing.active_children() == []


def test_evaluation_is_unchanged_and_in_order() -> None:
    test = make_image_set(2_345)
    data = read_data(InMemory(make_image_set(48), test), num_workers=2)
    for loader in (data.test_dataloader(), data.val_dataloader()):
        batches = list(loader)
        np.testing.assert_array_equal(torch.cat([images for images, _ in batches]), test.images)
        np.testing.assert_array_equal(torch.cat([labels for _, labels in batches]), test.labels)


def test_the_validation_split_is_watched_where_there_is_one() -> None:
    data = numbered_data(60, val_size=12)
    assert data.val is not None
    assert (data.validation_name, numbered_data(60).validation_name) == ("val", "test")
    ((images, labels),) = data.val_dataloader()
    assert (numbers(images), labels.tolist()) == (numbers(data.val.images), data.val.labels.tolist())


def test_a_cpu_is_not_given_workers_unasked(tmp_path: Path) -> None:
    data = make_data(num_workers=None)
    data.trainer = make_trainer(tmp_path)
    loader = data.train_dataloader().loader
    assert (loader.num_workers, loader.pin_memory) == (0, False)


@pytest.mark.parametrize("side", [16, 64])
def test_another_image_size_scales_images_padding_and_cutout_alike(side: int) -> None:
    data = make_data(train=20, test=6, image_size=side, cutout=None)
    assert (data.train.images.shape, data.test.images.shape) == ((20, side, side, 3), (6, side, side, 3))
    padded = data.train_dataloader().batches.padded
    assert padded.shape == (20, side * 5 // 4, side * 5 // 4, 3)
    images, _ = data.train_dataloader().batches[0, 0]
    assert images.shape[1:] == (side, side, 3)
    cutout = data.train_dataloader().batches.augmentation.pipeline.transforms[-1]
    assert cutout.size == side // 4


@given(st.integers(2, 100_000), st.integers(1, 4), st.integers(1, 8))
def test_a_batch_size_of_its_own_gives_an_epoch_twenty_steps(images: int, accumulated: int, devices: int) -> None:
    size = batch_size_for(images, accumulated, devices)
    assert size % devices == 0
    assert size <= 512 or size == 2 * devices
    if size > 2 * devices:
        assert images // size // accumulated >= 20
    if images >= 512 * 20 * accumulated:
        assert 512 - size < devices


def test_without_a_batch_size_there_are_twenty_steps() -> None:
    assert len(make_data(train=300, batch_size=None).train_dataloader()) == 20


def test_devices_share_the_images_that_are_evaluated_and_are_no_more_than_these() -> None:
    data = make_data(test=7)
    labels = []
    for rank in range(3):
        device = SimpleNamespace(type="cpu")
        data.trainer = SimpleNamespace(  # type: ignore[assignment]
            global_rank=rank, world_size=3, strategy=SimpleNamespace(root_device=device)
        )
        labels += [label for _, batch in data.test_dataloader() for label in batch.tolist()]
    assert labels == data.test.labels.tolist()  # type: ignore[union-attr]
    data.trainer.world_size = 8  # type: ignore[union-attr,misc]
    with pytest.raises(InputError, match="only 7 images"):
        data.test_dataloader()
