"""Compare finished runs: `python scripts/compare.py --help` shows the keys."""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends without a traceback until there is a listener

from cifar_resnet import interruption

interruption.listen()  # before what takes a moment to import

from cifar_resnet.cli.command import run
from cifar_resnet.cli.schema import Compare


def main(config: Compare) -> None:
    """Compare as configured."""
    from cifar_resnet.results.compare import compare

    compare(config)


if __name__ == "__main__":
    run("compare", main)
