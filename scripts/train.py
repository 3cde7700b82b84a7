"""Train, and see what went wrong: `python scripts/train.py --help` shows the keys."""

from cifar_resnet.cli.command import run
from cifar_resnet.cli.schema import Train


def main(config: Train) -> None:
    """Train as configured."""
    from cifar_resnet.experiment import train

    train(config)


if __name__ == "__main__":
    run("train", main)
