"""Any network that returns logits is trained, tested and shown, whether or not it can be explained."""

import json
import sys
from pathlib import Path

import pytest
import torch
from conftest import make_classifier, make_data, make_trainer
from PIL import Image
from torch import Tensor, nn

from cifar_resnet import train
from cifar_resnet.analysis.gradcam import explain_images, find_layer
from cifar_resnet.callbacks.evaluator import Evaluator
from cifar_resnet.callbacks.gallery import MisclassifiedGallery
from cifar_resnet.callbacks.outputs import OutputCollector
from cifar_resnet.errors import InputError


class Perceptron(nn.Module):
    """No feature map anywhere."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.hidden = nn.Linear(3 * 32 * 32, 4)
        self.fc = nn.Linear(4, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.hidden(x.flatten(1)).relu())


class Tokens(nn.Module):
    """A transformer: its children return ``[N, T, C]``."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.patches = nn.Conv2d(3, 4, kernel_size=32, stride=32)
        self.encoder = nn.TransformerEncoderLayer(4, nhead=1, dim_feedforward=4, batch_first=True)
        self.fc = nn.Linear(4, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.encoder(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


class Twice(nn.Module):
    """Returns what it gets, twice."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class Pair(nn.Module):
    """A child returns a tuple, another a feature map."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.maps = nn.Conv2d(3, 2, kernel_size=4, stride=4)
        self.twice = Twice()
        self.fc = nn.Linear(2, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.twice(self.maps(x))[0].mean((2, 3)))


class Unusual(nn.Module):
    """Stops at a copy in evaluation mode that wants gradients: pytorch-grad-cam fails under it."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.maps = nn.Conv2d(3, 2, kernel_size=4, stride=4)
        self.fc = nn.Linear(2, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and not self.training:
            raise IndexError("this network\nis unusual")
        return self.fc(self.maps(x).mean((2, 3)))


NO_MAP = "no stage of the network has a feature map"
UNUSUAL = "the network: gradcam cannot explain it (this network is unusual)"
NETWORKS = [(Perceptron, NO_MAP), (Tokens, NO_MAP), (Pair, None), (Unusual, UNUSUAL)]


@pytest.mark.parametrize(("network", "reason"), NETWORKS)
def test_callbacks_show_any_network(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], network: type[nn.Module], reason: str | None
) -> None:
    data = make_data()
    classifier = make_classifier(data, model={"_target_": f"test_any_network.{network.__name__}"})
    outputs = OutputCollector()
    gallery = MisclassifiedGallery(outputs, count=3)
    gallery.check(classifier)
    trainer = make_trainer(tmp_path, callbacks=[outputs, Evaluator(outputs), gallery], max_epochs=1)
    trainer.fit(classifier, datamodule=data)
    capfd.readouterr()
    trainer.test(classifier, datamodule=data, verbose=False)
    found = json.loads((tmp_path / "gallery.json").read_text())
    assert found["reason"] == reason
    assert found["maps"] == (None if reason else {"method": "gradcam", "layer": "maps"})
    expected = f"gallery: images without maps: {reason}\n" if reason else ""
    assert capfd.readouterr().out == expected
    with Image.open(tmp_path / "gallery.png") as picture:
        assert picture.width < 3 * 300 if reason else picture.width > 3 * 300


@pytest.mark.parametrize("network", [network for network, _ in NETWORKS])
def test_the_whole_experiment_runs_with_any_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: type[nn.Module]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    model = [f"model._target_=test_any_network.{network.__name__}"]
    schedule = ["trainer.max_epochs=2", "schedule.peak_epoch=1", "schedule.lr_min=0.001", "schedule.lr_max=0.01"]
    small = ["data=digits", "data.train_size=100", "trainer.accelerator=cpu", "gallery.count=2"]
    summary = train(*small, *schedule, *model).summary
    run = tmp_path / "lightning_logs" / "version_0"
    assert (run / "report.html").exists()
    assert json.loads((run / "gallery.json").read_text())["errors"] == summary["misclassified"] > 0


def test_a_gallery_that_is_turned_off_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    schedule = ["trainer.max_epochs=2", "schedule.peak_epoch=1", "schedule.lr_min=0.001", "schedule.lr_max=0.01"]
    small = ["data=digits", "data.train_size=100", "trainer.accelerator=cpu", "model.width=2", "gallery.count=0"]
    assert train(*small, *schedule).summary["misclassified"] > 0
    assert not list((tmp_path / "lightning_logs" / "version_0").glob("gallery*"))


@pytest.mark.parametrize(
    ("network", "layer", "words"),
    [
        (Perceptron, "hidden", "gallery.layer=hidden: gradcam cannot explain it"),
        (Perceptron, "nope", "gallery.layer=nope: the network has no such layer; its stages are hidden, fc"),
        (Tokens, "encoder", "gallery.layer=encoder: gradcam cannot explain it"),
        (Pair, "twice", "gallery.layer=twice: gradcam cannot explain it"),
    ],
)
def test_a_named_layer_that_cannot_be_explained_is_refused(network: type[nn.Module], layer: str, words: str) -> None:
    classifier = make_classifier(make_data(), model={"_target_": f"test_any_network.{network.__name__}"})
    with pytest.raises(InputError) as refusal:
        MisclassifiedGallery(OutputCollector(), layer=layer).check(classifier)
    assert str(refusal.value).startswith(words)
    assert "\n" not in str(refusal.value)


def test_maps_that_are_not_numbers_are_no_maps() -> None:
    data = make_data()
    classifier = make_classifier(data)
    torch.nn.init.constant_(classifier.network.fc.weight, float("nan"))
    explanation = explain_images(classifier, data.test.images, [[0] * 12])
    assert explanation.maps is None
    assert explanation.reason is not None
    assert explanation.reason.startswith("layer2: gradcam cannot explain it (")


def test_stages_without_a_feature_map_are_passed_over() -> None:
    classifier = make_classifier(make_data(), model={"_target_": "test_any_network.Pair"})
    assert find_layer(classifier) == "maps"
