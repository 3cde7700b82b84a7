"""The tricks of Page's ResNet-9: each does what its formula says, and without them it is the assignment's network."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import make_classifier, make_data, make_image_set, make_trainer
from torch import nn

from cifar_resnet.analysis.gradcam import find_layer
from cifar_resnet.cli.compose import compose
from cifar_resnet.data.patches import patch_covariance
from cifar_resnet.errors import InputError
from cifar_resnet.inference.export import export
from cifar_resnet.lr.search import search
from cifar_resnet.models import CustomResNet, ResNet9
from cifar_resnet.models.ghost import GhostBatchNorm, parts_of
from cifar_resnet.models.whitening import PatchWhitening
from cifar_resnet.training.checkpoint import load_classifier

TRICKS = {"celu": 0.3, "ghost": 8, "norm_scale": False, "whiten": True}
TRICKED = {"_target_": "cifar_resnet.models.ResNet9", "width": 2} | TRICKS


def of_seed(network: type[CustomResNet], **options: object) -> CustomResNet:
    torch.manual_seed(0)
    return network(**options)  # type: ignore[arg-type]


def test_without_tricks_it_is_the_assignments_network() -> None:
    one, other = of_seed(CustomResNet, width=2), of_seed(ResNet9, width=2)
    assert str(one).removeprefix("CustomResNet") == str(other).removeprefix("ResNet9")
    x = torch.randn(4, 3, 32, 32)
    for each in (one, other):
        each(x).sum().backward()
    pairs = zip(one.named_parameters(), other.named_parameters(), strict=True)
    assert all(name == same and torch.equal(a.grad, b.grad) for (name, a), (same, b) in pairs)  # type: ignore[arg-type]


def test_with_all_tricks_it_has_as_many_parameters() -> None:
    network = ResNet9(**TRICKS)  # type: ignore[arg-type]
    assert sum(parameter.numel() for parameter in network.parameters()) == 6_573_130
    kinds = [type(module) for module in network.modules()]
    assert nn.ReLU not in kinds
    assert nn.BatchNorm2d not in kinds
    assert kinds.count(nn.CELU) == kinds.count(GhostBatchNorm) == 8
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, value in network.named_parameters() if value.dim() == 1 and "weight" in name}


def test_a_ghost_batch_is_normalized_by_itself() -> None:
    torch.manual_seed(0)
    norm = GhostBatchNorm(3, images=4).train()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(12, 3, 5, 5) * 2 + 1
    y = norm(x)
    means, variances = [], []
    for start in (0, 4, 8):
        part = x[start : start + 4]
        mean, variance = part.mean((0, 2, 3)), part.var((0, 2, 3), correction=0)
        expected = (part - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt()
        expected = expected * norm.weight[:, None, None] + norm.bias[:, None, None]
        torch.testing.assert_close(y[start : start + 4], expected)
        means.append(mean)
        variances.append(part.var((0, 2, 3)))  # unbiased, as PyTorch keeps it
    torch.testing.assert_close(norm.running_mean, 0.1 * torch.stack(means).mean(0))
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * torch.stack(variances).mean(0))
    plain = nn.BatchNorm2d(3)
    plain.load_state_dict(norm.state_dict())
    assert torch.equal(norm.eval()(x), plain.eval()(x))


@pytest.mark.parametrize(("batch", "images", "parts"), [(512, 32, 16), (500, 32, 10), (7, 4, 1), (3, 32, 1), (8, 1, 8)])
def test_parts_are_of_one_size(batch: int, images: int, parts: int) -> None:
    assert parts_of(batch, images) == parts


def test_one_ghost_of_all_images_is_batch_norm() -> None:
    x = torch.randn(8, 3, 4, 4)
    ghost, plain = GhostBatchNorm(3, images=8), nn.BatchNorm2d(3)
    assert torch.equal(ghost(x), plain(x))
    torch.testing.assert_close(ghost.running_var, plain.running_var)


def normalized(images: np.ndarray, mean: list[float], std: list[float]) -> torch.Tensor:
    pixels = (torch.from_numpy(images) / 255 - torch.tensor(mean)) / torch.tensor(std)
    return pixels.permute(0, 3, 1, 2)


def test_the_covariance_is_that_of_all_patches() -> None:
    images = make_image_set(20).images
    pixels = normalized(images, [0.1, 0.2, 0.3], [0.2, 0.3, 0.4])
    patches = F.unfold(pixels, 3).transpose(1, 2).reshape(-1, 27)  # by channel, row and column
    expected = torch.cov(patches.T.double(), correction=0)
    found = torch.tensor(patch_covariance(images, [0.2, 0.3, 0.4]), dtype=torch.float64)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_whitened_patches_are_uncorrelated_and_of_one_variance() -> None:
    """Noise that every pixel shares with its neighbours; what a filter puts out has variance v / (v + 0.01)."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 100, (40, 34, 34, 3))
    images = (noise[:, :32, :32] + noise[:, 1:33, :32] // 2 + noise[:, :32, 1:33] // 2).astype(np.uint8)
    std = [0.15, 0.15, 0.15]
    covariance = patch_covariance(images, std)
    whitening = PatchWhitening(covariance)
    outputs = whitening(normalized(images, [0.4] * 3, std))
    assert outputs.shape == (40, 27, 32, 32)
    inner = outputs[:, :, 1:-1, 1:-1].transpose(0, 1).flatten(1).double()
    variances = torch.linalg.eigvalsh(torch.tensor(covariance, dtype=torch.float64)).flip(0)
    expected = torch.diag(variances / (variances + 0.01))
    torch.testing.assert_close(torch.cov(inner), expected, atol=2e-3, rtol=0)
    assert [name for name, _ in whitening.named_parameters()] == []


def test_a_tricked_network_is_searched_trained_saved_and_loaded(tmp_path: Path) -> None:
    data = make_data()
    covariance = patch_covariance(data.train.images, data.std)
    classifier = make_classifier(data, model=TRICKED, patch_covariance=covariance, bias_factor=64.0, temperature=16.0)
    filters = classifier.network.prep[0].filters.clone()
    scales = [module.weight.clone() for module in classifier.network.modules() if isinstance(module, GhostBatchNorm)]
    ladder = {"num_training": 20, "repeats": 2, "lowest": 1e-3, "highest": 1.0, "lr_max_factor": 0.8}
    options = {"accelerator": "cpu", "devices": 1}
    assert search(classifier, data, **ladder, trainer_options=options).bounds.lr_max > 0  # type: ignore[arg-type]
    trainer = make_trainer(tmp_path, max_epochs=3)
    trainer.fit(classifier, datamodule=data)
    assert torch.equal(classifier.network.prep[0].filters, filters)
    norms = (module for module in classifier.network.modules() if isinstance(module, GhostBatchNorm))
    assert all(torch.equal(norm.weight, scale) for norm, scale in zip(norms, scales, strict=True))
    trainer.save_checkpoint(tmp_path / "tricked.ckpt")
    loaded = load_classifier(str(tmp_path / "tricked.ckpt"))
    images = torch.from_numpy(data.test.images)
    with torch.no_grad():
        assert torch.equal(loaded(images), classifier.eval()(images))
    assert find_layer(loaded) == "layer2"
    for kind in ("torchscript", "exported_program"):
        assert export(compose("export", f"ckpt={tmp_path}/tricked.ckpt", f"format={kind}")).is_file()


def test_ghosts_and_synchronized_batch_norm_exclude_each_other() -> None:
    with pytest.raises(InputError, match=r"model.ghost=32: trainer.sync_batchnorm=true"):
        compose("train", "data=digits", "model=resnet9", "model.ghost=32", "trainer.sync_batchnorm=true")
