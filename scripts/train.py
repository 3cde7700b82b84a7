"""Train, and see what went wrong: `python scripts/train.py --help` shows the keys."""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends without a traceback until there is a listener

from cifar_resnet import interruption

interruption.listen()  # before what takes a moment to import

from cifar_resnet.cli.command import run
from cifar_resnet.cli.schema import Train


def main(config: Train) -> None:
    """Train as configured."""
    from cifar_resnet.experiment import train

    train(config)


if __name__ == "__main__":
    run("train", main)
