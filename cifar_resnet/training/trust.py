"""What a checkpoint may call. It names its network, and a stranger's file may name anything."""

import re
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

import torch.optim
import torchvision.models
from torch import nn
from torch.optim import Optimizer

from cifar_resnet import models
from cifar_resnet.data.sources import Source
from cifar_resnet.errors import InputError, one_line
from cifar_resnet.training.named import locate

TIMM = "timm.create_model"  # whether or not it is installed
MUON = "timm.optim.Muon"  # likewise
LONGEST_TEXT = 200  # of an argument
LONGEST_PATH = 4096  # of an argument of a source
FETCHED = {
    "weights": None,
    "weights_backbone": None,
    "pretrained": False,
    "pretrained_backbone": False,
    "pretrained_cfg": None,
    "pretrained_cfg_overlay": None,
    "checkpoint_path": "",
}
"""Arguments by which a network fetches or reads weights, and what they are without: the checkpoint has the weights."""


def _names(package: ModuleType, names: Iterable[str]) -> set[str]:
    """Return the full names of what a package offers: in it, and in the module that defines it."""
    homes = {name: getattr(package, name).__module__ for name in names}
    return {f"{place}.{name}" for name, home in homes.items() for place in (package.__name__, home)}


_OPTIMIZERS = [name for name in torch.optim.__all__ if name[0].isupper() and name != "Optimizer"]
KNOWN: dict[type, frozenset[str]] = {
    nn.Module: frozenset(
        _names(models, models.__all__)
        | _names(torchvision.models, torchvision.models.list_models(module=torchvision.models))
        | {TIMM}
    ),
    Optimizer: frozenset(_names(torch.optim, _OPTIMIZERS) | {MUON}),
    Source: frozenset(
        f"cifar_resnet.data.{name}"
        for name in ("cifar10.Cifar10", "sources.Digits", "folder.Folder", "table.Table", "of_torchvision.Torchvision")
    ),
}
"""The full dotted names that a checkpoint may call without being asked about, by what they make."""


def allowed_call(kind: type, call: Mapping[str, Any], trust: str | None, origin: str) -> dict[str, Any]:
    """Return a call of a checkpoint that may be made, without the arguments that would fetch weights.

    Nothing of what it names is imported unless it is known or trusted.

    Args:
        kind: what it has to make, a key of `KNOWN`.
        call: ``{"_target_": dotted name, ...}``; the rest are its keyword arguments.
        trust: full names, separated by spaces, of what may be called beside what is known; so may all that is below.
        origin: whose call it is, for messages.

    Raises:
        InputError: it is neither known nor trusted, or an argument is more than numbers, short texts and lists.
    """
    name, trusted = call["_target_"], tuple((trust or "").replace(",", " ").split())
    known = name in KNOWN[kind]
    if not known and not _covers(trusted, name):
        raise InputError(f"{origin} wants to call {_shortened(name)}, which is not known here; {_ask(trusted, name)}")
    for argument, value in call.items():
        if not _is_plain(value, LONGEST_PATH if kind is Source else LONGEST_TEXT):
            raise InputError(
                f"{origin} gives {_shortened(argument)} to {_shortened(name)}: only numbers, short texts and lists of "
                "them can be"
            )
    if name == TIMM and not re.fullmatch(r"[\w.]+", call.get("model_name") or ""):  # others are fetched, or are files
        raise InputError(f"{origin} gives a model_name to {name} that is no plain name")
    if not known and kind is nn.Module:
        _check_target(name, trusted, origin)
    return {argument: _neutral(argument, value, known) for argument, value in call.items()}


def without_weights(call: Mapping[str, Any]) -> dict[str, Any]:
    """Return a call of a known network without the arguments that would fetch or read weights; others as they are."""
    known = call["_target_"] in KNOWN[nn.Module]
    return {argument: _neutral(argument, value, known) if known else value for argument, value in call.items()}


def _covers(trusted: Iterable[str], name: str) -> bool:
    return any(name == each or name.startswith(f"{each}.") for each in trusted)


def _ask(trusted: Iterable[str], name: str) -> str:
    names = " ".join((*trusted, _shortened(name)))
    added = f"'trust={names}'" if trusted else f"trust={names}"  # a shell needs the quotes
    return f"if you trust that code, add {added}"


def _is_plain(value: Any, longest: int) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(each, longest) for each in value)
    if isinstance(value, str):
        return len(value) <= longest
    return value is None or isinstance(value, bool | int | float)


def _neutral(argument: str, value: Any, known: bool) -> Any:
    """Of a trusted callable only what looks like a request to fetch is changed: a list may mean another thing there."""
    if argument in FETCHED and (known or value is True or isinstance(value, str)):
        return FETCHED[argument]
    return value


def _check_target(name: str, trusted: tuple[str, ...], origin: str) -> None:
    """Refuse what makes no network by its type, and a function that a trusted module only imports, such as a shell."""
    try:
        target = locate(name)
    except Exception as error:  # importing a user's module fails in as many ways as there are modules
        reason = one_line(error)[:LONGEST_TEXT]
        raise InputError(f"{origin} is {_shortened(name)}, which cannot be imported: {reason}") from error
    if isinstance(target, type):
        if not issubclass(target, nn.Module):
            raise InputError(f"{origin} wants to call {_shortened(name)}, which makes no network")
        return
    home = f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', '')}"
    if not callable(target) or not (name in trusted or _covers(trusted, home)):
        raise InputError(f"{origin} wants to call {_shortened(name)}, which is {home}; {_ask(trusted, name)}")


def _shortened(name: str) -> str:
    return ascii(name)[1:-1][:LONGEST_TEXT]
