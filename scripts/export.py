"""Turn a checkpoint into a file that runs without this project: `python scripts/export.py --help` shows the keys."""

from cifar_resnet.cli.command import command
from cifar_resnet.cli.schema import Export


@command("export")
def main(config: Export) -> None:
    """Export as configured."""
    from cifar_resnet.inference.export import export

    export(config)


if __name__ == "__main__":
    main()
