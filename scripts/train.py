"""Train, and see what went wrong: `python scripts/train.py --help` shows the keys."""

import signal
from pathlib import Path
from typing import Any

signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends without a traceback until there is a listener

from cifar_resnet import interruption

interruption.listen()  # before what takes a moment to import

from cifar_resnet.cli.command import run
from cifar_resnet.cli.schema import Train


def main(config: Train) -> object:
    """Train as configured."""
    from cifar_resnet.experiment import train

    return train(config)


def compare(folders: list[Path]) -> None:
    """Compare what several values of a key came to."""
    from cifar_resnet.results.compare import compare_folders

    compare_folders(folders)


def score(result: Any) -> float | None:
    """Return what a search over values makes as large as it can."""
    return result.val_accuracy


if __name__ == "__main__":
    run("train", main, afterwards=compare, score=score)
