"""Which layer of a network a map explains where none is named, and the output of a layer as a map."""

import math
from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor, nn

WANTED = ((8, 8, False), (4, math.inf, True), (2, math.inf, True))
"""Sides of a map in cells, from and to, and whether stages inside of others count; what comes first is preferred.

The assignment splits its network where the map is 8×8. Most networks for ImageNet end with 7×7.
"""
MOST_OTHER_TOKENS = 5  # before those of the patches: for the class, for a teacher, registers


def feature_map(output: object) -> Tensor | None:
    """Return what a layer puts out as ``[N, C, H, H]``, H at least 2, or None where it is no map of a square image.

    It may be that already, or ``[N, H, H, C]`` (Swin), or tokens ``[N, T, C]`` (ViT), the patches' row by row and last.
    """
    if not isinstance(output, Tensor) or output.ndim not in {3, 4}:
        return None
    found: Tensor = output
    if found.ndim == 3:
        side = math.isqrt(found.shape[1])
        others = found.shape[1] - side**2
        if others > MOST_OTHER_TOKENS:
            return None
        found = found[:, others:].mT.unflatten(2, (side, side))
    if found.shape[2] != found.shape[3]:
        found = found.permute(0, 3, 1, 2)
    return found if found.shape[2] == found.shape[3] > 1 else None


def last_stage(network: nn.Module, pixels: Tensor) -> str | None:
    """Return the name of the last stage with a map, of a size that is wanted if there is one; None where there is none.

    A stage is a child of the network that has weights, or of one of its children. A transformer may let its class
    token alone go on behind its last attention. The last map of the patches is then the one that this attention takes.

    Args:
        network: may be left with hooks and gradients: give a copy, in evaluation mode.
        pixels: normalized, float ``[1, 3, H, H]``.
    """
    outputs: dict[str, object] = {}
    for name, module in network.named_modules():
        module.register_forward_hook(lambda _module, _args, output, name=name: outputs.update({name: output}))
    with torch.enable_grad():
        unread = _unread(network(pixels), outputs)
    sides = {}
    for name, output in outputs.items():
        found = feature_map(output) if name not in unread else None
        has_weights = next(network.get_submodule(name).parameters(), None) is not None
        sides[name] = found.shape[3] if found is not None and has_weights else 0
    for least, most, inside in WANTED:
        stages = set(_stages(network, sides, unread, least, inside))
        fitting = [name for name, side in sides.items() if name in stages and side <= most]
        if fitting:
            return fitting[-1]
    return None


def _unread(logits: Tensor, outputs: Mapping[str, object]) -> set[str]:
    """Return the layers with maps of tokens of which the logits read the other tokens alone, or none."""
    tokens = {name: output for name, output in outputs.items() if isinstance(output, Tensor) and output.ndim == 3}
    tokens = {name: each for name, each in tokens.items() if each.requires_grad and feature_map(each) is not None}
    if not tokens:
        return set()
    gradients = torch.autograd.grad(logits.sum(), list(tokens.values()), materialize_grads=True)
    maps = map(feature_map, gradients)
    pairs = zip(tokens, gradients, maps, strict=True)
    return {name for name, gradient, found in pairs if gradient.any() and found is not None and not found.any()}


def _stages(
    module: nn.Module, sides: Mapping[str, int], unread: Collection[str], least: int, inside: bool, prefix: str = ""
) -> Iterator[str]:
    """Yield the children with a map of at least this side, and in the place of one that has none its own children."""
    children = {f"{prefix}{name}": child for name, child in module.named_children()}
    found = {name for name in children if sides.get(name, 0) >= least and not isinstance(children[name], nn.Linear)}
    bodies = {name for name, child in list(children.items())[:-1] if isinstance(child, nn.Sequential)}  # no head
    for name, child in children.items():
        if name in found:
            yield name
        elif name in unread or name not in sides or (inside and (not found or name in bodies)):
            # Not in sides: it is never called itself, such as a list of blocks.
            yield from _stages(child, sides, unread, least, inside and not found, f"{name}.")
