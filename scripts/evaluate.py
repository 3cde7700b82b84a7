"""Evaluate a checkpoint, and see what it gets wrong: `python scripts/evaluate.py --help` shows the keys."""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends without a traceback until there is a listener

from cifar_resnet import interruption

interruption.listen()  # before what takes a moment to import

from cifar_resnet.cli.command import run
from cifar_resnet.cli.schema import Evaluate


def main(config: Evaluate) -> None:
    """Evaluate as configured."""
    from cifar_resnet.experiment import evaluate

    evaluate(config)


if __name__ == "__main__":
    run("evaluate", main)
