"""The gallery shows the errors that it should, and says so where there are few or none."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_classifier, make_data, make_trainer
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cifar_resnet.callbacks.gallery import MisclassifiedGallery, choose
from cifar_resnet.data.datamodule import ImageDataModule
from cifar_resnet.data.sources import ImageSet


@given(seed=st.integers(0, 10_000), size=st.integers(1, 60), classes=st.integers(2, 6), count=st.integers(1, 20))
def test_chosen_are_errors_and_the_most_confident_come_first(seed: int, size: int, classes: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.ones(classes), size)
    labels = rng.integers(0, classes, size)
    predicted, confidence = probabilities.argmax(1), probabilities.max(1)
    errors = set(np.flatnonzero(predicted != labels))
    for order in ("confident", "first", "random"):
        chosen = choose(probabilities, labels, count, order, seed).tolist()
        assert len(chosen) == len(set(chosen)) == min(count, len(errors))
        assert set(chosen) <= errors
    confident = choose(probabilities, labels, count, "confident").tolist()
    assert [confidence[index] for index in confident] == sorted((confidence[index] for index in errors), reverse=True)[
        :count
    ]
    assert choose(probabilities, labels, count, "first").tolist() == sorted(errors)[:count]


def run(folder: Path, data: ImageDataModule, **options: Any) -> tuple[MisclassifiedGallery, Path, Any]:
    gallery = MisclassifiedGallery(**options)
    logger = TensorBoardLogger(folder, "lightning_logs")
    classifier = make_classifier(data)
    trainer = make_trainer(folder, logger=logger, callbacks=[gallery])
    trainer.test(classifier, datamodule=data, verbose=False)
    return gallery, Path(logger.log_dir), classifier


def test_the_gallerys_ten_are_the_most_confident_errors_of_a_plain_forward_pass(tmp_path: Path) -> None:
    data = make_data(test=60)
    gallery, folder, classifier = run(tmp_path, data)
    with torch.no_grad():
        probabilities = classifier.eval()(torch.from_numpy(data.test.images)).softmax(1)
    confidence, predicted = probabilities.max(1)
    wrong = (predicted.numpy() != data.test.labels).nonzero()[0]
    expected = sorted(wrong, key=lambda index: -confidence[index].item())[:10]
    record = json.loads((folder / "gallery.json").read_text())
    assert record["errors"] == gallery.errors == len(wrong) > 10
    assert [entry["index"] for entry in record["shown"]] == expected
    for entry in record["shown"]:
        index = entry["index"]
        assert entry["predicted"] == data.classes[predicted[index]]
        assert entry["true"] == data.classes[data.test.labels[index]]
        assert entry["predicted_probability"] == pytest.approx(confidence[index].item(), abs=1e-5)
        assert entry["true_probability"] == pytest.approx(
            probabilities[index, data.test.labels[index]].item(), abs=1e-5
        )


def test_the_picture_goes_to_a_file_and_to_tensorboard(tmp_path: Path) -> None:
    _, folder, _ = run(tmp_path, make_data(test=60), count=4)
    with Image.open(folder / "gallery.png") as picture:
        assert picture.width > picture.height > 300  # two errors to a row, two rows
    events = EventAccumulator(str(folder)).Reload()
    assert events.Tags()["images"] == [f"gallery/{number:02}" for number in range(1, 5)]


def all_right(data: ImageDataModule, errors: int) -> ImageDataModule:
    """The test images relabelled with what the untrained network says, but for a few."""
    with torch.no_grad():
        predicted = make_classifier(data).eval()(torch.from_numpy(data.test.images)).argmax(1).numpy()
    predicted[:errors] = (predicted[:errors] + 1) % 3
    data.test = ImageSet(data.test.images, predicted, data.test.classes)
    return data


def test_fewer_than_ten_errors(tmp_path: Path) -> None:
    gallery, folder, _ = run(tmp_path, all_right(make_data(), errors=1))
    assert gallery.errors == 1
    assert len(json.loads((folder / "gallery.json").read_text())["shown"]) == 1
    assert (folder / "gallery.png").exists()


def test_no_errors(tmp_path: Path) -> None:
    gallery, folder, _ = run(tmp_path, all_right(make_data(), errors=0))
    assert gallery.errors == 0
    assert json.loads((folder / "gallery.json").read_text())["shown"] == []
    assert not (folder / "gallery.png").exists()
