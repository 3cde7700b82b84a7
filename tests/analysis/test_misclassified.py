"""The table of errors agrees with scikit-learn, whatever the names; the orders are what they say."""

import csv
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, log_loss

from cifar_resnet.analysis.labels import LabelCheck
from cifar_resnet.analysis.misclassified import COLUMNS, Misclassified, choose, find_misclassified, write_errors_table

FEW = settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
DRAWN = {"seed": st.integers(0, 10_000), "size": st.integers(1, 60), "classes": st.integers(2, 6)}
ORDERS = ("varied", "confident", "loss", "first", "random")


def drawn(seed: int, size: int, classes: int) -> tuple[np.ndarray, np.ndarray, list[Misclassified]]:
    """Random predictions, labels and their errors."""
    rng = np.random.default_rng(seed)
    probabilities, labels = rng.dirichlet(np.ones(classes), size), rng.integers(0, classes, size)
    losses = -np.log(probabilities[np.arange(size), labels])
    return probabilities, labels, find_misclassified(probabilities, losses, labels)


def checks(errors: list[Misclassified], name: str = "a") -> list[LabelCheck]:
    return [LabelCheck(len(errors) - place, (name, "b")) for place in range(len(errors))]


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@FEW
@given(**DRAWN)
def test_the_table_gives_scikit_learns_figures(tmp_path: Path, seed: int, size: int, classes: int) -> None:
    probabilities, labels, errors = drawn(seed, size, classes)
    names = [f"class {label}" for label in range(classes)]
    write_errors_table(errors, checks(errors), names, tmp_path / "errors.csv")
    rows = read(tmp_path / "errors.csv")
    expected = confusion_matrix(labels, probabilities.argmax(1), labels=range(classes))
    pairs = Counter((row["true"], row["predicted"]) for row in rows)
    for true, predicted in np.ndindex(classes, classes):
        wrong = expected[true, predicted] if true != predicted else 0
        assert pairs[names[true], names[predicted]] == wrong
    for row in rows:
        index = int(row["index"])
        given_ = probabilities[[index]]
        assert float(row["loss"]) == pytest.approx(log_loss(labels[[index]], given_, labels=range(classes)), rel=1e-5)
        assert float(row["predicted_probability"]) == pytest.approx(given_.max(), rel=1e-5)
        assert float(row["true_probability"]) == pytest.approx(given_[0, labels[index]], rel=1e-5)
    assert [int(row["rank"]) for row in rows] == list(range(1, len(rows) + 1))
    assert [int(row["label_rank"]) for row in rows] == list(range(len(rows), 0, -1))
    confidences = [float(row["predicted_probability"]) for row in rows]
    assert confidences == sorted(confidences, reverse=True)


NAMES = st.text(st.characters(), min_size=1)  # lone surrogates too: undecodable bytes of a file's name


@FEW
@given(file=NAMES, true=NAMES, predicted=NAMES)
def test_any_name_is_one_cell_that_no_spreadsheet_runs(tmp_path: Path, file: str, true: str, predicted: str) -> None:
    errors = find_misclassified(np.array([[0.2, 0.8]]), np.array([1.6]), np.array([0]), [file])
    write_errors_table(errors, checks(errors, file), [true, predicted], tmp_path / "errors.csv")
    assert len((tmp_path / "errors.csv").read_bytes().splitlines()) == 2
    (row,) = read(tmp_path / "errors.csv")
    assert list(row) == list(COLUMNS)
    for column, name in (("file", file), ("true", true), ("predicted", predicted), ("neighbours", f"{file}; b")):
        assert row[column][0] not in "=+-@\t\r\n"
        if name.isprintable():
            assert row[column].removeprefix("'") == name.removeprefix("'")


@pytest.mark.parametrize("name", ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(1)", "＝1"])
def test_a_name_like_a_formula_is_marked_as_text(tmp_path: Path, name: str) -> None:
    errors = find_misclassified(np.array([[0.2, 0.8]]), np.array([1.6]), np.array([0]), [name])
    write_errors_table(errors, checks(errors), [name, "plain"], tmp_path / "errors.csv")
    (row,) = read(tmp_path / "errors.csv")
    assert (row["file"], row["true"], row["predicted"]) == (f"'{name}", f"'{name}", "plain")


def test_images_without_files_leave_their_cell_empty(tmp_path: Path) -> None:
    errors = find_misclassified(np.array([[0.2, 0.8]]), np.array([1.6]), np.array([0]))
    write_errors_table(errors, [LabelCheck(1, ())], ["cat", "dog"], tmp_path / "errors.csv")
    assert read(tmp_path / "errors.csv") == [
        {"rank": "1", "index": "0", "file": "", "true": "cat", "predicted": "dog", "true_probability": "0.2",
         "predicted_probability": "0.8", "loss": "1.6", "label_rank": "1", "neighbours": ""}
    ]  # fmt: skip


@given(count=st.integers(1, 20), **DRAWN)
def test_every_order_is_what_it_says(seed: int, size: int, classes: int, count: int) -> None:
    probabilities, labels, errors = drawn(seed, size, classes)
    assert {error.index for error in errors} == set(np.flatnonzero(probabilities.argmax(1) != labels))
    orders: dict[str, list[Any]] = {order: choose(errors, count, order, seed) for order in ORDERS}
    for chosen in orders.values():
        assert len({error.index for error in chosen}) == len(chosen) == min(count, len(errors))
    assert orders["confident"] == errors[:count]
    losses = sorted((error.loss for error in errors), reverse=True)
    assert [error.loss for error in orders["loss"]] == losses[:count]
    assert [error.index for error in orders["first"]] == sorted(error.index for error in errors)[:count]
    assert orders["random"] == choose(errors, count, "random", seed)


@given(count=st.integers(1, 20), **DRAWN)
def test_varied_takes_the_most_confident_of_each_confused_pair_in_turn(
    seed: int, size: int, classes: int, count: int
) -> None:
    *_, errors = drawn(seed, size, classes)
    pairs: dict[tuple[int, int], list[Misclassified]] = {}
    for error in errors:
        pairs.setdefault((error.true, error.predicted), []).append(error)
    expected: list[Misclassified] = []
    while any(pairs.values()):
        turn = [left.pop(0) for left in pairs.values() if left]
        expected += sorted(turn, key=lambda error: error.rank)
    assert choose(errors, count, "varied") == expected[:count]
