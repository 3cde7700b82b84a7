"""The maps are Grad-CAM's formula, for the layer that the design names, and computing them leaves no trace."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import make_classifier, make_data, make_trainer
from lightning.pytorch import Callback
from torch import nn

from cifar_resnet.analysis import gradcam
from cifar_resnet.analysis.gradcam import METHODS, explain_images, find_layer
from cifar_resnet.errors import InputError
from cifar_resnet.training.classifier import ImageClassifier

RESNET18 = {"_target_": "cifar_resnet.models.resnet18", "width": 8}


def trained(model: dict[str, Any], folder: Path) -> ImageClassifier:
    data = make_data()
    classifier = make_classifier(data, model=model)
    make_trainer(folder).fit(classifier, datamodule=data)
    return classifier


def maps_of(classifier: ImageClassifier, images: torch.Tensor, targets: list[int], *options: str) -> np.ndarray:
    explanation = explain_images(classifier, images.numpy(), [targets], *options)
    assert explanation.reason is None
    assert explanation.maps is not None
    return explanation.maps[0]


def stretch(maps: torch.Tensor) -> torch.Tensor:
    maps = maps - maps.amin(dim=(1, 2), keepdim=True)
    return maps / (1e-7 + maps.amax(dim=(1, 2), keepdim=True))


def grad_cam_by_hand(
    classifier: ImageClassifier,
    images: torch.Tensor,
    targets: list[int],
    layer: str,
    as_map: Callable[[torch.Tensor], torch.Tensor] = lambda output: output,
) -> np.ndarray:
    """Selvaraju et al. 2017: weights are the mean gradients (eq. 1), the map the rectified weighted sum (eq. 2)."""
    kept: list[torch.Tensor] = []

    def keep(_module: object, _args: object, output: torch.Tensor) -> torch.Tensor:
        kept.append(output)
        return output.clone()  # what follows may work in place

    hook = classifier.network.get_submodule(layer).register_forward_hook(keep)
    logits = classifier.eval()(images)
    hook.remove()
    score = logits[torch.arange(len(images)), targets].sum()
    gradients, features = (as_map(each) for each in (*torch.autograd.grad(score, kept), *kept))
    weights = gradients.mean(dim=(2, 3), keepdim=True)
    maps = F.relu((weights * features).sum(dim=1)).detach()
    large = F.interpolate(stretch(maps)[:, None], size=images.shape[1:3], mode="bilinear", align_corners=False)[:, 0]
    return stretch(large).numpy()


@pytest.mark.parametrize(
    ("model", "layer"),
    [
        ({"_target_": "cifar_resnet.models.CustomResNet", "width": 8}, "layer2"),
        ({"_target_": "cifar_resnet.models.CustomResNet", "width": 8}, "layer3"),
        (RESNET18, "layer3"),
    ],
)
def test_maps_equal_the_formula_computed_by_hand(tmp_path: Path, model: dict[str, Any], layer: str) -> None:
    classifier = trained(model, tmp_path)
    images = torch.from_numpy(make_data().test.images)
    targets = [index % 3 for index in range(len(images))]
    expected = grad_cam_by_hand(classifier, images, targets, layer)
    assert (expected.max(axis=(1, 2)) > 0.99).mean() > 0.5  # most maps say something, so the comparison does
    np.testing.assert_allclose(maps_of(classifier, images, targets, layer), expected, atol=1e-4)


def test_maps_of_the_layers_size_are_those_of_the_images_size_before_they_are_enlarged(tmp_path: Path) -> None:
    classifier = trained({"_target_": "cifar_resnet.models.CustomResNet", "width": 8}, tmp_path)
    images = make_data().test.images
    small = explain_images(classifier, images, [[0] * 12], enlarge=False).maps
    large = explain_images(classifier, images, [[0] * 12]).maps
    assert small is not None
    assert small.shape == (1, 12, 8, 8)
    enlarged = F.interpolate(torch.from_numpy(small), size=(32, 32), mode="bilinear", align_corners=False)
    np.testing.assert_allclose(stretch(enlarged[0]).numpy(), large[0], atol=1e-5)


def test_many_images_are_explained_in_batches_and_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    classifier, images = make_classifier(make_data()), make_data().test.images
    together = explain_images(classifier, images, [[0, 1, 2] * 4]).maps
    monkeypatch.setattr(gradcam, "PIXELS_AT_ONCE", 5 * 32 * 32)
    np.testing.assert_allclose(explain_images(classifier, images, [[0, 1, 2] * 4]).maps, together, atol=1e-5)


class Recurrent(nn.Module):
    """Its stage is used twice, and what it gives is changed in place."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, kernel_size=4, stride=4)
        self.stage = nn.Conv2d(4, 4, kernel_size=3, padding=1)
        self.fc = nn.Linear(4, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stage(self.stem(x))
        return self.fc(self.stage(x.relu_()).mean((2, 3)))


def test_a_stage_that_is_used_twice_and_changed_in_place_is_explained() -> None:
    classifier = make_classifier(make_data(), model={"_target_": "test_gradcam.Recurrent"})
    maps = maps_of(classifier, torch.from_numpy(make_data().test.images), [0] * 12, "stage")
    assert maps.shape == (12, 32, 32)


@pytest.mark.parametrize(("model", "layer"), [({}, "layer2"), ({"model": RESNET18}, "layer3")])
def test_default_layer_is_the_last_stage_with_an_8x8_map(model: dict[str, Any], layer: str) -> None:
    assert find_layer(make_classifier(make_data(), **model)) == layer


def test_unknown_layer_is_refused_with_the_stages() -> None:
    with pytest.raises(InputError, match=r"layer9: the network has no such layer.* prep, layer1, layer2"):
        find_layer(make_classifier(make_data()), "layer9")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_maps_between_0_and_1(tmp_path: Path, method: str) -> None:
    images = torch.from_numpy(make_data().test.images)
    maps = maps_of(make_classifier(make_data()), images, [0] * len(images), "layer2", method)
    assert maps.shape == (len(images), 32, 32)
    assert maps.min() >= 0
    assert maps.max() <= 1


def test_the_classifier_is_left_as_it_was() -> None:
    classifier = make_classifier(make_data()).train()
    for parameter in classifier.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    maps_of(classifier, torch.zeros(2, 32, 32, 3, dtype=torch.uint8), [0, 1])
    assert all(module.training for module in classifier.modules())
    modules = list(classifier.network.modules())
    assert all(not vars(module)[hooks] for module in modules for hooks in ("_forward_hooks", "_backward_hooks"))
    assert all(torch.equal(parameter.grad, torch.ones_like(parameter)) for parameter in classifier.parameters())
    assert all(torch.equal(value, before[name]) for name, value in classifier.state_dict().items())


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_maps_under_lightnings_test_loop_are_those_outside_it(tmp_path: Path, precision: str) -> None:
    data, inside = make_data(), {}
    classifier = make_classifier(data)
    images = torch.from_numpy(data.test.images)

    class Explain(Callback):
        def on_test_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            assert torch.is_inference_mode_enabled()
            inside["maps"] = maps_of(pl_module, images, [0] * len(images))

    trainer = make_trainer(tmp_path, callbacks=[Explain()], precision=precision)
    trainer.test(classifier, datamodule=data, verbose=False)
    np.testing.assert_allclose(inside["maps"], maps_of(classifier, images, [0] * len(images)), atol=1e-6)
