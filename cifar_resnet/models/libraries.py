"""The classification networks of torchvision and timm, by their names, with a head for the classes of the data."""

import re
import socket
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from cifar_resnet.errors import InputError, one_line

LEAST_MOMENTUM = 0.1  # of batch norms, PyTorch's own; with 0.01 their statistics would need 500 steps to arrive
LONGEST_WAIT = 20.0  # seconds for an answer of whom weights are fetched from
INCEPTION = {"aux_logits": False, "transform_input": False}  # logits alone, of images that are normalized already


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
    if name in {"googlenet", "inception_v3"}:
        given = INCEPTION | {"init_weights": True} | given
    if size and name.startswith("vit_"):
        given["image_size"] = size
    if size and name.startswith("maxvit"):
        given["input_size"] = (size, size)
    make = partial(models.get_model, name, weights=None, num_classes=num_classes, **given)
    network = _with_new_head(_made(name, make))
    if weights:
        _load(network, _renamed(_read(weights)), name, f"model.weights={weights}", num_classes)
    elif pretrained:
        with _fetching(name):
            fetched = models.get_model_weights(name).DEFAULT.get_state_dict(progress=False, check_hash=True)
        _load(network, _renamed(fetched), name, "model.pretrained=true: these weights", num_classes)
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
        with _fetching(name):
            _reach(timm.get_pretrained_cfg(name).hf_hub_id)
            return _finished(_made(name, partial(make, pretrained=True)), size)
    network = _with_new_head(_made(name, make))
    if weights:
        _load(network, _read(weights), name, f"model.weights={weights}", num_classes)
    return _finished(network, size)


def origin_of(call: Mapping[str, Any]) -> Origin | None:
    """Return what is known of the network that a configuration names, None unless it is one of a library.

    Raises:
        InputError: the library has no such network, or is not installed.
    """
    place, _, target = call["_target_"].rpartition(".")
    known = {"from_torchvision": _of_torchvision, "from_timm": _of_timm}
    return known[target](call["name"]) if target in known and place.startswith("cifar_resnet.models") else None


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
    half = (0.5, 0.5, 0.5)  # what `transform_input` would make of ImageNet's
    mean, std = (half, half) if name in {"googlenet", "inception_v3"} else (preset.mean, preset.std)
    return Origin(preset.crop_size[0], tuple(mean), tuple(std), name.startswith(("vit_", "maxvit")))


def _of_timm(name: str) -> Origin:
    try:
        import timm  # noqa: PLC0415  (an optional package)
    except ImportError as error:
        raise InputError("model=timm needs what is not installed: pip install 'cifar-resnet[timm]'") from error
    _check_name(name, [*timm.list_models(), *timm.list_models(pretrained=True)], "timm")
    config = timm.get_pretrained_cfg(name)
    return Origin(config.input_size[1], tuple(config.mean), tuple(config.std), bool(config.fixed_input_size))


def _check_name(name: str, names: Collection[str], library: str) -> None:
    if name not in names:
        near = ", ".join(get_close_matches(name, names, cutoff=0.4)) or "none"
        raise InputError(f"model.name={name}: {library} has no classification network of that name; nearest: {near}")


def _made(name: str, make: Callable[[], nn.Module]) -> nn.Module:
    try:
        return make()
    except NotImplementedError:  # on a device without values, which is no fault of the arguments
        raise
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise InputError(f"model.name={name}: it cannot be made with these arguments: {one_line(error)}") from error


def _with_new_head(network: nn.Module) -> nn.Module:
    """Let the head begin as any linear layer does: what some networks begin theirs with suits 1,000 classes."""
    *_, head = (module for module in network.modules() if isinstance(module, nn.Linear | nn.Conv2d))
    head.reset_parameters()
    return network


@contextmanager
def _fetching(name: str) -> Iterator[None]:
    """Put an end to waiting, and whatever goes wrong into a line."""
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(LONGEST_WAIT)
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # each client has its own
        raise InputError(
            f"model.pretrained=true: the weights of {name} cannot be fetched ({one_line(error)[:100]}): give "
            "model.weights=FILE, or model.pretrained=false"
        ) from error
    finally:
        socket.setdefaulttimeout(patience)


def _reach(repository: str | None) -> None:
    """Ask for weights once, unless they are here: timm's client would try again for most of a minute."""
    import huggingface_hub as hub  # noqa: PLC0415  (comes with timm)

    file = "model.safetensors"
    if repository and not hub.try_to_load_from_cache(repository, file):
        hub.get_hf_file_metadata(hub.hf_hub_url(repository, file), timeout=LONGEST_WAIT)


def _read(file: str) -> dict[str, Tensor]:
    """Return the tensors of a file, in which nothing is called."""
    try:
        if file.endswith(".safetensors"):
            from safetensors.torch import load_file  # noqa: PLC0415  (comes with timm)

            return load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a file can be anything
        raise InputError(f"model.weights={file} cannot be read ({one_line(error)[:100]})") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"model.weights={file}: it has to hold tensors by their names alone, a network's state_dict()")
    return state


def _renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give torchvision's weights of DenseNet, which are older than its layers, the names of those."""
    for old in list(state):
        new = re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", old)
        state[new] = state.pop(old)
    return state


def _load(network: nn.Module, state: dict[str, Tensor], name: str, given: str, num_classes: int) -> None:
    """Load weights for all but a head of another size; raise `InputError` where they are not this network's."""
    own = network.state_dict()
    for key in sorted(own.keys() | state.keys()):
        here, there = (tuple(each[key].shape) if key in each else None for each in (own, state))
        is_head = here is not None and there is not None and here[:1] == (num_classes,) and here[1:] == there[1:]
        if here != there and is_head:
            del state[key]
        elif here != there and not key.endswith("num_batches_tracked") and not key.lower().startswith("aux"):
            found = f"has no {key}" if there is None else f"has {key} {there}, not {here}" if here else f"has {key}"
            raise InputError(f"{given} {found}: not the weights of {name}")
    network.load_state_dict(state, strict=False)


def _finished(network: nn.Module, size: int | None) -> nn.Module:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.momentum is not None:
            module.momentum = max(module.momentum, LEAST_MOMENTUM)
    if size is None:
        return network
    enlarge = nn.Upsample(size=(size, size), mode="bilinear")
    return nn.Sequential(OrderedDict(enlarge=enlarge, network=network))
