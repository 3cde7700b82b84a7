"""Turn a checkpoint into a file that runs without this project: `python scripts/export.py --help` shows the keys."""

from omegaconf import DictConfig

from cifar_resnet.cli.command import command
from cifar_resnet.cli.schema import TEXT, one_of, optional


@command("export", format=one_of("onnx", "torchscript", "exported_program"), output=optional(TEXT))
def main(config: DictConfig) -> None:
    """Export as configured."""
    from cifar_resnet.inference.export import export

    export(config)


if __name__ == "__main__":
    main()
