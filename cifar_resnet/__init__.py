"""Train a custom ResNet on CIFAR-10 under One Cycle with found learning rates, and see what it gets wrong.

The jobs take the same keys as the scripts of their names, ``train("experiment=quickstart", "seed=1")``. What they need
is imported when they are called.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cifar_resnet.analysis.metrics import Evaluation
    from cifar_resnet.lr.search import LrSearch
    from cifar_resnet.results.record import TrainResult

__all__ = ["evaluate", "find_lr", "train"]


def train(*overrides: str) -> "TrainResult":
    """Find the bounds, train, test, and leave a run folder, as ``python scripts/train.py`` does.

    Args:
        overrides: ``key=value``, as on the command line.

    Returns:
        The test accuracy, the bounds, the trained classifier, the run's folder and more.

    Raises:
        cifar_resnet.errors.InputError: something cannot be used; the message says what to do.
    """
    return _run("train", "train", overrides)


def find_lr(*overrides: str) -> "LrSearch":
    """Find the learning-rate bounds alone, as ``python scripts/lr_find.py`` does; arguments and errors as `train`.

    Returns:
        The bounds, the verdict, and the losses that they come from.
    """
    return _run("lr_find", "find_lr", overrides)


def evaluate(*overrides: str) -> "Evaluation":
    """Evaluate a checkpoint, as ``python scripts/evaluate.py`` does; arguments and errors as `train`.

    Returns:
        Accuracy with its interval, every class's figures, calibration, and what is confused with what.
    """
    return _run("evaluate", "evaluate", overrides)


def _run(command: str, job: str, overrides: Sequence[str]) -> Any:
    from cifar_resnet.cli.compose import compose
    from cifar_resnet.messages import say_loading

    config = compose(command, *overrides)  # before what takes seconds to import
    say_loading()
    from cifar_resnet import experiment

    return getattr(experiment, job)(config)
