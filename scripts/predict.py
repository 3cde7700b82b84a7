"""Classify any images, and see where the network looked: `python scripts/predict.py --help` shows the keys."""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends without a traceback until there is a listener

import sys

from cifar_resnet import interruption

interruption.listen()  # before what takes a moment to import

from cifar_resnet.cli.command import run
from cifar_resnet.cli.schema import Predict


def main(config: Predict) -> None:
    """Predict as configured; exit code 1 says that a file could not be read."""
    from cifar_resnet.inference.predict import predict

    if predict(config):
        sys.exit(1)


if __name__ == "__main__":
    run("predict", main)
