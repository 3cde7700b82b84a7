"""What a result depends on beside the code and its configuration: the versions and the device."""

import platform
from importlib.metadata import version

import torch


def versions() -> dict[str, str]:
    """Return the versions of what a result depends on."""
    packages = ("torch", "lightning", "albumentations", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def device_name(device: torch.device) -> str:
    """Return what a person calls the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type
