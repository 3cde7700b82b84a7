"""Where a classifier looked: class-activation maps by pytorch-grad-cam, for any classifier, layer and method."""

import copy
from collections.abc import Sequence

import numpy as np
import pytorch_grad_cam as cam
import torch
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from cifar_resnet.errors import InputError
from cifar_resnet.training.classifier import ImageClassifier

METHODS: dict[str, type] = {
    "gradcam": cam.GradCAM,
    "gradcam++": cam.GradCAMPlusPlus,
    "gradcam_elementwise": cam.GradCAMElementWise,
    "hirescam": cam.HiResCAM,
    "layercam": cam.LayerCAM,
    "xgradcam": cam.XGradCAM,
    "eigencam": cam.EigenCAM,
    "eigengradcam": cam.EigenGradCAM,
}
"""The methods of pytorch-grad-cam that need no further arguments, by the names that `gallery.method` takes."""

MAP_SIZE = 8
"""Side of the feature map that is explained by default: the stage at which the assignment splits its network."""


def find_layer(classifier: ImageClassifier, name: str | None = None) -> str:
    """Return the name of the layer to explain.

    Args:
        classifier: its network's layers are looked through.
        name: a layer as ``network.named_modules()`` calls it; None takes the last stage whose map is 8×8, or, where
            there is none, the last one that has a map at all.

    Raises:
        InputError: there is no such layer.
    """
    network = classifier.network
    if name is not None:
        if name not in dict(network.named_modules()):
            stages = ", ".join(stage for stage, _ in network.named_children())
            raise InputError(f"gallery.layer={name}: the network has no such layer; its stages are {stages}")
        return name
    shapes: dict[str, torch.Size] = {}
    network = _copy_for_explaining(classifier)
    for stage, module in network.named_children():
        module.register_forward_hook(lambda _module, _args, output, stage=stage: shapes.update({stage: output.shape}))
    with torch.no_grad():
        network(classifier.normalize(classifier.example_input_array.to(classifier.device)).float())
    maps = {stage: shape[-1] for stage, shape in shapes.items() if len(shape) == 4 and shape[-1] > 1}
    if not maps:
        raise InputError("gallery.layer: no stage of the network has a feature map; name a layer that has one")
    return next((stage for stage in reversed(maps) if maps[stage] == MAP_SIZE), list(maps)[-1])


def class_activation_maps(
    classifier: ImageClassifier,
    images: Tensor,
    targets: Sequence[int],
    layer: str | None = None,
    method: str = "gradcam",
) -> np.ndarray:
    """Return where each image's target class was seen (Grad-CAM: Selvaraju et al. 2017, arXiv 1610.02391, eq. 1-2).

    The maps are computed in float32 on a copy of the network, so that hooks, gradients and modes of the original stay
    as they are. They can be computed under Lightning's test loop.

    Args:
        classifier: what is explained.
        images: uint8 ``[N, H, W, 3]``.
        targets: the class index to explain in each image, ``[N]``.
        layer: see `find_layer`.
        method: a key of `METHODS`.

    Returns:
        float32 ``[N, H, W]``, each map stretched to 0 to 1; all 0 where nothing speaks for the target.

    Raises:
        InputError: there is no such layer.
    """
    layer = find_layer(classifier, layer)
    # Lightning's test loop runs in inference mode, whose tensors cannot take part in a backward pass: leave it, and
    # copy what was made in it.
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(classifier.device.type, enabled=False):
        network = _copy_for_explaining(classifier)
        pixels = classifier.normalize(images.to(classifier.device).clone()).float().clone()
        with METHODS[method](model=network, target_layers=[network.get_submodule(layer)]) as explain:
            return explain(pixels, [ClassifierOutputTarget(int(target)) for target in targets])


def _copy_for_explaining(classifier: ImageClassifier) -> nn.Module:
    network = copy.deepcopy(classifier.network).float().eval()
    return network.requires_grad_(True)
