"""Train, and see what went wrong: `python scripts/train.py --help` shows the keys."""

from omegaconf import DictConfig

from cifar_resnet.cli.command import command


@command("train")
def main(config: DictConfig) -> None:
    """Train as configured."""
    from cifar_resnet.experiment import train

    train(config)


if __name__ == "__main__":
    main()
