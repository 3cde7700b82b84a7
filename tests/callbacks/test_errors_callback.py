"""A test run leaves its errors as a table and as a page: all of them, with the maps that the gallery has."""

import base64
import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_classifier, make_data, make_trainer

from cifar_resnet.analysis.gradcam import explain_images
from cifar_resnet.analysis.labels import check_labels
from cifar_resnet.callbacks.errors_page import ErrorsPage
from cifar_resnet.callbacks.outputs import OutputCollector
from cifar_resnet.data.datamodule import ImageDataModule
from cifar_resnet.training.classifier import ImageClassifier


def run(
    folder: Path, data: ImageDataModule, model: str | None = None, flip: bool = False, **options: Any
) -> ImageClassifier:
    """Test a classifier with the page, and return it."""
    outputs = OutputCollector()
    classifier = make_classifier(data, flip=flip, **({"model": {"_target_": model}} if model else {}))
    trainer = make_trainer(folder, callbacks=[ErrorsPage(outputs, **options), outputs])
    trainer.test(classifier, datamodule=data, verbose=False)
    return classifier


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "errors.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def page(folder: Path) -> dict[str, Any]:
    found = re.search(r'id="data">(.*?)</script>', (folder / "errors.html").read_text(), re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_table_and_page_have_every_error_of_a_plain_forward_pass(tmp_path: Path) -> None:
    data = make_data(test=60)
    data.test = replace(data.test, files=tuple(f"test/{index}.png" for index in range(60)))
    classifier = run(tmp_path, data)
    with torch.no_grad():
        logits = classifier.eval()(torch.from_numpy(data.test.images))
    probabilities, true = logits.softmax(1).numpy(), data.test.labels
    losses = torch.nn.functional.cross_entropy(logits, torch.from_numpy(true), reduction="none").numpy()
    rows = table(tmp_path)
    predicted = probabilities.argmax(1)
    assert {int(row["index"]) for row in rows} == set(np.flatnonzero(predicted != true))
    for row in rows:
        index = int(row["index"])
        assert row["file"] == f"test/{index}.png"
        assert (row["true"], row["predicted"]) == (data.classes[true[index]], data.classes[predicted[index]])
        assert float(row["true_probability"]) == pytest.approx(probabilities[index, true[index]], abs=1e-5)
        assert float(row["predicted_probability"]) == pytest.approx(probabilities[index].max(), abs=1e-5)
        assert float(row["loss"]) == pytest.approx(losses[index], abs=1e-4)
    shown = page(tmp_path)
    assert shown["rows"]["index"] == [int(row["index"]) for row in rows]
    assert shown["rows"]["file"] == [row["file"] for row in rows]
    assert np.trace(shown["confusion"]) == 60 - len(rows)
    assert np.sum(shown["confusion"]) == 60


def test_maps_are_those_of_both_classes(tmp_path: Path) -> None:
    data = make_data(test=60)
    classifier = run(tmp_path, data, layer="layer3", method="hirescam")
    shown = page(tmp_path)
    images = data.test.images[shown["rows"]["index"]]
    targets = [shown["rows"][part] for part in ("predicted", "true")]
    maps = explain_images(classifier, images, targets, "layer3", "hirescam", enlarge=False).maps
    assert maps is not None
    for part, expected in zip(("predicted", "true"), maps, strict=True):
        stored = np.frombuffer(base64.b64decode(shown["maps"][part]), np.uint8).reshape(expected.shape)
        np.testing.assert_allclose(stored / 255, expected, atol=0.01)
    assert (shown["maps"]["layer"], shown["reason"]) == ("layer3", None)


def test_a_network_that_cannot_be_explained_has_a_page_without_maps(tmp_path: Path) -> None:
    run(tmp_path, make_data(), model="test_any_network.Perceptron")
    assert page(tmp_path)["maps"] is None
    assert page(tmp_path)["reason"] == "no stage of the network has a feature map"


def test_the_limit_keeps_the_most_confident_on_the_page_and_all_in_the_table(tmp_path: Path) -> None:
    run(tmp_path, make_data(test=60), limit=4)
    indices = [int(row["index"]) for row in table(tmp_path)]
    assert page(tmp_path)["rows"]["index"] == indices[:4]
    assert len(indices) > 4


def test_a_limit_of_zero_leaves_the_table_alone(tmp_path: Path) -> None:
    run(tmp_path, make_data(test=60), limit=0)
    assert len(table(tmp_path)) > 4
    assert not (tmp_path / "errors.html").exists()


def test_without_errors_there_is_a_table_without_rows_and_no_page(tmp_path: Path) -> None:
    data = make_data()
    with torch.no_grad():
        right = make_classifier(data).eval()(torch.from_numpy(data.test.images)).argmax(1).numpy()
    data.test = replace(data.test, labels=right)
    run(tmp_path, data)
    assert table(tmp_path) == []
    assert not (tmp_path / "errors.html").exists()


def test_labels_are_ranked_and_named_beside_their_nearest_training_images(tmp_path: Path) -> None:
    data = make_data(test=60)
    assert data.train is not None
    data.train = replace(data.train, files=tuple(f"train/{index}.png" for index in range(len(data.train))))
    classifier = run(tmp_path, data, flip=True)
    rows = table(tmp_path)
    images, labels = (
        data.test.images[[int(row["index"]) for row in rows]],
        [data.classes.index(row["true"]) for row in rows],
    )
    checks = check_labels(classifier, images, labels, data.train)
    assert [int(row["label_rank"]) for row in rows] == [check.rank for check in checks]
    assert [row["neighbours"] for row in rows] == ["; ".join(check.neighbours) for check in checks]
    assert page(tmp_path)["rows"]["neighbours"] == [list(check.neighbours) for check in checks]


def test_without_the_training_images_labels_are_ranked_without_neighbours(tmp_path: Path) -> None:
    data = make_data(test=60)
    data.train = None
    run(tmp_path, data)
    assert sorted(int(row["label_rank"]) for row in table(tmp_path)) == list(range(1, len(table(tmp_path)) + 1))
    assert {row["neighbours"] for row in table(tmp_path)} == {""}
    assert "neighbours" not in page(tmp_path)["rows"]
