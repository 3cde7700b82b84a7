"""From a checkpoint file to its contents, or to the classifier in it."""

import reprlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import AfterValidator, Field, ValidationError, model_validator
from torch import Tensor, nn
from torch.optim import Optimizer

from cifar_resnet.cli import sections
from cifar_resnet.cli.kinds import ImageSize, LastRate
from cifar_resnet.errors import InputError, one_line
from cifar_resnet.training.checkpoint_io import read_contents
from cifar_resnet.training.classifier import ImageClassifier
from cifar_resnet.training.trust import allowed_call

MADE_TWICE = ("cifar_resnet.models.", "torchvision.models.")  # networks that can be made without memory


def _distinct(names: Sequence[str]) -> Sequence[str]:
    if len(set(names)) < len(names):
        raise ValueError("each name may be there once")
    return names


Names = Annotated[Sequence[str], Field(min_length=2), AfterValidator(_distinct)]
Means = Annotated[Sequence[Annotated[float, Field(ge=0, le=1)]], Field(min_length=3, max_length=3)]
Deviations = Annotated[Sequence[Annotated[float, Field(gt=0, le=1)]], Field(min_length=3, max_length=3)]

Row = Annotated[Sequence[Annotated[float, Field(ge=-1e9, le=1e9)]], Field(min_length=27, max_length=27)]
Covariance = Annotated[Sequence[Row], Field(min_length=27, max_length=27)]
Weights = Annotated[Sequence[Annotated[float, Field(ge=0, le=1e7)]], Field(min_length=2)]


class Hyperparameters(sections.Classifier, sections.Schedule):
    """The arguments of an `ImageClassifier` as a checkpoint holds them, in the ranges that a training allows."""

    model: sections.Network
    classes: Names
    class_weights: Weights | None = None  # type: ignore[assignment]
    mean: Means
    std: Deviations
    test_mean: Means
    test_std: Deviations
    lr_end: LastRate | None = None
    flat_epochs: float = Field(0.0, ge=0, le=10_000)
    bias_factor: float = Field(1.0, ge=1e-3, le=1e3)
    optimizer: sections.Optimizer
    max_epochs: int = Field(ge=1, le=10_000)
    image_size: ImageSize = 32
    validation_name: Literal["val", "test"]
    flip: bool = False
    patch_covariance: Covariance | None = None

    @model_validator(mode="after")
    def _has_a_weight_a_class(self) -> Self:
        if self.class_weights is not None and len(self.class_weights) != len(self.classes):
            raise ValueError(f"{len(self.class_weights)} class_weights for {len(self.classes)} classes")
        return self

    @model_validator(mode="before")
    @classmethod
    def _of_earlier_versions(cls, values: Any) -> Any:
        """Before the configuration was typed, one key had another name, and another was not there."""
        if not isinstance(values, dict) or "watched" not in values:
            return values
        renamed = {"validation_name" if key == "watched" else key: value for key, value in values.items()}
        return {"compile_mode": "default"} | renamed


def read_checkpoint(path: str, key: str = "ckpt") -> dict[str, Any]:
    """Return the contents of a checkpoint of this project, on the CPU, verified; nothing in it has been called.

    Args:
        path: the file.
        key: what the user gave the path as, for messages.

    Raises:
        InputError: as `read_contents`; or it is of another project, or what it says of its classifier cannot be.
    """
    checkpoint = read_contents(path, key)
    hparams = checkpoint.get("hyper_parameters") if isinstance(checkpoint, dict) else None
    if not isinstance(hparams, dict) or "temperature" not in hparams:
        raise InputError(f"{key}={path} is not a checkpoint of this project: it has no ImageClassifier in it")
    try:
        parameters = Hyperparameters.model_validate(hparams)
    except ValidationError as error:
        raise InputError(f"{key}={path} is not a checkpoint that can be used: {_explain(error)}") from error
    weights = checkpoint.get("state_dict")
    if not isinstance(weights, dict) or not all(_is_weight(*item) for item in weights.items()):
        raise InputError(f"{key}={path} is not a checkpoint that can be used: it has no weights in it")
    return checkpoint | {"hyper_parameters": parameters.model_dump(by_alias=True, exclude_unset=True)}


def _is_weight(name: Any, value: Any) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor)


def _explain(error: ValidationError) -> str:
    """Put the first thing that is wrong with a checkpoint's hyperparameters into a line."""
    first = error.errors(include_url=False)[0]
    place = ".".join(str(each) if str(each).isidentifier() else reprlib.repr(each) for each in first["loc"])
    place = place or "hyper_parameters"
    return f"{place} is {reprlib.repr(first['input'])}: {first['msg'].removeprefix('Value error, ')}"


def load_classifier(path: str, trust: str | None = None) -> ImageClassifier:
    """Return the classifier of a checkpoint, on the CPU, in evaluation mode.

    It calls what the checkpoint names: a network that is known here, or one that the user trusts.

    Args:
        path: the file.
        trust: the package, module or callable that it may call beside those that are known.

    Raises:
        InputError: as `read_checkpoint`; or it may not call what it names, or its network is not there any more, or its
            weights are those of another network, or they are not finite.
    """
    checkpoint = read_checkpoint(path)
    hparams, weights = checkpoint["hyper_parameters"], checkpoint["state_dict"]
    # A network that was compiled for training runs without: compiling takes longer than a pass over the images.
    hparams["compile"] = False
    for kind, key in ((nn.Module, "model"), (Optimizer, "optimizer")):
        hparams[key] = allowed_call(kind, hparams[key], trust, f"ckpt={path}: its {key}")
    try:
        _check_shapes(hparams, weights)
        classifier = ImageClassifier(**hparams)
        classifier.load_state_dict(weights)
    except Exception as error:  # a network that was renamed or changed fails in as many ways as there are networks
        reason = "".join(filter(str.isprintable, one_line(error)[:200]))
        raise InputError(f"ckpt={path}: its network cannot be made again: {reason}") from error
    if not all(values.isfinite().all() for values in classifier.state_dict().values()):
        raise InputError(
            f"ckpt={path} holds weights that are not finite: its training diverged; use another checkpoint"
        )
    return classifier.eval()


def _check_shapes(hparams: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Raise `ValueError` where the weights are of another size than the network, before it takes memory.

    A small file can name a network of any size.
    """
    if not hparams["model"]["_target_"].startswith(MADE_TWICE):  # a user's own is made once
        return
    try:
        with torch.device("meta"):
            network = ImageClassifier(**hparams)
    except NotImplementedError:
        # torchvision's RegNets work their widths out with tensors, which have no values on this device. So these are
        # made in memory at once, and `load_state_dict` compares the shapes.
        return
    for name, value in network.state_dict().items():
        found = tuple(weights[name].shape) if name in weights else "missing"
        if found != tuple(value.shape):
            raise ValueError(f"{name} is {found}, not {tuple(value.shape)}")


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
