"""From a checkpoint to a file that runs without this project: raw pixels in, probabilities out."""

import json
import logging
import tempfile
import textwrap
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

import numpy as np
import torch
from rich import get_console
from torch import Tensor, nn

from cifar_resnet.cli.schema import Export
from cifar_resnet.data.sources import Digits
from cifar_resnet.errors import InputError
from cifar_resnet.inference.output import output_file
from cifar_resnet.messages import say
from cifar_resnet.training.checkpoint import load_classifier
from cifar_resnet.training.classifier import ImageClassifier

TOLERANCE = 1e-5  # largest difference from the checkpoint's probabilities with which an export passes
BATCH_SIZES = (1, 2, 7, 64)  # with which an export is tried; a last batch takes the images that remain
ANY_N = ({0: torch.export.Dim("batch")},)  # the size of the input that is not fixed
INPUT = (  # how any photo becomes the input, as `cifar_resnet.data.images.read` does it
    "RGB, uint8 [N, {side}, {side}, 3], 0 to 255, not normalized: a photo is turned upright as its EXIF says, put on "
    "white where it is transparent, scaled so that its shorter side has {side} pixels, and cropped in the middle "
    "(Pillow: ImageOps.fit(photo, ({side}, {side}), Image.Resampling.BICUBIC))"
)
CLASSES = "classes.json"  # in a TorchScript or exported-program archive: the class names, a JSON list by label

Run = Callable[[Tensor], Tensor]
"""An exported file at work: uint8 ``[N, side, side, 3]`` to float32 ``[N, classes]``, both on the CPU."""


@dataclass(frozen=True)
class Format:
    """A file format: how such a file is written and run, and the packages that this needs beside torch."""

    suffix: str
    packages: tuple[str, ...]
    write: Callable[[nn.Module, Tensor, str, Path], None]  # a module, an input for it, class names as JSON, the file
    load: Callable[[Path], Run]


class Probabilities(nn.Module):
    """A classifier as plain torch, in evaluation mode: uint8 ``[N, S, S, 3]``, RGB, to float32 ``[N, classes]``."""

    mean: Tensor
    std: Tensor

    def __init__(self, classifier: ImageClassifier):
        super().__init__()
        self.network = classifier.network
        self.temperature: float = classifier.hparams["temperature"]
        self.register_buffer("mean", classifier.test_mean)
        self.register_buffer("std", classifier.test_std)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Normalize, classify, and apply the softmax."""
        pixels = (images.to(self.mean.dtype) - 255 * self.mean) / (255 * self.std)
        return (self.network(pixels.permute(0, 3, 1, 2)) / self.temperature).softmax(dim=1)


def export(config: Export) -> Path:
    """Write a checkpoint's classifier in another format; the file gets its name when it has been verified.

    `InputError` where something in the configuration cannot work, or the file does not do what the checkpoint does; no
    file is left behind then.
    """
    chosen = FORMATS[config.format]
    missing = [name for name in chosen.packages if find_spec(name) is None]
    if missing:
        raise InputError(f"format={config.format} needs what is not installed: pip install {' '.join(missing)}")
    classifier = load_classifier(config.ckpt, config.trust)
    output = output_file(config.output or str(Path(config.ckpt).with_suffix(chosen.suffix)), chosen.suffix)
    if output.resolve() == Path(config.ckpt).resolve():
        raise InputError(f"output={output} is the checkpoint itself: give the export another name")
    say(f"writing {output}, and comparing it with the checkpoint")
    # Beside the output, so that the verified file moves into place in one step.
    with tempfile.TemporaryDirectory(prefix=".export-", dir=output.parent) as folder:
        draft = Path(folder) / output.name
        difference, count = _write_and_verify(config.format, classifier, draft)
        draft.replace(output)
    side = classifier.hparams["image_size"]
    purpose = f"uint8 images [N, {side}, {side}, 3] in, probabilities [N, {len(classifier.classes)}] out"
    proof = f"verified: at most {difference:.1g} from the checkpoint's probabilities, on {count} images"
    get_console().print(f"{output}: {purpose}\n{proof}", markup=False, highlight=False, soft_wrap=True)
    return output


def _write_and_verify(name: str, classifier: ImageClassifier, file: Path) -> tuple[float, int]:
    example = classifier.example_input_array.repeat(2, 1, 1, 1)
    try:
        with _quiet(), torch.no_grad():
            FORMATS[name].write(Probabilities(classifier), example, json.dumps(classifier.classes), file)
            difference, count = verify(FORMATS[name].load(file), classifier)
    except Exception as error:  # the exporters raise whatever they meet in a network
        reason = textwrap.shorten(str(error), 200, placeholder=" …")
        raise InputError(f"format={name}: this network cannot be exported ({reason})") from error
    if not difference <= TOLERANCE:
        raise InputError(
            f"format={name}: this network cannot be exported (the probabilities differ by up to {difference:.2g} from "
            "the checkpoint's: its forward pass does what the format cannot express)"
        )
    return difference, count


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters: they warn, log and print what concerns themselves, even where they raise as well."""
    disabled = logging.root.manager.disable
    logging.disable()
    try:
        with warnings.catch_warnings(action="ignore"), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            yield
    finally:
        logging.disable(disabled)


