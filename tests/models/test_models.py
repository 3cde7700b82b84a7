"""The networks are those of the assignment, layer by layer."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cifar_resnet.models import CustomResNet, resnet18
from cifar_resnet.models.resnet18 import BasicBlock

# The summary table of the assignment: layer, output channels, output height and width, parameters.
BLOCK_64 = [
    ("Conv2d", 64, 32, 36_864),
    ("BatchNorm2d", 64, 32, 128),
    ("Conv2d", 64, 32, 36_864),
    ("BatchNorm2d", 64, 32, 128),
    ("BasicBlock", 64, 32, 0),
]
ASSIGNMENT_TABLE = [
    ("Conv2d", 64, 32, 1_728),
    ("BatchNorm2d", 64, 32, 128),
    ("ReLU", 64, 32, 0),
    *BLOCK_64,
    *BLOCK_64,
    ("Conv2d", 128, 16, 73_728),
    ("BatchNorm2d", 128, 16, 256),
    ("Conv2d", 128, 16, 147_456),
    ("BatchNorm2d", 128, 16, 256),
    ("Conv2d", 128, 16, 8_192),
    ("BatchNorm2d", 128, 16, 256),
    ("BasicBlock", 128, 16, 0),
    ("Conv2d", 128, 16, 147_456),
    ("BatchNorm2d", 128, 16, 256),
    ("Conv2d", 128, 16, 147_456),
    ("BatchNorm2d", 128, 16, 256),
    ("BasicBlock", 128, 16, 0),
    ("Conv2d", 256, 8, 294_912),
    ("BatchNorm2d", 256, 8, 512),
    ("Conv2d", 256, 8, 589_824),
    ("BatchNorm2d", 256, 8, 512),
    ("Conv2d", 256, 8, 32_768),
    ("BatchNorm2d", 256, 8, 512),
    ("BasicBlock", 256, 8, 0),
    ("Conv2d", 256, 8, 589_824),
    ("BatchNorm2d", 256, 8, 512),
    ("Conv2d", 256, 8, 589_824),
    ("BatchNorm2d", 256, 8, 512),
    ("BasicBlock", 256, 8, 0),
    ("Conv2d", 512, 4, 1_179_648),
    ("BatchNorm2d", 512, 4, 1_024),
    ("Conv2d", 512, 4, 2_359_296),
    ("BatchNorm2d", 512, 4, 1_024),
    ("Conv2d", 512, 4, 131_072),
    ("BatchNorm2d", 512, 4, 1_024),
    ("BasicBlock", 512, 4, 0),
    ("Conv2d", 512, 4, 2_359_296),
    ("BatchNorm2d", 512, 4, 1_024),
    ("Conv2d", 512, 4, 2_359_296),
    ("BatchNorm2d", 512, 4, 1_024),
    ("BasicBlock", 512, 4, 0),
    ("AvgPool2d", 512, 1, 0),
    ("Linear", 10, None, 5_130),
]


def table(network: nn.Module) -> list[tuple[str, int, int | None, int]]:
    """What torchsummary prints: every layer that is no container, in the order in which it is called."""
    rows = []

    def record(module: nn.Module, _: object, output: torch.Tensor) -> None:
        own = sum(parameter.numel() for parameter in module.parameters(recurse=False))
        rows.append((type(module).__name__, output.shape[1], output.shape[3] if output.ndim == 4 else None, own))

    for module in network.modules():
        if isinstance(module, BasicBlock) or not list(module.children()):
            module.register_forward_hook(record)
    with torch.no_grad():
        network(torch.zeros(2, 3, 32, 32))
    return [row for row in rows if row[0] != "Sequential"]  # an empty shortcut


def test_resnet18_is_the_assignments_table() -> None:
    assert table(resnet18()) == ASSIGNMENT_TABLE


@pytest.mark.parametrize(("build", "parameters"), [(CustomResNet, 6_573_130), (resnet18, 11_173_962)])
def test_parameter_count(build: Callable[[], nn.Module], parameters: int) -> None:
    assert sum(parameter.numel() for parameter in build().parameters()) == parameters


def test_custom_resnet_stages_have_the_specified_shapes() -> None:
    network, shapes = CustomResNet(), {}
    for name, stage in network.named_children():
        stage.register_forward_hook(lambda _m, _i, output, name=name: shapes.update({name: tuple(output.shape[1:])}))
    with torch.no_grad():
        network(torch.zeros(2, 3, 32, 32))
    assert shapes == {
        "prep": (64, 32, 32),
        "layer1": (128, 16, 16),
        "layer2": (256, 8, 8),
        "layer3": (512, 4, 4),
        "pool": (512, 1, 1),
        "fc": (10,),
    }


def test_custom_resnet_order_within_the_blocks() -> None:
    names = [row[0] for row in table(CustomResNet(width=2))]
    plain, pooled = ["Conv2d", "BatchNorm2d", "ReLU"], ["Conv2d", "MaxPool2d", "BatchNorm2d", "ReLU"]
    residual = plain + plain
    assert names == plain + pooled + residual + pooled + pooled + residual + ["MaxPool2d", "Linear"]


def test_residual_is_added_to_its_input() -> None:
    layer1 = CustomResNet(width=2).layer1.eval()
    x = torch.randn(2, 2, 32, 32)
    with torch.no_grad():
        inner = layer1[0](x)
        residual = layer1[1].block2(layer1[1].block1(inner))
        assert torch.equal(layer1(x), inner + residual)


def test_custom_resnet_multiply_adds() -> None:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        CustomResNet().eval()(torch.zeros(1, 3, 32, 32))
    assert counter.get_total_flops() / 2 / 1e6 == pytest.approx(379.26, abs=0.01)


@pytest.mark.parametrize("build", [CustomResNet, resnet18])
def test_width_scales_every_channel_and_num_classes_the_head(build: Callable[..., nn.Module]) -> None:
    narrow, wide = build(width=4, num_classes=3), build(width=8, num_classes=3)
    with torch.no_grad():
        assert narrow(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
    for small, large in zip(table(narrow)[:-1], table(wide)[:-1], strict=True):
        assert (large[0], large[1], large[2]) == (small[0], 2 * small[1], small[2])


@pytest.mark.parametrize("side", [16, 24, 64])
@pytest.mark.parametrize("make", [CustomResNet, resnet18])
def test_images_of_another_size_end_in_one_value_a_channel(make: Callable[..., nn.Module], side: int) -> None:
    network = make(width=2, num_classes=3, image_size=side)
    assert network(torch.zeros(2, 3, side, side)).shape == (2, 3)
    assert sum(map(torch.numel, network.parameters())) == sum(map(torch.numel, make(2, 3).parameters()))
