"""Turn a checkpoint into a file that runs without this project: `python scripts/export.py --help` shows the keys."""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends without a traceback until there is a listener

from cifar_resnet import interruption

interruption.listen()  # before what takes a moment to import

from cifar_resnet.cli.command import run
from cifar_resnet.cli.schema import Export


def main(config: Export) -> None:
    """Export as configured."""
    from cifar_resnet.inference.export import export

    export(config)


if __name__ == "__main__":
    run("export", main)
