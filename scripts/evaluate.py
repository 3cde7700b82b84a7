"""Evaluate a checkpoint, and see what it gets wrong: `python scripts/evaluate.py --help` shows the keys."""

from cifar_resnet.cli.command import run
from cifar_resnet.cli.schema import Evaluate


def main(config: Evaluate) -> None:
    """Evaluate as configured."""
    from cifar_resnet.experiment import evaluate

    evaluate(config)


if __name__ == "__main__":
    run("evaluate", main)
