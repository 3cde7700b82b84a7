"""What is said of data and result: where it helps, and nowhere else."""

import pytest
import torch

from cifar_resnet.analysis.metrics import Evaluation, evaluate_predictions
from cifar_resnet.analysis.remarks import (
    describe_counts,
    remark_far_ahead,
    remark_few_steps,
    remark_lopsided,
    remark_one_class,
)

CLASSES = ("cat", "dog", "ship")


def evaluation(predicted: list[int], labels: list[int]) -> Evaluation:
    return evaluate_predictions(torch.eye(3)[predicted], torch.tensor(labels), CLASSES)


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ((100, 100, 100), "3 classes of 100 images each"),
        ((1, 1, 1), "3 classes of 1 image each"),
        ((12, 3000, 40), "3 classes of 12 (cat) to 3,000 (dog) images"),
        ((7, 0, 7), "3 classes of 0 (dog) to 7 (cat) images"),
    ],
)
def test_classes_are_counted_in_a_few_words(counts: tuple[int, ...], words: str) -> None:
    assert describe_counts(dict(zip(CLASSES, counts, strict=True))) == words


def test_few_steps_have_a_remedy_that_helps() -> None:
    assert remark_few_steps(20, 512, 15) == []
    (line,) = remark_few_steps(1, 300, 15)
    assert line.startswith("1 step an epoch")
    assert "data.batch_size=null takes batches of 15 instead of 300" in line
    (line,) = remark_few_steps(19, 2, 2)
    assert "data.batch_size" not in line
    assert "trainer.max_epochs" in line


@pytest.mark.parametrize(("counts", "said"), [((300, 31, 0), False), ((300, 30, 0), True), ((30, 300, 100), True)])
def test_ten_times_the_images_are_lopsided_unless_they_are_weighed(counts: tuple[int, ...], said: bool) -> None:
    named = dict(zip(CLASSES, counts, strict=True))
    lines = remark_lopsided(named, weighted=False)
    assert any("10 times" in line and "classifier.class_weights=balanced" in line for line in lines) == said
    assert len(lines) == said
    assert remark_lopsided(named, weighted=True) == []


def test_one_class_for_all_is_said_by_its_name() -> None:
    (line,) = remark_one_class(evaluation([2, 2, 2], [0, 1, 2]))
    assert line.startswith("every test image is taken for ship")
    assert remark_one_class(evaluation([2, 2, 1], [0, 1, 2])) == []
    assert remark_one_class(evaluation([2, 2], [2, 2])) == []


@pytest.mark.parametrize(
    ("train_accuracy", "right", "tested", "said"),
    [
        (0.98, 50, 100, True),
        (0.98, 89, 100, False),  # 9 points
        (0.71, 60, 100, True),  # the interval ends at 69.1 %
        (0.71, 6, 10, False),  # it ends at 83 %
        (0.5, 90, 100, False),
        (None, 50, 100, False),
    ],
)
def test_training_far_ahead_is_more_than_ten_points_and_more_than_chance(
    train_accuracy: float | None, right: int, tested: int, said: bool
) -> None:
    result = evaluation([0] * right + [1] * (tested - right), [0] * tested)
    assert len(remark_far_ahead(train_accuracy, result)) == said