def verify(run: Run, classifier: ImageClassifier) -> tuple[float, int]:
    """Compare an export with its checkpoint on the test digits and on noise, in batches of several sizes.

    Returns the largest difference of a probability, NaN where one is no number, and the number of images.
    """
    side = classifier.hparams["image_size"]
    noise = np.random.default_rng(0).integers(0, 256, (64, side, side, 3), np.uint8)
    images = torch.from_numpy(np.concatenate([Digits().test().read(side).images, noise]))
    batches = images.split([*BATCH_SIZES, len(images) - sum(BATCH_SIZES)])
    differences = [(run(batch) - classifier(batch).softmax(dim=1)).abs().max() for batch in batches]
    return torch.stack(differences).max().item(), len(images)


def _write_onnx(module: nn.Module, example: Tensor, classes: str, file: Path) -> None:
    program = torch.onnx.export(
        module, (example,), dynamo=True, dynamic_shapes=ANY_N, input_names=["images"], output_names=["probabilities"]
    )
    assert program is not None
    program.model.metadata_props.update(classes=classes, input=INPUT.format(side=example.shape[1]))
    program.save(str(file))


def _load_onnx(file: Path) -> Run:
    import onnxruntime  # noqa: PLC0415  (an optional package)

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def _write_torchscript(module: nn.Module, example: Tensor, classes: str, file: Path) -> None:
    traced = torch.jit.trace(module, (example,), check_trace=False)  # `verify` checks it
    torch.jit.save(traced, str(file), _extra_files={CLASSES: classes})


def _write_exported_program(module: nn.Module, example: Tensor, classes: str, file: Path) -> None:
    program = torch.export.export(module, (example,), dynamic_shapes=ANY_N)
    torch.export.save(program, file, extra_files={CLASSES: classes})


FORMATS: dict[str, Format] = {
    "onnx": Format(".onnx", ("onnx", "onnxscript", "onnxruntime"), _write_onnx, _load_onnx),
    "torchscript": Format(".pt", (), _write_torchscript, partial(torch.jit.load, map_location="cpu")),
    "exported_program": Format(".pt2", (), _write_exported_program, lambda file: torch.export.load(file).module()),
}
"""The formats, by the names that `format` takes.

ONNX has the input ``images``, the output ``probabilities``, and in its metadata the class names as JSON, ``classes``,
and how a photo becomes the input, ``input``; the others are for ``torch.jit.load`` and ``torch.export.load``, with the
class names in the extra file `CLASSES`.
"""
