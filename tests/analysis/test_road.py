"""Whether a map is to be believed, against removals made by hand, and on a network that looks at one place alone."""

import numpy as np
import pytest
import torch
from conftest import make_classifier, make_data
from torch import nn

from cifar_resnet.analysis.road import PERCENTAGES, Faithfulness, measure_faithfulness
from cifar_resnet.training.classifier import ImageClassifier


class LooksAtACorner(nn.Module):
    """Says class 0 the more, the brighter the 8×8 pixels in the upper left corner are."""

    def __init__(self, num_classes: int = 3):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_classes))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        corner = pixels[:, :, :8, :8].mean(dim=(1, 2, 3))
        return torch.stack([8 * corner, *[torch.zeros_like(corner)] * (len(self.weight) - 1)], dim=1)


def corner_classifier() -> ImageClassifier:
    classifier = make_classifier(make_data(), model={"_target_": f"{__name__}.LooksAtACorner"}, temperature=1.0)
    return classifier.eval()


def bright_corner(count: int = 4) -> np.ndarray:
    images = np.full((count, 32, 32, 3), 60, np.uint8)
    images[:, :8, :8] = 200
    return images


def heat(rows: slice, columns: slice, count: int = 4) -> np.ndarray:
    maps = np.zeros((count, 32, 32), np.float32)
    maps[:, rows, columns] = 1
    return maps


def test_a_map_of_the_place_that_matters_beats_chance_and_one_of_another_place_does_not() -> None:
    classifier, images = corner_classifier(), bright_corner()
    right = measure_faithfulness(classifier, images, heat(slice(8), slice(8)), [0] * 4)
    wrong = measure_faithfulness(classifier, images, heat(slice(24, 32), slice(24, 32)), [0] * 4)
    assert all(each.better_than_chance and each.marked > 0.3 for each in right)
    assert all(each.marked < 0.2 for each in wrong)
    assert sum(each.better_than_chance for each in wrong) <= 1


def fill_in(pixels: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """Make each removed pixel the mean of its eight neighbours, those at the corners half as heavy, by iteration."""
    filled, inside = np.where(removed, pixels.mean(), pixels), np.ones_like(removed, dtype=float)
    shifts = [(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1) if (row, column) != (0, 0)]

    def around(values: np.ndarray) -> np.ndarray:
        padded = np.pad(values, ((0, 0), (1, 1), (1, 1)))
        moved = [
            padded[:, 1 + row : 33 + row, 1 + column : 33 + column] / (1 + abs(row * column)) for row, column in shifts
        ]
        return np.sum(moved, axis=0)

    for _ in range(2000):
        filled = np.where(removed, around(filled) / around(inside), pixels)
    return filled


def test_what_is_removed_and_filled_in_is_as_by_hand() -> None:
    classifier, images = corner_classifier(), make_data().test.images[:1]
    heats = np.random.default_rng(5).random((1, 32, 32)).cumsum(axis=1).astype(np.float32)  # more below, no two alike
    heats = heats[:, ::-1, ::-1].copy()  # so the upper rows are removed, where it looks
    pixels = classifier.normalize(torch.from_numpy(images))[0].numpy()
    falls = []
    with torch.no_grad():
        before = classifier.network(torch.from_numpy(pixels)[None]).softmax(1)[0, 0].item()
        for share in PERCENTAGES:
            removed = np.zeros(1024, bool)
            removed[np.argsort(-heats.ravel())[: int(np.ceil(1024 * share / 100))]] = True
            filled = fill_in(pixels, np.broadcast_to(removed.reshape(32, 32), pixels.shape))
            after = classifier.network(torch.from_numpy(filled.astype(np.float32))[None]).softmax(1)[0, 0].item()
            falls.append(before - after)
    (found,) = measure_faithfulness(classifier, images, heats, [0])
    assert abs(np.mean(falls)) > 0.01
    assert found.marked == pytest.approx(np.mean(falls), abs=0.003)  # it adds a faint noise


def test_it_draws_nothing_from_the_run_and_gives_the_same_twice() -> None:
    classifier, images = corner_classifier(), make_data().test.images[:2]
    maps = np.random.default_rng(0).random((2, 32, 32)).astype(np.float32)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    with torch.inference_mode():  # in which Lightning tests
        first = measure_faithfulness(classifier, images, maps, [0, 1], seed=3)
    assert torch.equal(torch.rand(3), expected)
    assert measure_faithfulness(classifier, images, maps, [0, 1], seed=3) == first
    assert measure_faithfulness(classifier, images, maps, [0, 1], seed=4) != first


def test_as_much_as_elsewhere_is_no_better_than_chance() -> None:
    assert not Faithfulness(marked=0.2, chance=0.2).better_than_chance
