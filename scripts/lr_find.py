"""Find the learning-rate bounds without training: `python scripts/lr_find.py --help` shows the keys."""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends without a traceback until there is a listener

from cifar_resnet import interruption

interruption.listen()  # before what takes a moment to import

from cifar_resnet.cli.command import run
from cifar_resnet.cli.schema import LrFind


def main(config: LrFind) -> None:
    """Search as configured."""
    from cifar_resnet.experiment import find_lr

    find_lr(config)


if __name__ == "__main__":
    run("lr_find", main)
