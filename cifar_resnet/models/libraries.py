"""The classification networks of torchvision and timm, by their names, with a head for the classes of the data."""

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import Any

from torch import nn
from torchvision import models

from cifar_resnet.errors import InputError, one_line
from cifar_resnet.models.weights import fetching, load_weights, reach_hub, read_weights

LEAST_MOMENTUM = 0.1  # of batch norms, PyTorch's own; with 0.01 their statistics would need 500 steps to arrive
INCEPTION = {"googlenet", "inception_v3"}  # of Google, whose weights are for images normalized by 0.5


@dataclass(frozen=True)
class Origin:
    """What the authors of a network gave it: images of this side in pixels, normalized by this mean and deviation.

    ``fixed``: it takes images of one side only, which it has to be made for.
    """

    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fixed: bool


def from_torchvision(
    name: str,
    num_classes: int,
    pretrained: bool = False,
    weights: str | None = None,
    input_size: int | None = None,
    **given: Any,
) -> nn.Module:
    """Return a network of torchvision that takes normalized images, float ``[N, 3, H, H]``, and returns logits.

    Args:
        name: as `torchvision.models.list_models` has it.
        num_classes: logits returned.
        pretrained: begin with torchvision's weights for ImageNet, which are fetched unless they are there already.
        weights: a file of this machine with the weights to begin with instead. The head is left out where its shape is
            another one.
        input_size: side in pixels that images are scaled to. None: that of its authors where it is pretrained or takes
            no other, or else images are taken as they are.
        given: further arguments of the network.

    Raises:
        InputError: there is no such network, it does not take the arguments, or the weights cannot be had.
    """
    size = _input_size(_of_torchvision(name), pretrained or bool(weights), input_size)
    if name in INCEPTION:  # logits alone, of images that are normalized already
        given = {"aux_logits": False, "transform_input": False, "init_weights": True} | given
    if size and name.startswith("vit_"):
        given["image_size"] = size
    if size and name.startswith("maxvit"):
        given["input_size"] = (size, size)
    make = partial(models.get_model, name, weights=None, num_classes=num_classes, **given)
    network = _with_new_head(_made(name, make), num_classes)
    if weights:
        load_weights(network, read_weights(weights), name, f"model.weights={weights}", num_classes)
    elif pretrained:
        with fetching(name):
            fetched = models.get_model_weights(name).DEFAULT.get_state_dict(progress=False, check_hash=True)
        load_weights(network, fetched, name, "model.pretrained=true: these weights", num_classes)
    return _finished(network, size)


def from_timm(
    name: str,
    num_classes: int,
    pretrained: bool = False,
    weights: str | None = None,
    input_size: int | None = None,
    **given: Any,
) -> nn.Module:
    """Return a network of timm, by its name in `timm.list_models`; the rest is as in `from_torchvision`."""
    origin = _of_timm(name)
    import timm  # noqa: PLC0415  (an optional package)

    size = _input_size(origin, pretrained or bool(weights), input_size)
    if size and origin.fixed:
        given["img_size"] = size
    make = partial(timm.create_model, name, num_classes=num_classes, **given)
    if pretrained and not weights:
        with fetching(name):
            reach_hub(getattr(timm.get_pretrained_cfg(name), "hf_hub_id", None))
            return _finished(_made(name, partial(make, pretrained=True)), size)
    network = _with_new_head(_made(name, make), num_classes)
    if weights:
        load_weights(network, read_weights(weights), name, f"model.weights={weights}", num_classes)
    return _finished(network, size)


def origin_of(call: Mapping[str, Any]) -> Origin | None:
    """Return what is known of the network that a configuration names, None unless it is one of a library.

    Raises:
        InputError: the library has no such network, or is not installed.
    """
    place, _, target = call["_target_"].rpartition(".")
    known = {"from_torchvision": _of_torchvision, "from_timm": _of_timm}
    return known[target](call.get("name", "")) if target in known and place.startswith("cifar_resnet.models") else None


def settle(call: Mapping[str, Any]) -> dict[str, Any]:
    """Return a call with the input size in figures, by which its network is the same without the weights again."""
    origin = origin_of(call)
    if origin is None:
        return dict(call)
    return {**call, "input_size": _input_size(origin, has_weights(call), call.get("input_size"))}


def has_weights(call: Mapping[str, Any]) -> bool:
    """Whether the network of a library begins with weights that somebody has trained."""
    return bool(call.get("pretrained") or call.get("weights"))


def _input_size(origin: Origin, begun: bool, chosen: int | None) -> int | None:
    return chosen or (origin.side if begun or origin.fixed else None)


def _of_torchvision(name: str) -> Origin:
    _check_name(name, models.list_models(module=models), "torchvision")
    preset = models.get_model_weights(name).DEFAULT.transforms()
    mean, std = ((0.5,) * 3,) * 2 if name in INCEPTION else (preset.mean, preset.std)
    return Origin(preset.crop_size[0], tuple(mean), tuple(std), name.startswith(("vit_", "maxvit")))


def _of_timm(name: str) -> Origin:
    try:
        import timm  # noqa: PLC0415  (an optional package)
    except ImportError as error:
        raise InputError("model=timm needs what is not installed: pip install 'cifar-resnet[timm]'") from error
    _check_name(name, [*timm.list_models(), *timm.list_models(pretrained=True)], "timm")
    config: Any = timm.get_pretrained_cfg(name)  # there is one for each of the names
    return Origin(config.input_size[1], tuple(config.mean), tuple(config.std), bool(config.fixed_input_size))


def _check_name(name: str, names: Collection[str], library: str) -> None:
    if name not in names:
        near = ", ".join(get_close_matches(name, names, cutoff=0.4)) or "none"
        raise InputError(f"model.name={name}: {library} has no classification network of that name; nearest: {near}")


def _made(name: str, make: Callable[[], nn.Module]) -> nn.Module:
    try:
        return make()
    except NotImplementedError:  # PyTorch's on the meta device, for want of values: the arguments may well be right
        raise
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise InputError(f"model.name={name}: it cannot be made with these arguments: {one_line(error)}") from error


def _with_new_head(network: nn.Module, num_classes: int) -> nn.Module:
    """Let the head begin as any linear layer does: what some networks begin theirs with suits 1,000 classes."""
    layers = (module for module in network.modules() if isinstance(module, nn.Linear | nn.Conv2d))
    heads = [layer for layer in layers if len(layer.weight) == num_classes]
    if heads:
        heads[-1].reset_parameters()
    return network


def _finished(network: nn.Module, size: int | None) -> nn.Module:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.momentum is not None:
            module.momentum = max(module.momentum, LEAST_MOMENTUM)
    if size is None:
        return network
    enlarge = nn.Upsample(size=(size, size), mode="bilinear")
    return nn.Sequential(OrderedDict(enlarge=enlarge, network=network))
