"""Evaluate a checkpoint, and see what it gets wrong: `python scripts/evaluate.py --help` shows the keys."""

from omegaconf import DictConfig

from cifar_resnet.cli.command import command
from cifar_resnet.cli.schema import one_of, optional


@command("evaluate", tta=optional(one_of("flip")))
def main(config: DictConfig) -> None:
    """Evaluate as configured."""
    from cifar_resnet.experiment import evaluate

    evaluate(config)


if __name__ == "__main__":
    main()
