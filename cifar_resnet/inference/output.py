"""The file that a command writes: checked before there is anything to write."""

import os
from pathlib import Path

from cifar_resnet.errors import InputError


def output_file(name: str, suffix: str, key: str = "output") -> Path:
    """Return the path of the file that a key names.

    Raises:
        InputError: it does not end in ``suffix``, or its folder cannot be written to.
    """
    path = Path(name)
    try:
        usable = path.suffix == suffix and (path.is_file() or not os.path.lexists(path))
    except OSError as error:
        raise InputError(f"{key}={name} cannot be written ({error.strerror})") from error
    if not usable:
        raise InputError(f"{key}={name}: give the name of a file that ends in {suffix}")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"{key}={name}: the folder {path.parent} does not exist or cannot be written to")
    return path
