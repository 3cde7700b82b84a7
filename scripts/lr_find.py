"""Find the learning-rate bounds without training: `python scripts/lr_find.py --help` shows the keys."""

from cifar_resnet.cli.command import run
from cifar_resnet.cli.schema import LrFind


def main(config: LrFind) -> None:
    """Search as configured."""
    from cifar_resnet.experiment import find_lr

    find_lr(config)


if __name__ == "__main__":
    run("lr_find", main)
