"""The evaluation: every figure against a second opinion, and a checkpoint evaluated end to end."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_classifier, make_data, make_trainer
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import binomtest
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cifar_resnet import experiment
from cifar_resnet.analysis.drawing import draw_confusion_matrix, draw_reliability
from cifar_resnet.analysis.metrics import CALIBRATION_BINS, Evaluation, evaluate_predictions, print_evaluation, wilson
from cifar_resnet.callbacks.evaluator import Evaluator
from cifar_resnet.callbacks.gallery import MisclassifiedGallery
from cifar_resnet.callbacks.outputs import OutputCollector
from cifar_resnet.cli.compose import compose
from cifar_resnet.data.sources import Digits
from cifar_resnet.errors import InputError
from cifar_resnet.training.classifier import ImageClassifier

CLASSES = ("cat", "dog", "ship")


def predictions(count: int, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(count, classes, generator=generator)
    return logits.softmax(dim=1), torch.randint(classes, (count,), generator=generator)


def certain(*predicted: int, classes: int = 3, confidence: float = 1.0) -> torch.Tensor:
    """Probabilities that give ``confidence`` to the predicted class, and the rest to the others in equal parts."""
    probabilities = torch.full((len(predicted), classes), (1 - confidence) / (classes - 1))
    probabilities[torch.arange(len(predicted)), torch.tensor(predicted)] = confidence
    return probabilities


def save(classifier: ImageClassifier, folder: Path) -> str:
    trainer = make_trainer(folder)
    trainer.strategy.connect(classifier)
    trainer.save_checkpoint(folder / "some.ckpt")
    return str(folder / "some.ckpt")


@torch.no_grad()
def undecide(classifier: ImageClassifier, images: np.ndarray) -> None:
    """Give the classes equal mean logits: each wins some images, so that what an image shows matters."""
    mean = classifier.eval()(torch.from_numpy(images)).mean(dim=0)
    classifier.network.fc.bias -= classifier.hparams["temperature"] * mean


def write_images(root: Path, images: np.ndarray, names: list[str]) -> str:
    """Write the images as a data=folder, in train and test alike."""
    for split in ("train", "test"):
        for number, (image, name) in enumerate(zip(images, names, strict=True)):
            file = root / split / name / f"{number:03}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file)
    return str(root)


@settings(max_examples=50, deadline=None)
@given(count=st.integers(1, 60), classes=st.integers(2, 8), seed=st.integers(0, 10**6))
def test_figures_of_each_class_are_those_of_scikit_learn(count: int, classes: int, seed: int) -> None:
    probabilities, labels = predictions(count, classes, seed)
    predicted = probabilities.argmax(dim=1)
    evaluation = evaluate_predictions(probabilities, labels, [str(label) for label in range(classes)])
    every = range(classes)
    *shares, images = precision_recall_fscore_support(labels, predicted, labels=every, zero_division=np.nan)
    for ours, theirs in zip(("precision", "recall", "f1"), shares, strict=True):
        found = [getattr(figures, ours) for figures in evaluation.classes]
        np.testing.assert_allclose([np.nan if share is None else share for share in found], theirs, atol=1e-6)
    assert [figures.images for figures in evaluation.classes] == images.tolist()
    assert evaluation.confusion == confusion_matrix(labels, predicted, labels=every).tolist()
    assert evaluation.errors == int((predicted != labels).sum())
    assert evaluation.accuracy.value == pytest.approx(1 - evaluation.errors / count)
    assert evaluation.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert evaluation.macro_f1 == pytest.approx(f1_score(labels, predicted, average="macro", zero_division=0))
    json.dumps(evaluation.__dict__, default=vars, allow_nan=False)


@pytest.mark.parametrize(("labels", "said"), [((0, 0, 0, 1), True), ((0, 0, 1, 1), False)])
def test_uneven_classes_have_figures_in_which_each_counts_alike(
    labels: tuple[int, ...], said: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation = evaluate_predictions(certain(0, 0, 0, 0, classes=2), torch.tensor(labels), CLASSES[:2])
    print_evaluation(evaluation)
    assert evaluation.balanced_accuracy == 0.5
    printed = capsys.readouterr().out
    assert ("balanced accuracy  50.00%" in printed, "macro F1" in printed) == (said, said)


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611), (20, 20, 1 - 0.1611, 1)],
)
def test_wilson_interval_has_its_known_values(right: int, total: int, low: float, high: float) -> None:
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3
    assert (wilson(right, total).low, wilson(right, total).high) == pytest.approx((low, high), abs=5e-5)


@given(total=st.integers(1, 20_000), share=st.floats(0, 1))
def test_wilson_interval_is_that_of_scipy(total: int, share: float) -> None:
    right = round(share * total)
    theirs = binomtest(right, total).proportion_ci(0.95, method="wilson")
    assert (wilson(right, total).low, wilson(right, total).high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_calibration_error_is_the_mean_gap_worked_out_by_hand() -> None:
    # four images at 0.9, three of them right; six at 0.5, all right: (4 * |0.75 - 0.9| + 6 * |1 - 0.5|) / 10
    probabilities = torch.cat([certain(0, 0, 0, 0, confidence=0.9), certain(1, 1, 1, 1, 1, 1, confidence=0.5)])
    labels = torch.tensor([0, 0, 0, 2, 1, 1, 1, 1, 1, 1])
    assert evaluate_predictions(probabilities, labels, CLASSES).calibration_error == pytest.approx(0.36, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_calibration_error_is_the_mean_gap_of_the_bins_that_are_drawn(seed: int) -> None:
    probabilities, labels = predictions(50, 4, seed)
    probabilities[:5] = certain(0, 1, 2, 3, 0, classes=4)  # wholly sure: the upper end of the last bin
    evaluation = evaluate_predictions(probabilities, labels, "abcd")
    filled = [bin for bin in evaluation.calibration if bin.images]
    assert len(evaluation.calibration) == CALIBRATION_BINS
    assert sum(bin.images for bin in filled) == 50
    gaps = sum(bin.images * abs(bin.accuracy.value - bin.confidence) for bin in filled)
    assert evaluation.calibration_error == pytest.approx(gaps / 50, abs=1e-5)


def test_confused_pairs_are_those_with_the_most_errors_both_ways() -> None:
    labels, predicted = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2]), [1, 1, 0, 0, 1, 2, 1, 2]
    first, second = evaluate_predictions(certain(*predicted), labels, CLASSES).confused
    assert (first.first, first.second, first.first_as_second, first.second_as_first) == ("cat", "dog", 2, 1)
    assert (second.first, second.second, second.first_as_second, second.second_as_first) == ("dog", "ship", 1, 1)


def test_flip_averages_probabilities_beside_the_plain_accuracy() -> None:
    labels = torch.tensor([0, 1, 2, 0])
    plain = torch.cat([certain(0, 1, confidence=0.9), certain(1, 1, confidence=0.6)])
    mirrored = torch.cat([certain(0, confidence=0.9), certain(0, confidence=0.5), certain(2, 1, confidence=0.9)])
    evaluation = evaluate_predictions(plain, labels, CLASSES, mirrored)
    assert evaluation.accuracy.value == evaluate_predictions(mirrored, labels, CLASSES).accuracy.value == 0.5
    assert evaluation.flip_accuracy == wilson(3, 4)
    assert evaluate_predictions(plain, labels, CLASSES).flip_accuracy is None


def said(evaluation: Evaluation, capsys: pytest.CaptureFixture[str]) -> str:
    print_evaluation(evaluation)
    return " ".join(capsys.readouterr().out.split())


def test_a_perfect_result_is_said_and_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    evaluation = evaluate_predictions(certain(0, 1, 2), torch.tensor([0, 1, 2]), CLASSES)
    assert "no errors: all 3 test images are classified correctly" in said(evaluation, capsys)
    assert evaluation.confused == []
    assert draw_confusion_matrix(evaluation).axes[0].get_title() == "0 of 3 test images misclassified"
    assert "0.00%" in draw_reliability(evaluation).axes[0].get_title()


def test_a_class_without_test_images_has_no_recall_and_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    evaluation = evaluate_predictions(certain(0, 1, 2), torch.tensor([0, 1, 1]), CLASSES)
    assert (evaluation.classes[2].recall, evaluation.classes[2].precision, evaluation.classes[2].f1) == (None, 0, 0)
    assert "no test images of ship" in said(evaluation, capsys)


def test_terminal_shows_class_names_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    out = said(evaluate_predictions(certain(0, 1, 0), torch.tensor([0, 1, 1]), ("[red]", "[/b]", "c")), capsys)
    assert "[red] and [/b]" in out


@pytest.mark.parametrize("count", [2, 10, 30, 100])
def test_confusion_matrix_shows_every_count_that_has_room(count: int) -> None:
    probabilities, labels = predictions(400, count, 0)
    names = [rf"$\class {label}$" for label in range(count)]
    figure = draw_confusion_matrix(evaluate_predictions(probabilities, labels, names))
    figure.savefig(io.BytesIO())  # a name with $ in it must not be taken for a formula
    matrix = confusion_matrix(labels, probabilities.argmax(dim=1), labels=range(count))
    shown = {tuple(map(int, text.get_position())): text.get_text() for text in figure.axes[0].texts}
    assert shown == {(column, row): str(matrix[row, column]) for row, column in np.argwhere(matrix)}


def test_evaluator_sees_what_a_plain_forward_pass_sees(tmp_path: Path) -> None:
    data = make_data(test=60)
    classifier, outputs = make_classifier(data), OutputCollector(flip=True)
    evaluator = Evaluator(outputs)
    undecide(classifier, data.test.images)
    trainer = make_trainer(tmp_path, callbacks=[evaluator, outputs])  # in either order
    (metrics,) = trainer.test(classifier, datamodule=data, verbose=False)
    images, labels = torch.from_numpy(data.test.images), torch.from_numpy(data.test.labels)
    classifier.eval()
    with torch.no_grad():
        plain, mirrored = (classifier(part).softmax(dim=1) for part in (images, images.flip(2)))
    assert evaluator.evaluation == evaluate_predictions(plain, labels, data.classes, mirrored)
    assert evaluator.evaluation.accuracy.value == pytest.approx(metrics["test/accuracy"])


@pytest.mark.parametrize("reader", [Evaluator, MisclassifiedGallery])
def test_outputs_that_are_not_numbers_are_refused(
    tmp_path: Path, reader: type[Evaluator | MisclassifiedGallery]
) -> None:
    data, outputs = make_data(), OutputCollector()
    classifier = make_classifier(data)
    torch.nn.init.constant_(classifier.network.fc.bias, float("nan"))
    with pytest.raises(InputError, match="not numbers"):
        make_trainer(tmp_path, callbacks=[outputs, reader(outputs)]).test(classifier, datamodule=data, verbose=False)


def test_a_second_test_run_starts_anew(tmp_path: Path) -> None:
    data, outputs = make_data(), OutputCollector()
    trainer = make_trainer(tmp_path, callbacks=[outputs])
    for _ in range(2):
        trainer.test(make_classifier(data), datamodule=data, verbose=False)
    assert outputs.probabilities.shape == (12, 3)
    assert outputs.probabilities.dtype == torch.float32
    assert outputs.labels.tolist() == data.test.labels.tolist()
    assert outputs.mirrored is None


def test_a_checkpoint_is_evaluated_end_to_end(tmp_path: Path) -> None:
    test = Digits().test()
    # statistics that are not those of the digits: only the checkpoint can say them
    classifier = make_classifier(make_data(), classes=list(test.classes), test_mean=[0.1, 0.6, 0.3])
    undecide(classifier, test.images)
    config = compose(
        "evaluate",
        f"ckpt={save(classifier, tmp_path)}",
        "data=digits",
        "tta=flip",
        "gallery.count=2",
        "trainer.accelerator=cpu",
        f"trainer.default_root_dir={tmp_path}",
    )
    evaluation = experiment.evaluate(config)
    classifier.eval()
    images = torch.from_numpy(test.images)
    with torch.no_grad():
        plain, mirrored = (classifier(part).softmax(dim=1) for part in (images, images.flip(2)))
    right = plain.argmax(dim=1).numpy() == test.labels
    right_averaged = (plain + mirrored).argmax(dim=1).numpy() == test.labels
    assert evaluation.accuracy == wilson(int(right.sum()), len(test))
    assert evaluation.flip_accuracy == wilson(int(right_averaged.sum()), len(test))
    run = tmp_path / "lightning_logs" / "version_0"
    written = json.loads((run / "evaluation.json").read_text())
    assert written["accuracy"]["value"] == evaluation.accuracy.value
    assert written["confusion"] == confusion_matrix(test.labels, plain.argmax(dim=1)).tolist()
    assert json.loads((run / "gallery.json").read_text())["errors"] == evaluation.errors
    for name in ("confusion_matrix", "reliability", "gallery"):
        assert Image.open(run / f"{name}.png").format == "PNG"
    assert {"pictures/confusion_matrix", "pictures/reliability"} <= set(
        EventAccumulator(str(run)).Reload().Tags()["images"]
    )


def test_a_checkpoint_without_errors_is_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_data(test=6)
    classifier = make_classifier(data, classes=["cat", "dog"]).eval()
    with torch.no_grad():  # move the boundary into the midst of the images, and call them what they are taken for
        logits = classifier(torch.from_numpy(data.test.images))
        classifier.network.fc.bias[0] += 8 * (logits[:, 1] - logits[:, 0]).sort().values[2:4].mean()
        predicted = classifier(torch.from_numpy(data.test.images)).argmax(dim=1)
    root = write_images(tmp_path / "images", data.test.images, [("cat", "dog")[label] for label in predicted])
    options = (f"data.root={root}", "trainer.accelerator=cpu", f"trainer.default_root_dir={tmp_path}")
    evaluation = experiment.evaluate(compose("evaluate", f"ckpt={save(classifier, tmp_path)}", "data=folder", *options))
    assert (evaluation.errors, evaluation.images) == (0, 6)
    assert "no errors: all 6 test images" in capsys.readouterr().out
    assert not (tmp_path / "lightning_logs" / "version_0" / "gallery.png").exists()


@pytest.mark.parametrize(
    ("classes", "complaint"),
    [
        (["cat", "dog", "ship"], "only in the checkpoint: ship"),
        (["cat", "ship"], "only in the checkpoint: ship; only in the data: dog"),
        (["dog", "cat"], "the order differs, label 0 is dog in the checkpoint, cat in the data"),
    ],
)
def test_a_checkpoint_of_other_classes_is_refused_and_nothing_is_written(
    tmp_path: Path, classes: list[str], complaint: str
) -> None:
    data = make_data(test=4)
    path = save(make_classifier(data, classes=classes), tmp_path)
    root = write_images(tmp_path / "images", data.test.images, ["cat", "dog", "cat", "dog"])
    options = (f"data.root={root}", "trainer.accelerator=cpu", f"trainer.default_root_dir={tmp_path}")
    with pytest.raises(InputError) as refusal:
        experiment.evaluate(compose("evaluate", f"ckpt={path}", "data=folder", *options))
    assert str(refusal.value).startswith(f"ckpt={path}: its classes are not those of the data ({complaint});")
    assert not (tmp_path / "lightning_logs").exists()
