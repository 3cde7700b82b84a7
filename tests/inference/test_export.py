"""An exported file gives the checkpoint's probabilities without this project, or there is no file."""

import ast
import json
import re
import runpy
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import make_classifier, make_data, make_trainer, read_data
from PIL import ExifTags, Image
from torch import Tensor, nn

from cifar_resnet.cli.compose import compose
from cifar_resnet.data.datamodule import ImageDataModule
from cifar_resnet.data.sources import Digits
from cifar_resnet.errors import InputError
from cifar_resnet.inference import export as exporting
from cifar_resnet.inference.export import FORMATS, export
from cifar_resnet.inference.predict import predict
from cifar_resnet.training.classifier import ImageClassifier

DOCS = Path(__file__).resolve().parents[2] / "docs"
SCRIPT = DOCS.parent / "scripts" / "export.py"


def save(file: Path, data: ImageDataModule, epochs: int = 0, **options: object) -> Path:
    trainer = make_trainer(file.parent, max_epochs=max(1, epochs))
    classifier = make_classifier(data, max_epochs=2, **options)
    if epochs:
        trainer.fit(classifier, datamodule=data)
    trainer.strategy.connect(classifier)
    trainer.save_checkpoint(file)
    return file


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that knows its digits, normalized in evaluation otherwise than in training."""
    data = read_data(Digits(), batch_size=64, flip=False, test_statistics="test")
    model = {"_target_": "cifar_resnet.models.CustomResNet", "width": 4}
    return save(tmp_path_factory.mktemp("run") / "last.ckpt", data, 1, model=model, lr_max=0.4)


@pytest.fixture
def untrained(tmp_path: Path) -> Path:
    return save(tmp_path / "last.ckpt", make_data())


def run_alone(file: Path, images: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Run an exported file, and read its class names, with what its format comes with."""
    if file.suffix == ".onnx":
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        names = session.get_modelmeta().custom_metadata_map["classes"]
        return session.run(["probabilities"], {"images": images})[0], json.loads(names)
    kept: dict[str, str] = {"classes.json": ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if file.suffix == ".pt2":
            program = torch.export.load(file, extra_files=kept)
            module = program.module()
        else:
            module = torch.jit.load(file, _extra_files=kept)
    return module(torch.from_numpy(images)).numpy(), json.loads(kept["classes.json"])


@pytest.mark.parametrize("name", FORMATS)
def test_an_export_gives_the_checkpoints_probabilities(
    trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    output = tmp_path / f"digits{FORMATS[name].suffix}"
    assert export(compose("export", f"ckpt={trained}", f"format={name}", f"output={output}")) == output
    out, err = capfd.readouterr()
    assert out.splitlines()[0] == f"{output}: uint8 images [N, 32, 32, 3] in, probabilities [N, 10] out"
    assert (len(out.splitlines()), err) == (2, f"writing {output}, and comparing it with the checkpoint\n")
    classifier = ImageClassifier.load_from_checkpoint(trained, weights_only=True).eval()
    assert classifier.mean.tolist() != classifier.test_mean.tolist()
    images = Digits().train().images[:800]
    with torch.no_grad():
        expected = classifier(torch.from_numpy(images)).softmax(dim=1).numpy()
    assert expected.max(axis=1).mean() > 0.5  # it knows something, so equality says something
    for size in (1, 3, 64, 800):
        found, classes = run_alone(output, images[:size])
        assert (found.shape, found.dtype) == ((size, 10), np.float32)
        assert np.abs(found - expected[:size]).max() <= 1e-5
        assert classes == list(classifier.classes)
    assert [path.name for path in tmp_path.iterdir()] == [output.name]


@pytest.mark.parametrize(("mode", "orientation"), [("RGB", 1), ("RGB", 6), ("RGBA", 1), ("P", 1), ("L", 1)])
def test_the_documented_lines_give_what_predict_gives(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    mode: str,
    orientation: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    noise = np.random.default_rng(0).integers(0, 256, (90, 130, 4), np.uint8)
    Image.fromarray(noise).convert(mode).save("photo.jpg", format="png", exif=exif)
    export(compose("export", f"ckpt={trained}", "output=last.onnx"))
    predict(compose("predict", f"ckpt={trained}", "images=photo.jpg", "format=json", "sheet=0"))
    predicted = json.loads(capsys.readouterr().out.split("images\n")[-1])
    (lines,) = re.findall(r"```python\n(.*?)```", (DOCS / "export.md").read_text(), re.DOTALL)
    exec(lines, {})
    probabilities = ast.literal_eval(capsys.readouterr().out)
    assert sum(probabilities.values()) == pytest.approx(1)
    for top in predicted[0]["top"]:
        assert probabilities[top["class"]] == pytest.approx(top["probability"], abs=1e-5)
    said = onnxruntime.InferenceSession("last.onnx").get_modelmeta().custom_metadata_map["input"]
    assert said.startswith("RGB, uint8 [N, 32, 32, 3]")


def test_the_assignments_second_network_is_exported_beside_its_checkpoint(tmp_path: Path) -> None:
    model = {"_target_": "cifar_resnet.models.resnet18", "width": 2}
    checkpoint = save(tmp_path / "last.ckpt", make_data(), model=model)
    assert export(compose("export", f"ckpt={checkpoint}")) == tmp_path / "last.onnx"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "last.onnx"]


class Restless(nn.Module):
    """Its outputs are not a function of its inputs."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.fc = nn.Linear(3, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        outputs = self.fc(x.mean(dim=(2, 3)))
        return outputs + torch.rand_like(outputs)


class Bright(Restless):
    """Its path through the layers depends on the pixels."""

    def forward(self, x: Tensor) -> Tensor:
        outputs = self.fc(x.mean(dim=(2, 3)))
        return outputs if x.max() > 0.5 else outputs.flip(1)


class Counting(Restless):
    """Its outputs depend on the size of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean(dim=(2, 3))) * (3 if len(x) == 1 else 1)


@pytest.mark.parametrize(
    ("network", "name"),
    [(Restless, "onnx"), (Bright, "exported_program"), (Bright, "torchscript"), (Counting, "torchscript")],
)
def test_a_network_that_a_format_cannot_express_leaves_no_file(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], network: type[nn.Module], name: str
) -> None:
    checkpoint = save(tmp_path / "last.ckpt", make_data(), model={"_target_": f"{__name__}.{network.__name__}"})
    older = checkpoint.with_suffix(FORMATS[name].suffix)
    older.write_text("an older export")
    capfd.readouterr()
    with pytest.raises(InputError, match=f"^format={name}: this network cannot be exported .*") as refused:
        export(compose("export", f"ckpt={checkpoint}", f"format={name}", f"trust={__name__}"))
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300
    assert sorted(tmp_path.iterdir()) == sorted([checkpoint, older])
    assert older.read_text() == "an older export"
    assert capfd.readouterr() == ("", f"writing {older}, and comparing it with the checkpoint\n")


