"""From a checkpoint file to its contents, or to the classifier in it."""

import os
from collections.abc import Sequence
from typing import Any

import torch

from cifar_resnet.errors import InputError, one_line
from cifar_resnet.training.classifier import ImageClassifier


def read_checkpoint(path: str, key: str = "ckpt") -> dict[str, Any]:
    """Return the contents of a checkpoint of this project, on the CPU.

    Args:
        path: the file.
        key: what the user gave the path as, for messages.

    Raises:
        InputError: there is no such file, it cannot be read, or it is of another project.
    """
    if not os.path.isfile(path):
        raise InputError(f"{key}={path}: no such file; checkpoints are in lightning_logs/version_N/checkpoints/")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever the bytes of a broken file provoke
        raise InputError(
            f"{key}={path} is not a readable checkpoint: it is damaged, or another kind of file; name a .ckpt"
        ) from error
    if not isinstance(checkpoint, dict) or "temperature" not in checkpoint.get("hyper_parameters", {}):
        raise InputError(f"{key}={path} is not a checkpoint of this project: it has no ImageClassifier in it")
    return checkpoint


def load_classifier(path: str) -> ImageClassifier:
    """Return the classifier of a checkpoint, on the CPU, in evaluation mode.

    Raises:
        InputError: as `read_checkpoint`; or its network is not there any more, or its weights are not finite.
    """
    read_checkpoint(path)
    try:
        # A network that was compiled for training runs without: compiling takes longer than a pass over the images.
        classifier = ImageClassifier.load_from_checkpoint(path, map_location="cpu", weights_only=True, compile=False)
    except Exception as error:  # a network that was renamed or changed fails in as many ways as there are networks
        raise InputError(f"ckpt={path}: its network cannot be made again: {one_line(error)[:200]}") from error
    if not all(values.isfinite().all() for values in classifier.state_dict().values()):
        raise InputError(
            f"ckpt={path} holds weights that are not finite: its training diverged; use another checkpoint"
        )
    return classifier.eval()


def check_classes(given: str, trained: Sequence[str], found: Sequence[str]) -> None:
    """Raise `InputError` if the classes of the checkpoint that was given are not, in order, those of the data."""
    if list(trained) == list(found):
        return
    sides = (("checkpoint", set(trained) - set(found)), ("data", set(found) - set(trained)))
    odd = [f"only in the {side}: {_enumerate(sorted(names))}" for side, names in sides if names]
    if not odd:
        label = next(label for label, (one, other) in enumerate(zip(trained, found, strict=True)) if one != other)
        odd = [f"the order differs, label {label} is {trained[label]} in the checkpoint, {found[label]} in the data"]
    raise InputError(
        f"{given}: its classes are not those of the data ({'; '.join(odd)}); give it images of the classes that it was "
        "trained on"
    )


def _enumerate(names: Sequence[str], most: int = 5) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{rest}"
