"""Where a classifier looked: class-activation maps by pytorch-grad-cam, for any classifier, layer and method."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytorch_grad_cam as cam
import torch
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from cifar_resnet.analysis.stages import feature_map, last_stage
from cifar_resnet.errors import InputError, one_line
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

PIXELS_AT_ONCE = 256 * 32 * 32  # of the images that are explained in one batch: it bounds the memory


@dataclass(frozen=True)
class Explanation:
    """Class-activation maps of some images and the layer that they explain, or a line that says why there are none.

    The maps are float32 ``[M, N, H, W]``, M for each of N images, each stretched to 0 to 1, and all 0 where nothing
    speaks for the class. They are as large as the images, or as the layer's feature map, if that was asked for.
    """

    maps: np.ndarray | None
    layer: str | None
    reason: str | None


def explain_images(
    classifier: ImageClassifier,
    images: np.ndarray,
    targets: Sequence[Sequence[int]],
    layer: str | None = None,
    method: str = "gradcam",
    enlarge: bool = True,
) -> Explanation:
    """Return where classes were seen in images (Grad-CAM: Selvaraju et al. 2017, arXiv 1610.02391, eq. 1-2).

    The maps are computed in float32 on a copy of the network, so that hooks, gradients and modes of the original stay
    as they are. They can be computed under Lightning's test loop. A network that cannot be explained is no error.

    Args:
        classifier: what is explained.
        images: uint8 ``[N, H, W, 3]``.
        targets: class indices ``[M, N]``: each of the M rows names one class for each image.
        layer: see `find_layer`.
        method: a key of `METHODS`.
        enlarge: whether the maps are enlarged from the size of the layer's feature map to that of the images.
    """
    try:
        layer = find_layer(classifier, layer)
        maps = np.stack([_activation_maps(classifier, images, each, layer, method, enlarge) for each in targets])
        size = images.shape[1:3] if enlarge else maps.shape[2:4]
        if maps.shape[1:] != (len(images), *size) or not np.isfinite(maps).all():
            raise ValueError("what it returns is not one map of numbers an image")
    except InputError as error:
        return Explanation(None, None, str(error))
    except Exception as error:  # a network, and the library with it, may fail in any way
        return Explanation(None, None, f"{layer or 'the network'}: {method} cannot explain it ({one_line(error)})")
    return Explanation(maps, layer, None)


@torch.inference_mode(False)  # in which Lightning's test loop runs, and which knows no gradients
def find_layer(classifier: ImageClassifier, name: str | None = None) -> str:
    """Return the name of the layer to explain, a layer as ``network.named_modules()`` calls it.

    Where none is named, that is the last stage (a direct child of the network) with an 8×8 map. Where there is none, it
    is the last one with a map of at least 4×4, here or inside of a stage, or else the last with a map.

    Raises:
        InputError: there is no such layer, or no stage with a feature map.
    """
    network = copy_for_explaining(classifier)
    if name is not None:
        if name not in dict(network.named_modules()):
            stages = ", ".join(stage for stage, _ in network.named_children())
            raise InputError(f"{name}: the network has no such layer; its stages are {stages}")
        return name
    pixels = classifier.normalize(classifier.example_input_array.to(classifier.device)).float().clone()
    layer = last_stage(network.requires_grad_(True), pixels)
    if layer is None:
        raise InputError("no stage of the network has a feature map")
    return layer


def _activation_maps(
    classifier: ImageClassifier, images: np.ndarray, targets: Sequence[int], layer: str, method: str, enlarge: bool
) -> np.ndarray:
    # Lightning's test loop runs in inference mode, whose tensors cannot take part in a backward pass: leave it, and
    # copy what was made in it.
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(classifier.device.type, enabled=False):
        network = copy_for_explaining(classifier)
        explained = network.get_submodule(layer)
        explained.register_forward_hook(_begin_graph)
        # Not in a `with`: the library's swallows an IndexError and prints it. Its hooks go with the copy.
        explainer = METHODS[method](model=network, target_layers=[explained], reshape_transform=_map_of)
        # The explainer keeps the output itself, in which the next layer may work, as DenseNet's ReLU does: pass a copy.
        explained.register_forward_hook(lambda _module, _args, output: output.clone())
        if not enlarge:
            explainer.get_target_width_height = lambda _pixels: None
        batch = max(1, PIXELS_AT_ONCE // math.prod(images.shape[1:3]))
        maps = []
        for start in range(0, len(images), batch):
            part = slice(start, start + batch)
            pixels = classifier.normalize(torch.from_numpy(images[part]).to(classifier.device)).float().clone()
            maps.append(explainer(pixels, [ClassifierOutputTarget(int(target)) for target in targets[part]]))
        return np.concatenate(maps)


def _begin_graph(_module: nn.Module, _args: object, output: object) -> object:
    """Let the graph begin behind the layer, for what lies before it needs no gradient: half of the time and memory."""
    if isinstance(output, Tensor) and not output.requires_grad:
        return output.detach().requires_grad_().clone()  # a copy, since a leaf cannot be changed in place afterwards
    return output


def _map_of(output: object) -> Tensor:
    found = feature_map(output)
    if found is None:
        raise ValueError("its output is no feature map")
    return found


def copy_for_explaining(classifier: ImageClassifier) -> nn.Module:
    """Return a copy of the network in float32 and evaluation mode, to which hooks and gradients can do no harm."""
    return copy.deepcopy(classifier.network).float().eval().requires_grad_(False)