def test_packages_that_are_missing_are_named(untrained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "find_spec", lambda name: None if name != "onnx" else object())
    with pytest.raises(InputError, match=r"^format=onnx needs .*: pip install onnxscript onnxruntime$"):
        export(compose("export", f"ckpt={untrained}"))
    export(compose("export", f"ckpt={untrained}", "format=torchscript"))


def test_a_network_that_was_compiled_for_training_is_exported_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = save(tmp_path / "last.ckpt", make_data(), compile=True)
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: pytest.fail("compiled"))
    export(compose("export", f"ckpt={checkpoint}", "format=torchscript"))


def test_weights_that_diverged_are_refused(untrained: Path) -> None:
    content = torch.load(untrained, weights_only=True)
    content["state_dict"]["network.fc.weight"][0, 0] = torch.nan
    torch.save(content, untrained)
    with pytest.raises(InputError, match=r"last\.ckpt holds weights that are not finite"):
        export(compose("export", f"ckpt={untrained}", "format=torchscript"))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "ckpt is not set"),
        (["ckpt=none.ckpt"], "ckpt=none.ckpt: no such file"),
        (["ckpt=CKPT", "format=tflite"], "format=tflite: expected onnx | torchscript | exported_program"),
        (["ckpt=CKPT", "output=a.pt"], "output=a.pt: give the name of a file that ends in .onnx"),
        (["ckpt=CKPT", "output=none/a.onnx"], "output=none/a.onnx: the folder none does not exist"),
        (["ckpt=copy.pt", "format=torchscript"], "output=copy.pt is the checkpoint itself"),
    ],
    ids=lambda value: "" if isinstance(value, list) else value,
)
def test_bad_input_is_answered_in_one_line_before_anything_is_written(
    untrained: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    complaint: str,
) -> None:
    monkeypatch.chdir(untrained.parent)
    content = untrained.read_bytes()
    Path("copy.pt").write_bytes(content)
    monkeypatch.setattr("sys.argv", [str(SCRIPT), *(each.replace("CKPT", str(untrained)) for each in arguments)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    out, err = capsys.readouterr()
    assert (end.value.code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"export.py: {complaint}")
    assert sorted(path.name for path in Path().iterdir()) == ["copy.pt", "last.ckpt"]
    assert Path("copy.pt").read_bytes() == content
