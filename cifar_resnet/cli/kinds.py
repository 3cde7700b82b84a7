"""What the value of a key can be: its type and its range, by a name."""

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from cifar_resnet.errors import InputError


def writable_folder(name: str) -> str:
    """Return the name of a folder of this machine that is there, or can be made; raise `InputError` for another."""
    try:
        place = next(path for path in (Path(name), *Path(name).absolute().parents) if path.exists()).absolute()
    except OSError as error:
        raise InputError(f"{name} cannot be a folder ({error.strerror})") from error
    if "://" in name or not (place.is_dir() and os.access(place, os.W_OK)):
        raise InputError(f"{name if '://' in name else place} is not a folder that can be written to")
    return name


def each_once(names: list[str]) -> list[str]:
    """Return the names; raise `InputError` for one that is there twice."""
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{name} is named more than once")
    return names


Text = Annotated[str, Field(pattern=r"\S")]
Name = Annotated[str, Field(pattern=r"^[\w=,+@ -][\w=,.+@ -]*(/[\w=,+@ -][\w=,.+@ -]*)*$", max_length=200)]
Folder = Annotated[Text, AfterValidator(writable_folder)]
Loggers = Annotated[list[Literal["csv", "mlflow", "wandb"]], AfterValidator(each_once)]
Size = Annotated[int, Field(ge=0, le=10_000_000)]
Count = Annotated[int, Field(ge=1, le=10_000_000)]
Share = Annotated[float, Field(gt=0, le=1)]
ImageSize = Annotated[int, Field(ge=16, le=256, multiple_of=8)]
BatchSize = Annotated[int, Field(ge=1, le=65_536)]
Cutout = Annotated[int, Field(ge=0, le=256)]
Flip = bool | Literal["alternating"]
Rate = Annotated[float, Field(ge=1e-12, le=1e6)]
LastRate = Annotated[float, Field(ge=0, le=1e6)]
Devices = Annotated[int, Field(ge=1, le=1024)] | Annotated[list[Size], Field(min_length=1)] | Literal["auto", -1]
Precision = Literal["auto", "32-true", "16-mixed", "bf16-mixed", "64-true", "bf16-true", "16-true", 16, 32, 64, "bf16"]
ClassWeights = Literal["balanced"]
CompileMode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]
Method = Literal[
    "gradcam", "gradcam++", "gradcam_elementwise", "hirescam", "layercam", "xgradcam", "eigencam", "eigengradcam"
]
