"""The classifier: self-contained, normalized with the right statistics, on the specified learning-rate trace."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import make_classifier, make_data, make_trainer
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.utils.class_weight import compute_class_weight

from cifar_resnet.lr.search import Probe
from cifar_resnet.training.checkpoint import load_classifier
from cifar_resnet.training.classifier import ImageClassifier, balanced_weights


class RateTrace(Callback):
    def __init__(self, group: int = 0) -> None:
        self.group = group
        self.rates: list[float] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.rates.append(optimizer.param_groups[self.group]["lr"])


def expected_trace(total: int, peak: float, lr_min: float = 0.01, lr_max: float = 0.1) -> list[float]:
    return np.interp(np.arange(1, total + 1), [1, peak, total], [lr_min, lr_max, lr_min]).tolist()


@pytest.mark.parametrize(
    ("options", "steps_per_epoch"),
    [
        ({}, 3),
        ({"accumulate_grad_batches": 2}, 2),  # the last step of an epoch has one batch only
        ({"limit_train_batches": 2}, 2),
        ({"limit_train_batches": 2, "accumulate_grad_batches": 2}, 1),
    ],
)
def test_rate_trace_is_exact(tmp_path: Path, options: dict[str, Any], steps_per_epoch: int) -> None:
    data, trace = make_data(), RateTrace()
    classifier = make_classifier(data, peak_epoch=2, max_epochs=5)
    make_trainer(tmp_path, max_epochs=5, callbacks=[trace], **options).fit(classifier, datamodule=data)
    assert trace.rates == pytest.approx(expected_trace(5 * steps_per_epoch, 2 * steps_per_epoch))


def fit(
    folder: Path, stop_after: int | None = None, ckpt_path: Path | None = None
) -> tuple[ImageClassifier, list[float]]:
    """Train three epochs; or the first of them, as if interrupted; or go on from a checkpoint."""
    data, trace = make_data(), RateTrace()
    classifier = make_classifier(data)
    checkpoint = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    trainer = make_trainer(folder, callbacks=[trace, checkpoint], enable_checkpointing=True)
    if stop_after is not None:
        trainer.callbacks.append(_StopAfter(stop_after))  # type: ignore[attr-defined]
    trainer.fit(classifier, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    return classifier, trace.rates


class _StopAfter(Callback):
    def __init__(self, epoch: int):
        self.epoch = epoch

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.should_stop = trainer.current_epoch + 1 == self.epoch


def test_resume_is_exact(tmp_path: Path) -> None:
    whole, rates = fit(tmp_path / "whole")
    _, first = fit(tmp_path / "part", stop_after=1)
    resumed, rest = fit(tmp_path / "part", ckpt_path=tmp_path / "part" / "epoch=0.ckpt")
    assert first + rest == rates
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_forward_normalizes_and_divides_by_the_temperature() -> None:
    classifier = make_classifier(make_data(), mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6], temperature=4.0)
    images = torch.randint(0, 256, (5, 32, 32, 3), dtype=torch.uint8)
    pixels = (images / 255 - torch.tensor([0.1, 0.2, 0.3])) / torch.tensor([0.4, 0.5, 0.6])
    with torch.no_grad():
        expected = classifier.network(pixels.permute(0, 3, 1, 2)) / 4
        torch.testing.assert_close(classifier(images), expected, atol=1e-5, rtol=1e-4)


def test_normalized_images_are_channels_last() -> None:
    pixels = make_classifier(make_data()).normalize(torch.zeros(4, 32, 32, 3, dtype=torch.uint8))
    assert pixels.shape == (4, 3, 32, 32)
    assert pixels.is_contiguous(memory_format=torch.channels_last)


def test_the_mean_pixel_is_zero_after_normalization() -> None:
    data = make_data()
    fill = torch.tensor(np.round(np.array(data.mean) * 255), dtype=torch.uint8)
    pixels = make_classifier(data).normalize(fill.expand(1, 32, 32, 3))
    assert pixels.abs().max() <= 0.5 / 255 / min(data.std) + 1e-6  # half a grey level


def test_test_statistics_normalize_in_evaluation_mode_only() -> None:
    data = make_data(test_statistics="test")
    classifier = make_classifier(data)
    images = torch.from_numpy(data.test.images)
    assert classifier.eval().normalize(images).mean(dim=(0, 2, 3)).abs().max() < 1e-4
    assert classifier.train().normalize(images).mean(dim=(0, 2, 3)).abs().max() > 1e-3


def test_checkpoint_is_self_contained(tmp_path: Path) -> None:
    data = make_data(test_statistics="test")
    classifier, trainer = make_classifier(data), make_trainer(tmp_path, max_epochs=1)
    trainer.fit(classifier, datamodule=data)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    loaded = ImageClassifier.load_from_checkpoint(tmp_path / "one.ckpt", weights_only=True).eval()
    images = torch.from_numpy(data.test.images)
    assert loaded.classes == data.classes
    with torch.no_grad():
        assert torch.equal(loaded(images), classifier.eval()(images))


def test_epoch_figures_are_those_of_the_whole_epoch(tmp_path: Path) -> None:
    """Loss and accuracy are means over images, not over batches of unequal size."""
    data = make_data(test=1300)  # two evaluation batches, 1000 and 300
    data.test.labels[1000:] = (data.test.labels[1000:] + 1) % 3  # the second one is harder
    classifier, trainer = make_classifier(data), make_trainer(tmp_path, max_epochs=1)
    trainer.fit(classifier, datamodule=data)
    (metrics,) = trainer.test(classifier, datamodule=data, verbose=False)
    labels = torch.from_numpy(data.test.labels)
    with torch.no_grad():
        logits = classifier.eval()(torch.from_numpy(data.test.images))
    assert metrics["test/accuracy"] == pytest.approx((logits.argmax(1) == labels).double().mean().item())
    assert metrics["test/loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-6)


def test_label_smoothing_is_in_the_training_loss_only(tmp_path: Path) -> None:
    data = make_data()
    plain, smooth = (make_classifier(data, label_smoothing=value) for value in (0.0, 0.3))
    logits, labels = torch.tensor([[9.0, 0.0, 0.0]]), torch.tensor([0])
    assert smooth.criterion(logits, labels) > plain.criterion(logits, labels) + 1
    (with_smoothing,), (without,) = (
        make_trainer(tmp_path).test(classifier, datamodule=data, verbose=False) for classifier in (smooth, plain)
    )
    assert with_smoothing == without


@given(labels=st.lists(st.integers(0, 5), min_size=1, max_size=80))
def test_balanced_weights_are_those_of_scikit_learn(labels: list[int]) -> None:
    weights = balanced_weights(np.bincount(labels, minlength=6).tolist())
    present = np.unique(labels)
    assert [weights[label] for label in present] == pytest.approx(
        compute_class_weight("balanced", classes=present, y=labels)
    )
    assert all(weights[label] == 0 for label in set(range(6)) - set(present))


def test_class_weights_multiply_each_images_training_loss() -> None:
    weights = [0.5, 2.0, 0.0]
    classifier = make_classifier(make_data(), class_weights=weights, label_smoothing=0.1)
    logits, labels = torch.randn(7, 3), torch.tensor([0, 1, 0, 0, 1, 0, 0])
    losses = [
        F.cross_entropy(row[None], label[None], label_smoothing=0.1) for row, label in zip(logits, labels, strict=True)
    ]
    expected = sum(weights[label] * loss for label, loss in zip(labels, losses, strict=True)) / 7
    torch.testing.assert_close(classifier.criterion(logits, labels), expected)


def test_class_weights_are_in_the_loss_of_training_and_search_only(tmp_path: Path) -> None:
    data = make_data()
    plain, weighted = (make_classifier(data, class_weights=weights) for weights in (None, [3.0, 0.5, 0.1]))
    batch = torch.from_numpy(data.train.images[:9]), torch.zeros(9, dtype=torch.int64)
    searched = [Probe(classifier.eval()).training_step(batch, 0).item() for classifier in (plain, weighted)]
    assert searched[1] == pytest.approx(3 * searched[0])
    tested = [
        make_trainer(tmp_path).test(classifier, datamodule=data, verbose=False) for classifier in (plain, weighted)
    ]
    assert tested[0] == tested[1]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "64-true"])
def test_weighted_classes_are_trained_saved_and_loaded(tmp_path: Path, precision: Any) -> None:
    data = make_data()
    classifier = make_classifier(data, class_weights=[3.0, 0.5, 0.0])
    trainer = make_trainer(tmp_path, max_epochs=1, precision=precision)
    trainer.fit(classifier, datamodule=data)
    trainer.save_checkpoint(tmp_path / "weighted.ckpt")
    loaded = load_classifier(str(tmp_path / "weighted.ckpt"))
    assert loaded.hparams["class_weights"] == [3.0, 0.5, 0.0]
    assert make_classifier(data).state_dict().keys() == loaded.state_dict().keys()


def test_biases_have_a_rate_and_a_weight_decay_of_their_own() -> None:
    """One step of plain SGD, worked out by hand: what weight decay takes off is the same share of all weights."""
    plain = {"_target_": "torch.optim.SGD", "weight_decay": 0.1}
    classifier = make_classifier(make_data(), optimizer=plain, bias_factor=64.0)
    before = {name: value.detach().clone() for name, value in classifier.network.named_parameters()}
    optimizer = classifier.make_optimizer(lr=0.01)
    for parameter in classifier.network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, value in classifier.network.named_parameters():
        rate, decay = (0.64, 0.1 / 64) if name.endswith("bias") else (0.01, 0.1)
        torch.testing.assert_close(value, before[name] - rate * (1 + decay * before[name]))


def test_the_rates_of_biases_follow_the_schedule(tmp_path: Path) -> None:
    data, trace = make_data(), RateTrace(group=1)
    classifier = make_classifier(data, peak_epoch=2, max_epochs=5, bias_factor=4.0, lr_end=0.0, flat_epochs=1)
    make_trainer(tmp_path, max_epochs=5, callbacks=[trace]).fit(classifier, datamodule=data)
    expected = np.interp(range(1, 16), [1, 6, 12, 15], [0.01, 0.1, 0, 0])
    assert trace.rates == pytest.approx((4 * expected).tolist())


def test_a_network_without_biases_has_one_rate() -> None:
    classifier = make_classifier(make_data(), model={"_target_": f"{__name__}.WithoutBias"}, bias_factor=64.0)
    assert [len(group["params"]) for group in classifier.make_optimizer(lr=0.1).param_groups] == [1, 0]


class WithoutBias(torch.nn.Sequential):
    def __init__(self, num_classes: int):
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, num_classes, bias=False))
