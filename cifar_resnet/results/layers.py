"""The layers of a network, as a table for the terminal and for TensorBoard."""

from dataclasses import dataclass
from typing import Any

from lightning.pytorch.utilities.model_summary import ModelSummary
from rich import box
from rich.table import Column, Table
from rich.text import Text

from cifar_resnet.training.classifier import ImageClassifier

COLUMNS = ("layer", "kind", "output", "parameters")


@dataclass(frozen=True)
class Layer:
    """A direct child of the network, or the whole of it.

    Attributes:
        name: as in ``network.named_children()``.
        kind: its class.
        output: shape of what it returns for one image, as text; empty where that is no tensor.
        parameters: how many.
    """

    name: str
    kind: str
    output: str
    parameters: int


def list_layers(classifier: ImageClassifier) -> list[Layer]:
    """Return the children of a classifier's network, in their order, and the network itself as the last."""
    summary = ModelSummary(classifier, max_depth=2)
    columns = summary.layer_names, summary.layer_types, summary.out_sizes, summary.param_nums
    whole, *children = (
        Layer(name.removeprefix("network").removeprefix(".") or "network", kind, _shape(size), parameters)
        for name, kind, size, parameters in zip(*columns, strict=True)
        if name.partition(".")[0] == "network"
    )
    return [*children, whole]


def count_parameters(classifier: ImageClassifier) -> int:
    """Return how many parameters the network has."""
    return sum(parameter.numel() for parameter in classifier.network.parameters())


def _shape(size: Any) -> str:
    """Return ``[1, 64, 32, 32]`` as 64 × 32 × 32."""
    known = isinstance(size, list) and all(isinstance(each, int) for each in size)
    return " × ".join(map(str, size[1:])) if known else ""


def layer_table(layers: list[Layer]) -> Table:
    """Return the layers as a table for the terminal."""
    columns = [Column(name, justify="right" if name == "parameters" else "left") for name in COLUMNS]
    table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
    for layer in layers:
        table.add_row(Text(layer.name), Text(layer.kind), layer.output, f"{layer.parameters:,}")
    return table
