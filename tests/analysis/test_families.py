"""The layer that is explained by default, and its maps, for ten families of networks with random weights."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from conftest import make_classifier, make_data
from test_gradcam import grad_cam_by_hand, maps_of
from torch import Tensor, nn
from torchvision import models
from torchvision.models import convnext, densenet, efficientnet, mobilenetv3, regnet, resnet, vgg
from torchvision.models.swin_transformer import SwinTransformer
from torchvision.models.vision_transformer import VisionTransformer

from cifar_resnet.analysis.gradcam import find_layer


def small_resnet(num_classes: int) -> nn.Module:
    return resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], num_classes)


def small_vgg(num_classes: int) -> nn.Module:
    with torch.device("meta"):  # a hundred million weights of its head, which are exchanged
        network = vgg.VGG(nn.Identity(), init_weights=False)
    network.features = vgg.make_layers([8, "M", 8, "M", 16, "M", 16, "M"])
    network.classifier = nn.Linear(16 * 7 * 7, num_classes)
    return network


def small_mobilenet(num_classes: int) -> nn.Module:
    rows = ((16, 3, 16, 8, True, "RE", 2, 1), (8, 3, 16, 16, True, "HS", 2, 1), (16, 3, 16, 16, True, "HS", 2, 1))
    return mobilenetv3.MobileNetV3(
        [mobilenetv3.InvertedResidualConfig(*row, 1.0) for row in rows], 16, num_classes=num_classes
    )


def small_efficientnet(num_classes: int) -> nn.Module:
    rows = ((1, 3, 1, 8, 8, 1), (2, 3, 2, 8, 16, 1), (2, 3, 2, 16, 16, 1), (2, 3, 2, 16, 16, 1))
    return efficientnet.EfficientNet([efficientnet.MBConvConfig(*row) for row in rows], 0.1, num_classes=num_classes)


def small_convnext(num_classes: int) -> nn.Module:
    blocks = [convnext.CNBlockConfig(8, 16, 1), convnext.CNBlockConfig(16, 32, 1), convnext.CNBlockConfig(32, None, 1)]
    return convnext.ConvNeXt(blocks, layer_scale=1.0, num_classes=num_classes)


def small_densenet(num_classes: int) -> nn.Module:
    return densenet.DenseNet(4, (1, 1), 8, num_classes=num_classes)


def small_regnet(num_classes: int) -> nn.Module:
    params = regnet.BlockParams([1, 1, 1], [8, 16, 16], [8, 8, 8], [1.0, 1.0, 1.0], [2, 2, 2])
    return regnet.RegNet(params, num_classes)


def small_squeezenet(num_classes: int) -> nn.Module:
    return models.squeezenet1_1(num_classes=num_classes)


def small_vit(num_classes: int) -> nn.Module:
    network = VisionTransformer(32, 4, 2, 2, 8, 16, num_classes=num_classes)
    nn.init.normal_(network.heads.head.weight)  # it begins with nothing but zeros
    return network


def small_swin(num_classes: int) -> nn.Module:
    return SwinTransformer([2, 2], 16, [1, 1, 1], [1, 2, 4], [4, 4], num_classes=num_classes)


def as_it_is(output: Tensor) -> Tensor:
    return output


def patches(output: Tensor) -> Tensor:
    """``[N, 1 + 64, C]``, the class token first."""
    return output[:, 1:].reshape(len(output), 8, 8, -1).permute(0, 3, 1, 2)


def channels_first(output: Tensor) -> Tensor:
    return output.permute(0, 3, 1, 2)


FAMILIES = [
    (small_resnet, "layer1", 8, as_it_is),
    (small_vgg, "features.9", 4, as_it_is),
    (small_mobilenet, "features.2", 4, as_it_is),
    (small_efficientnet, "features.3", 4, as_it_is),
    (small_convnext, "features.4.0", 4, as_it_is),
    (small_densenet, "features", 4, as_it_is),
    (small_regnet, "trunk_output.block2", 4, as_it_is),
    (small_squeezenet, "features.4", 7, as_it_is),
    (small_vit, "encoder.layers.encoder_layer_1.ln_1", 8, patches),
    (small_swin, "norm", 4, channels_first),
]


@pytest.mark.parametrize(
    ("build", "layer", "side", "as_map"), FAMILIES, ids=lambda value: getattr(value, "__name__", "")
)
def test_the_default_layer_and_its_maps(
    build: Callable[[int], nn.Module], layer: str, side: int, as_map: Callable[[Tensor], Tensor]
) -> None:
    classifier = make_classifier(make_data(), model={"_target_": f"test_families.{build.__name__}"}).eval()
    assert find_layer(classifier) == layer
    seen = []
    hook = classifier.network.get_submodule(layer).register_forward_hook(lambda *call: seen.append(as_map(call[2])))
    classifier(classifier.example_input_array)
    hook.remove()
    assert seen[0].shape[2:] == (side, side)
    images = torch.from_numpy(make_data().test.images)[:6]
    maps = maps_of(classifier, images, [0, 1, 2, 0, 1, 2])
    assert maps.shape == (6, 32, 32)
    assert (maps.std(axis=(1, 2)) > 0.01).any()
    expected = grad_cam_by_hand(classifier, images, [0, 1, 2, 0, 1, 2], layer, as_map)
    np.testing.assert_allclose(maps, expected, atol=1e-3)
