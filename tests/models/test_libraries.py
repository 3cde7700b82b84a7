"""Networks of torchvision and timm: made by name, begun with weights, and remade from a checkpoint without them."""

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision import models

from cifar_resnet import evaluate, train
from cifar_resnet.analysis.remarks import remark_batch_norm
from cifar_resnet.checks import try_classifier
from cifar_resnet.cli.compose import compose
from cifar_resnet.errors import InputError
from cifar_resnet.inference.export import export
from cifar_resnet.models import from_timm, from_torchvision
from cifar_resnet.training.checkpoint import load_classifier

SMALL = [
    *("data=digits", "data.train_size=100", "trainer.accelerator=cpu", "trainer.precision=32-true", "gallery.count=0"),
    *("trainer.max_epochs=2", "schedule.peak_epoch=1", "schedule.lr_min=0.001", "schedule.lr_max=0.01"),
]
SHUFFLENET = ["model=torchvision", "model.name=shufflenet_v2_x0_5"]
IMAGENET = [0.485, 0.456, 0.406]


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder, without weights from earlier days, and without anybody to fetch them from."""

    def nobody(*_: Any, **__: Any) -> None:
        raise OSError("no network here")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("sys.argv", ["train.py"])
    monkeypatch.setattr(socket, "getaddrinfo", nobody)


@pytest.fixture
def weights(tmp_path: Path) -> str:
    torch.save(models.shufflenet_v2_x0_5().state_dict(), tmp_path / "weights.pth")
    return "weights.pth"


def test_a_run_that_begins_with_weights_needs_them_once(
    weights: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    network = [*SHUFFLENET, f"model.weights={weights}", "model.input_size=40"]
    run = train(*SMALL, *network)
    printed = capsys.readouterr().out
    assert "network: shufflenet_v2_x0_5 (torchvision), 352,042 parameters" in printed
    assert "network: images are scaled to 40×40 pixels, and normalized as for its weights" in printed
    assert run.summary["network"] == "shufflenet_v2_x0_5 (torchvision)"
    assert run.classifier.hparams["mean"] == run.classifier.hparams["test_mean"] == IMAGENET
    Path(weights).unlink()
    assert run.folder is not None
    assert "shufflenet_v2_x0_5 (torchvision) on Digits" in (run.folder / "report.html").read_text()
    checkpoint = str(run.folder / "checkpoints" / "last.ckpt")
    images = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(load_classifier(checkpoint)(images), run.classifier(images))
    found = evaluate(f"ckpt={checkpoint}", "data=digits", "trainer.accelerator=cpu", "gallery.count=0")
    assert found.accuracy.value == run.accuracy
    assert export(compose("export", f"ckpt={checkpoint}", "format=torchscript")).exists()
    (run.folder / "summary.json").unlink()  # as if it had been killed just before its end
    again = train(*SMALL, *network, f"ckpt_path={checkpoint}")
    assert again.classifier.hparams["model"] == run.classifier.hparams["model"]
    assert again.accuracy == run.accuracy


@pytest.mark.parametrize(
    ("network", "line"),
    [
        (
            "model.name=mobilnet_v3_small",
            "model.name=mobilnet_v3_small: torchvision has no .* nearest: mobilenet_v3_sm",
        ),
        ("model.name=fcn_resnet50", "model.name=fcn_resnet50: torchvision has no classification network of that name"),
        ("model.name=inception_v3", "inception_v3: it takes no images of 32×32 .* scale them by model.input_size=299"),
        (
            "model.name=resnet18 +model.width_per=4",
            "model.name=resnet18: it cannot be made with these arguments: .*width",
        ),
        (
            "model.name=resnet18 model.pretrained=true",
            "weights of resnet18 cannot be fetched .* no network .* model.weigh",
        ),
        ("model.name=resnet18 model.weights=gone.pth", "model.weights=gone.pth cannot be read .*No such file"),
        (
            "model.name=resnet18 model.weights=weights.pth",
            "model.weights=weights.pth has .*: not the weights of resnet18",
        ),
        (
            "model.name=vit_b_32 model.input_size=40",
            "model.name=vit_b_32: it cannot be made with these arguments: .*patch",
        ),
    ],
)
def test_what_cannot_be_is_a_line_before_the_data_is_read(
    weights: str, monkeypatch: pytest.MonkeyPatch, network: str, line: str
) -> None:
    monkeypatch.setattr("cifar_resnet.experiment.read_images", lambda *_: pytest.fail("read the data"))
    with pytest.raises(InputError, match=line) as error:
        train(*SMALL, "model=torchvision", *network.split())
    assert "\n" not in str(error.value)


def test_weights_of_other_classes_are_all_but_the_head(tmp_path: Path) -> None:
    given = models.shufflenet_v2_x0_5(num_classes=7).state_dict()
    torch.save(given, "given.pth")
    other, same = (from_torchvision("shufflenet_v2_x0_5", n, weights="given.pth", input_size=32)[1] for n in (3, 7))
    assert all(torch.equal(value, given[key]) for key, value in same.state_dict().items())
    kept = {key for key, value in other.state_dict().items() if value.shape == given[key].shape}
    assert given.keys() - kept == {"fc.weight", "fc.bias"}
    assert all(torch.equal(other.state_dict()[key], given[key]) for key in kept)


def test_old_names_of_densenets_layers_are_understood() -> None:
    given = models.densenet121(num_classes=2).state_dict()
    torch.save(
        {key.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): v for key, v in given.items()}, "old.pth"
    )
    network = from_torchvision("densenet121", 2, weights="old.pth", input_size=32)[1]
    assert all(torch.equal(value, given[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("content", [b"nothing", None, {"a": 1}], ids=str)
def test_a_file_that_holds_no_weights_is_refused(content: Any) -> None:
    if isinstance(content, bytes):
        Path("file.pth").write_bytes(content)
    else:
        torch.save(content, "file.pth")
    with pytest.raises(InputError, match=r"model.weights=file.pth"):
        from_torchvision("squeezenet1_1", 2, weights="file.pth")


def test_what_takes_one_size_gets_it() -> None:
    with torch.device("meta"):
        network = from_torchvision("vit_b_32", 2)
        assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 2)
        assert network.enlarge.size == (224, 224)
        assert from_torchvision("vit_b_32", 2, input_size=64).enlarge.size == (64, 64)


def test_statistics_of_batch_norm_arrive_in_a_short_training() -> None:
    (remark,) = remark_batch_norm(models.mobilenet_v3_small(), 66)
    assert remark.startswith("the statistics of a batch norm will keep 52% of their first values")
    assert remark_batch_norm(from_torchvision("mobilenet_v3_small", 2), 66) == []
    assert remark_batch_norm(nn.Linear(1, 1), 1) == []


def test_a_network_of_timm() -> None:
    timm = pytest.importorskip("timm", reason="the extra timm is not installed")
    torch.save(timm.create_model("test_vit", num_classes=5).state_dict(), "vit.pth")
    config = compose("train", "data=digits", "model=timm", "model.name=test_vit", "model.weights=vit.pth")
    assert config.model.title == "test_vit (timm)"
    classifier = try_classifier(config)
    assert classifier.network.enlarge.size == (160, 160)
    assert classifier.hparams["mean"] == classifier.hparams["test_std"] == [0.5, 0.5, 0.5]
    torch.save({"state_dict": classifier.state_dict(), "hyper_parameters": dict(classifier.hparams)}, "timm.ckpt")
    Path("vit.pth").unlink()
    images = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(load_classifier("timm.ckpt")(images), classifier(images))
    assert type(from_timm("test_resnet.r160_in1k", 2)).__name__ == "ResNet"


@pytest.mark.parametrize("name", ["resnt18", "hf_hub:timm/resnet18.a1_in1k", "local-dir:/tmp", "resnet18.nonsense"])
def test_a_network_that_timm_does_not_have(name: str) -> None:
    pytest.importorskip("timm", reason="the extra timm is not installed")
    with pytest.raises(
        InputError, match=f"model.name={name}: timm has no classification network of that name; nearest"
    ):
        from_timm(name, 2)


def test_weights_of_timm_that_cannot_be_fetched_are_a_line_at_once(tmp_path: Path, monkeypatch: Any) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="the extra timm is not installed")
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"the weights of resnet18 cannot be fetched .*give model.weights=FILE"):
        from_timm("resnet18", 2, pretrained=True)
