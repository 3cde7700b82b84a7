"""Classify any images, and see where the network looked: `python scripts/predict.py --help` shows the keys."""

import sys

from omegaconf import DictConfig

from cifar_resnet.cli.command import command
from cifar_resnet.cli.schema import TEXT, one_of, whole


@command("predict", images=TEXT, format=one_of("table", "json"), sheet=whole(0, 100), output=TEXT)
def main(config: DictConfig) -> None:
    """Predict as configured; exit code 1 says that a file could not be read."""
    from cifar_resnet.inference.predict import predict

    if predict(config):
        sys.exit(1)


if __name__ == "__main__":
    main()
