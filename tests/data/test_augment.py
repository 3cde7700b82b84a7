"""The augmentation, exact to the pixel, and its draws: uniform, independent, and a function of their seeds alone."""

from dataclasses import astuple, dataclass
from itertools import combinations

import albumentations as A
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import chi2_contingency, chisquare
from torch.utils.data import DataLoader, Dataset

from cifar_resnet.data.augment import Augmentation, Cutout, pad
from cifar_resnet.data.batches import TrainingBatches

SIZE, CUTOUT = 32, 8
FILL = np.array([255, 254, 253], np.uint8)  # occurs in no image of coordinates
DRAWS = 6000


def coordinates(count: int = 1) -> np.ndarray:
    """Padded images whose pixel at row r and column c is ``(r, c, 0)``."""
    rows, columns = np.indices((SIZE + 8, SIZE + 8), np.uint8)
    return np.broadcast_to(np.stack([rows, columns, np.zeros_like(rows)], -1), (count, SIZE + 8, SIZE + 8, 3))


@dataclass(frozen=True)
class Places:
    """What was drawn for each image, read off its pixels: arrays ``[N]``."""

    top: np.ndarray
    left: np.ndarray
    flipped: np.ndarray
    cut_top: np.ndarray
    cut_left: np.ndarray


def read_off(batch: np.ndarray) -> Places:
    """Recover the draws from augmented `coordinates`, and check that every pixel agrees with them."""
    index = np.arange(SIZE)
    cut = (batch == FILL).all(axis=-1)
    cut_top, cut_left = cut.any(axis=2).argmax(axis=1), cut.any(axis=1).argmax(axis=1)
    in_rows, in_columns = (
        (start[:, None] <= index) & (index < start[:, None] + CUTOUT) for start in (cut_top, cut_left)
    )
    np.testing.assert_array_equal(cut, in_rows[:, :, None] & in_columns[:, None, :])
    assert (cut.sum(axis=(1, 2)) == CUTOUT**2).all()

    free_row, free_column = (cut_top == 0) * (SIZE - 1), (cut_left == 0) * (SIZE - 1)
    everyone = np.arange(len(batch))
    rows, columns = batch[everyone, :, free_column, 0].astype(int), batch[everyone, free_row, :, 1].astype(int)
    top, flipped = rows[:, 0], columns[:, 0] > columns[:, 1]
    left = columns.min(axis=1)
    expected = np.zeros_like(batch)
    expected[..., 0] = (top[:, None] + index)[:, :, None]
    expected[..., 1] = (left[:, None] + np.where(flipped[:, None], index[::-1], index))[:, None, :]
    expected[cut] = FILL
    np.testing.assert_array_equal(batch, expected)
    return Places(top, left, flipped.astype(int), cut_top, cut_left)


def augment(count: int, *seeds: int, **options: bool | int) -> np.ndarray:
    augmentation = Augmentation(**{"size": SIZE, "flip": True, "cutout": CUTOUT, "fill": FILL} | options)
    return augmentation(coordinates(count), np.arange(count), np.random.SeedSequence(seeds))


@pytest.fixture(scope="module")
def places() -> Places:
    """Draws of many batches, in the order in which they are made."""
    batches = [read_off(augment(50, 0, batch)) for batch in range(DRAWS // 50)]
    return Places(*(np.concatenate(drawn) for drawn in zip(*map(astuple, batches), strict=True)))


def test_crop_offsets_are_uniform(places: Places) -> None:
    counts = np.bincount(9 * places.top + places.left, minlength=81)
    assert len(counts) == 81
    assert chisquare(counts).pvalue > 1e-3


def test_half_of_the_images_are_flipped(places: Places) -> None:
    assert chisquare(np.bincount(places.flipped)).pvalue > 1e-3


def test_cutout_places_are_uniform_and_wholly_inside(places: Places) -> None:
    positions = SIZE - CUTOUT + 1
    for drawn in (places.cut_top, places.cut_left):
        counts = np.bincount(drawn, minlength=positions)
        assert len(counts) == positions
        assert chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize(("one", "other"), combinations(Places.__dataclass_fields__, 2))
def test_draws_of_an_image_are_independent(places: Places, one: str, other: str) -> None:
    assert independence(getattr(places, one), getattr(places, other)) > 1e-4


@pytest.mark.parametrize("name", Places.__dataclass_fields__)
@pytest.mark.parametrize("lag", [1, 50])  # the next image, and the same place in the next batch
def test_draws_of_different_images_are_independent(places: Places, name: str, lag: int) -> None:
    drawn = getattr(places, name)
    assert independence(drawn[:-lag], drawn[lag:]) > 1e-4


def independence(one: np.ndarray, other: np.ndarray) -> float:
    """Return the p-value of the chi-square test that two draws have nothing to do with each other."""
    table = np.zeros((one.max() + 1, other.max() + 1))
    np.add.at(table, (one, other), 1)
    return chi2_contingency(table).pvalue


def test_crop_comes_before_flip_before_cutout() -> None:
    augmentation = Augmentation(SIZE, flip=True, cutout=CUTOUT, fill=FILL)
    names = [type(transform).__name__ for transform in augmentation.pipeline.transforms]
    assert [next(kind for kind in ("Crop", "Flip", "Cutout") if kind in name) for name in names] == [
        "Crop",
        "Flip",
        "Cutout",
    ]


def test_flip_and_cutout_can_be_left_out() -> None:
    batch = augment(200, 0, flip=False, cutout=0)
    assert (np.diff(batch[..., 1].astype(int), axis=2) == 1).all()
    assert (batch[..., 2] == 0).all()


def test_draws_are_a_function_of_the_seeds() -> None:
    augmentation = Augmentation(SIZE, flip=True, cutout=CUTOUT, fill=FILL)
    images, rows = coordinates(20), np.arange(20)
    first = augmentation(images, rows, np.random.SeedSequence((1, 2)))
    second = augmentation(images, rows, np.random.SeedSequence((1, 3)))
    assert (first != second).any()
    np.testing.assert_array_equal(augmentation(images, rows, np.random.SeedSequence((1, 2))), first)
    np.testing.assert_array_equal(augment(20, 1, 3), second)


def test_only_the_chosen_rows_are_taken_and_the_originals_stay() -> None:
    values = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90]], np.uint8)
    images = np.broadcast_to(values[:, None, None], (3, SIZE + 8, SIZE + 8, 3)).copy()
    before = images.copy()
    batch = Augmentation(SIZE, True, CUTOUT, FILL)(images, np.array([2, 0]), np.random.SeedSequence(0))
    assert (batch.dtype, batch.shape) == (np.uint8, (2, SIZE, SIZE, 3))
    for image, value in zip(batch, values[[2, 0]], strict=True):
        assert {tuple(pixel) for pixel in image.reshape(-1, 3)} == {tuple(value), tuple(FILL)}
    np.testing.assert_array_equal(images, before)


