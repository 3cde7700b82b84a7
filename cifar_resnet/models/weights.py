"""Weights to begin with: fetched, or read from a file, and loaded into a network whose head may be another."""

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from cifar_resnet.errors import InputError, one_line

LONGEST_WAIT = 20.0  # seconds for an answer of whom weights are fetched from


@contextmanager
def fetching(name: str) -> Iterator[None]:
    """Put an end to waiting for weights; raise `InputError` for whatever goes wrong."""
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


def reach_hub(repository: str | None) -> None:
    """Ask once for the weights of a repository, unless they are here: timm would try again for most of a minute."""
    import huggingface_hub as hub  # noqa: PLC0415  (comes with timm)

    file = "model.safetensors"
    if repository and not hub.try_to_load_from_cache(repository, file):
        hub.get_hf_file_metadata(hub.hf_hub_url(repository, file), timeout=LONGEST_WAIT)


def read_weights(file: str) -> dict[str, Tensor]:
    """Return the tensors of a file, in which nothing is called; raise `InputError` where it holds anything else."""
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


def load_weights(network: nn.Module, state: dict[str, Tensor], name: str, given: str, num_classes: int) -> None:
    """Load weights for all but a head of another size; raise `InputError` where they are not this network's.

    Args:
        network: takes them.
        state: they, by name; it is changed.
        name: of the network, for messages.
        given: where they come from, for messages.
        num_classes: outputs of the network's head.
    """
    for old in list(state):  # torchvision's of DenseNet are older than the names of its layers
        state[re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", old)] = state.pop(old)
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
