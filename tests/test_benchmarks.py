"""The benchmarks measure the project as it is; a name that went away is found here, not at the next measurement."""

import runpy
import sys
from pathlib import Path

import pytest

from cifar_resnet.cli.compose import compose
from cifar_resnet.cli.overrides import CONFIGS

BENCHMARKS = CONFIGS.parent / "benchmarks"
SHARED = {"measure": "report", "child": "Child", "record": "Record"}


@pytest.mark.parametrize("file", sorted(BENCHMARKS.glob("*.py")), ids=lambda file: file.stem)
def test_every_benchmark_finds_what_it_imports(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    names = runpy.run_path(str(file))
    assert callable(names[SHARED.get(file.stem, "main")])


def test_a_training_that_a_benchmark_measures_is_that_of_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    monkeypatch.setattr(sys, "argv", ["scaling.py", "--images", "600", "--width", "1", "--repeats", "1"])
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(BENCHMARKS / "scaling.py"), run_name="__main__")
    assert list(tmp_path.iterdir()) == []


def test_the_last_row_of_the_recipes_is_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    recipes = runpy.run_path(str(BENCHMARKS / "recipes.py"))
    rows = [compose("train", *recipes["overrides"](row, 64, 40)) for row in recipes["LADDER"]]
    assert rows[-1] == compose("train", "experiment=record")
    assert len({str(row) for row in rows}) == len(rows)
    page = compose("train", *recipes["overrides"]("page", 64, 24))
    assert page == compose("train", "experiment=page")