@given(arrays(np.uint8, (6, 9, 3)), st.integers(1, 6), st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_cutout_fills_one_square_of_any_image(image: np.ndarray, size: int, seed: int) -> None:
    cutout, before = Cutout(size, np.array([1, 2, 3], np.uint8)), image.copy()
    cutout.set_random_seed(seed)
    result = cutout(image=image)["image"]
    np.testing.assert_array_equal(image, before)
    squares = (
        (top, left)
        for top in range(image.shape[0] - size + 1)
        for left in range(image.shape[1] - size + 1)
        if (result[top : top + size, left : left + size] == (1, 2, 3)).all()
    )
    for top, left in squares:
        filled = image.copy()
        filled[top : top + size, left : left + size] = (1, 2, 3)
        if (filled == result).all():
            return
    pytest.fail("the result is not the image with one square filled")


SIDES = st.sampled_from([16, 24, 32, 40])


@given(st.data(), st.integers(1, 3), SIDES)
@settings(max_examples=50, deadline=None)
def test_reflect_padding_mirrors_at_the_border_pixel(data: st.DataObject, count: int, side: int) -> None:
    images = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, 256, (count, side, side, 3), np.uint8)
    place = np.abs(np.arange(-side // 8, side + side // 8))
    mirrored = np.where(place < side, place, 2 * (side - 1) - place)
    expected = images[:, mirrored][:, :, mirrored]
    np.testing.assert_array_equal(pad(images, "reflect", FILL), expected)


@given(st.data(), st.integers(1, 3), SIDES)
@settings(max_examples=50, deadline=None)
def test_mean_padding_surrounds_the_image_with_the_fill(data: st.DataObject, count: int, side: int) -> None:
    images = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, 256, (count, side, side, 3), np.uint8)
    padded = pad(images, "mean", FILL)
    eighth = side // 8
    assert padded.dtype == np.uint8
    np.testing.assert_array_equal(padded[:, eighth:-eighth, eighth:-eighth], images)
    margin = np.ones(padded.shape[:3], bool)
    margin[:, eighth:-eighth, eighth:-eighth] = False
    assert (padded[margin] == FILL).all()
    assert margin.sum() == padded[..., 0].size - images[..., 0].size


class TextbookDataset(Dataset[np.ndarray]):
    """What most tutorials do: one albumentations pipeline, called per image in every worker."""

    def __init__(self) -> None:
        self.pipeline = A.Compose([A.RandomCrop(SIZE, SIZE), A.HorizontalFlip(p=0.5)])
        self.image = coordinates()[0]

    def __len__(self) -> int:
        return 48

    def __getitem__(self, index: int) -> np.ndarray:
        return self.pipeline(image=self.image)["image"]


def test_albumentations_alone_repeats_its_draws_in_every_worker() -> None:
    """The reason why `Augmentation` is given its seeds: if this fails, the library has mended it."""
    loader = DataLoader(TextbookDataset(), batch_size=24, num_workers=2, multiprocessing_context="fork")
    first, second = (batch.numpy() for batch in loader)
    np.testing.assert_array_equal(first, second)


def test_images_that_are_to_be_mirrored_are_and_no_others() -> None:
    mirrored = np.array([True, False, True, True, False])
    augmentation = Augmentation(SIZE, flip=False, cutout=CUTOUT, fill=FILL)
    seeds = np.random.SeedSequence(0)
    batch = augmentation(coordinates(5), np.arange(5), seeds, mirrored)
    assert read_off(batch).flipped.tolist() == mirrored.tolist()


def test_an_alternating_flip_shows_both_sides_of_each_image_in_two_epochs() -> None:
    count = 400
    padded, labels = torch.from_numpy(coordinates(count).copy()), torch.arange(count)
    augmentation = Augmentation(SIZE, flip=False, cutout=CUTOUT, fill=FILL)
    batches = TrainingBatches(padded, labels, augmentation, batch_size=50, seed=3, alternating=True)

    def flips(epoch: int) -> np.ndarray:
        flipped = np.empty(count, int)
        for batch in range(len(batches)):
            images, rows = batches[epoch, batch]
            flipped[rows.numpy()] = read_off(images.numpy()).flipped
        return flipped

    first = flips(0)
    assert 150 < first.sum() < 250
    assert (flips(1) == 1 - first).all()
    assert (flips(2) == first).all()
