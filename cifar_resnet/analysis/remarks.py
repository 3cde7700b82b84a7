"""What somebody who knows would say before a training begins, and after it: pure functions, a line each."""

from collections.abc import Mapping

from torch import nn

from cifar_resnet.analysis.metrics import Evaluation
from cifar_resnet.data.batches import FEWEST_STEPS

LOPSIDED = 10  # times as many images in one class as in another
FAR_AHEAD = 0.10  # of accuracy
MOST_LEFT = 0.05  # of what a batch norm begins with


def describe_counts(counts: Mapping[str, int]) -> str:
    """Return how many classes there are, and of how many images: ``3 classes of 12 (cat) to 300 (dog) images``."""
    fewest, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    if counts[fewest] == counts[most]:
        return f"{len(counts)} classes of {counts[most]:,} image{'s' * (counts[most] > 1)} each"
    return f"{len(counts)} classes of {counts[fewest]:,} ({fewest}) to {counts[most]:,} ({most}) images"


def remark_few_steps(steps: int, batch_size: int, advised: int) -> list[str]:
    """Say that an epoch has fewer than `FEWEST_STEPS` optimizer steps, in which a schedule of rates has no time.

    Args:
        steps: of an epoch.
        batch_size: in effect.
        advised: what `cifar_resnet.data.batches.batch_size_for` gives; where that is no smaller, there are too few
            images, and more epochs are what remains.
    """
    if steps >= FEWEST_STEPS:
        return []
    few = f"{steps} step{'s' * (steps > 1)} an epoch, too few for the schedule"
    if advised < batch_size:
        return [f"{few}: data.batch_size=null takes batches of {advised} instead of {batch_size}"]
    return [f"{few}: raise trainer.max_epochs, or bring more images"]


def remark_batch_norm(network: nn.Module, batches: int) -> list[str]:
    """Say that statistics of a batch norm keep more than `MOST_LEFT` of their first values, mean 0 and variance 1.

    A batch moves them by the norm's momentum. They spoil the test, and not the training, which has each batch's own.

    Args:
        network: before it is trained.
        batches: of the whole training.
    """
    norms = (module for module in network.modules() if isinstance(module, nn.BatchNorm2d))
    left = max(((1 - norm.momentum) ** batches for norm in norms if norm.momentum is not None), default=0.0)
    if left <= MOST_LEFT:
        return []
    return [
        f"the statistics of a batch norm will keep {left:.0%} of their first values, and the test suffer: raise "
        "trainer.max_epochs, lower data.batch_size, or give the network's batch norms a larger momentum"
    ]


def remark_lopsided(counts: Mapping[str, int], weighted: bool) -> list[str]:
    """Say that a class has `LOPSIDED` times the training images of another, or more, and they count alike.

    Args:
        counts: training images of each class; those without any are left out.
        weighted: whether the loss makes up for it.
    """
    present = {name: count for name, count in counts.items() if count}
    fewest, most = min(present, key=present.__getitem__), max(present, key=present.__getitem__)
    if weighted or present[most] < LOPSIDED * present[fewest]:
        return []
    return [
        f"{most} has {present[most] / present[fewest]:.0f} times the images of {fewest}: "
        "classifier.class_weights=balanced lets the classes count alike"
    ]


def remark_one_class(evaluation: Evaluation) -> list[str]:
    """Say that all predictions are of one class, where there are test images of others."""
    predicted = [sum(column) for column in zip(*evaluation.confusion, strict=True)]
    tested = sum(figures.images > 0 for figures in evaluation.classes)
    if max(predicted) < evaluation.images or tested < 2:
        return []
    name = evaluation.classes[predicted.index(evaluation.images)].name
    return [
        f"every test image is taken for {name}: nothing that tells the classes apart was learned; "
        "try smaller batches (data.batch_size) and more epochs (trainer.max_epochs), and look at batch.png"
    ]


def remark_far_ahead(train_accuracy: float | None, evaluation: Evaluation) -> list[str]:
    """Say that training is far ahead of the test.

    That is, by more than `FAR_AHEAD`, which is worth doing something about, and beyond the 95 % Wilson interval of the
    test's accuracy, which chance does not explain.

    Args:
        train_accuracy: of the last epoch, as its images were trained on, 0 to 1; None where there was none.
        evaluation: of the test images.
    """
    test = evaluation.accuracy
    if train_accuracy is None or train_accuracy - test.value <= FAR_AHEAD or train_accuracy <= test.high:
        return []
    return [
        f"training is far ahead of the test, {train_accuracy:.2%} against {test.value:.2%}: the training images are "
        "known by heart, the test's are of another kind, or batch norm's statistics lag behind after few steps; try "
        "more images, smaller batches, a smaller network, or a higher optimizer.weight_decay"
    ]
