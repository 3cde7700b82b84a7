"""A SHA-256 sum of what a checkpoint holds, however its file holds it."""

import hashlib
from collections.abc import Iterator, Mapping
from types import NoneType
from typing import Any

import torch
from torch import Tensor

OBJECT = 16  # bytes that an object takes beside its content, at least
PLAIN = (NoneType, bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.layout)


def fingerprint(contents: Any, most: float = float("inf")) -> str:
    """Return the SHA-256 sum, in hexadecimal, of nested containers, tensors and plain values.

    It depends on the type, shape and values of every tensor, on the type, length and order of every container, and on
    the type and value of every plain value; of anything else, which a checkpoint should not hold, on its type. It does
    not depend on devices and memory formats.

    Args:
        contents: what is summed.
        most: bytes that it may come to. A file of a few bytes can name one tensor, or one list, a billion times.

    Raises:
        ValueError: it comes to more.
    """
    total = hashlib.sha256()
    for text, tensor in _leaves(contents):
        head = text.encode()
        most -= OBJECT + len(head) + (0 if tensor is None else tensor.numel() * tensor.element_size())
        if most < 0:
            raise ValueError("it holds more than its size allows")
        total.update(head)
        if tensor is not None:
            total.update(_bytes(tensor))
    return total.hexdigest()


def _bytes(tensor: Tensor) -> Any:
    dense = tensor.detach() if tensor.layout is torch.strided else tensor.detach().to_dense()
    return dense.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def _leaves(value: Any) -> Iterator[tuple[str, Tensor | None]]:
    """Yield what tells a value from every other: each text says where it ends itself, so none runs into the next."""
    kind = type(value).__name__
    if isinstance(value, Tensor):
        yield f"tensor {value.dtype} {tuple(value.shape)};", value
    elif isinstance(value, Mapping):
        yield f"{kind} {len(value)};", None
        for pair in value.items():
            yield from _leaves(pair)
        if hasattr(value, "__dict__"):  # a state dict keeps the versions of its modules there
            yield from _leaves(vars(value))
    elif isinstance(value, list | tuple | set):
        yield f"{kind} {len(value)};", None
        for each in sorted(value, key=repr) if isinstance(value, set) else value:
            yield from _leaves(each)
    else:
        text = ascii(value) if isinstance(value, PLAIN) else ""
        yield f"{kind} {len(text)};{text}", None
