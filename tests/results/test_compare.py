"""Runs are grouped by what differs in them, and every figure is SciPy's and NumPy's by hand."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from cifar_resnet.cli.compose import compose
from cifar_resnet.errors import InputError
from cifar_resnet.results.compare import Difference, Group, compare, subtract, summarize
from cifar_resnet.results.runs import Run, find_runs, group_runs


def make_run(folder: Path, accuracy: float = 0.9, seed: int = 0, resumed: int = 0, **config: Any) -> None:
    """Write what a finished run leaves."""
    folder.mkdir(parents=True)
    sections = {"seed": seed, "model": {"_target_": "a.CustomResNet", "width": 16}, "gallery": {"count": seed}}
    (folder / "config.yaml").write_text(yaml.safe_dump(sections | config))
    summary = {"test_accuracy": accuracy, "train_seconds": 10.0 + seed, "lr_max": 0.2, "seed": seed, "resumed": resumed}
    (folder / "summary.json").write_text(json.dumps(summary))


def optimizer(name: str) -> dict[str, Any]:
    return {"_target_": f"torch.optim.{name}", "weight_decay": 0.1}


def run(accuracy: float, seed: int = 0) -> Run:
    return Run(Path(), {}, accuracy, seconds=1.0, lr_max=0.1, seed=seed, resumed=0)


def group(name: str, accuracies: list[float], seeds: list[int] | None = None) -> Group:
    seeds = list(range(len(accuracies))) if seeds is None else seeds
    return summarize(name, [run(*each) for each in zip(accuracies, seeds, strict=True)])


SHARES = st.lists(st.floats(0.1, 1), min_size=2, max_size=8).filter(lambda values: np.std(values) > 1e-3)


@given(SHARES)
def test_mean_deviation_and_interval_are_those_of_student(accuracies: list[float]) -> None:
    found = group("all", accuracies)
    mean, error = np.mean(accuracies), stats.sem(accuracies)
    assert found.mean == pytest.approx(mean)
    assert found.deviation == pytest.approx(np.std(accuracies, ddof=1))
    low, high = stats.t.interval(0.95, len(accuracies) - 1, loc=mean, scale=error)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


@given(SHARES, SHARES)
def test_the_difference_of_other_seeds_is_that_of_welch(first: list[float], second: list[float]) -> None:
    found = subtract(group("a", first), group("b", second, [100 + seed for seed in range(len(second))]))
    variances = [np.var(each, ddof=1) / len(each) for each in (first, second)]
    freedom = sum(variances) ** 2 / sum(v**2 / (len(x) - 1) for v, x in zip(variances, (first, second), strict=True))
    mean, reach = np.mean(second) - np.mean(first), stats.t.ppf(0.975, freedom) * sum(variances) ** 0.5
    assert found is not None
    assert not found.paired
    assert (found.mean, found.low, found.high) == pytest.approx((mean, mean - reach, mean + reach))


@given(st.lists(st.tuples(st.floats(0.1, 1), st.floats(0.1, 1)), min_size=2, max_size=8))
def test_the_difference_of_the_same_seeds_is_paired_in_whatever_order_they_stand(
    pairs: list[tuple[float, float]],
) -> None:
    seeds = list(range(len(pairs)))
    first, second = zip(*pairs, strict=True)
    found = subtract(group("a", list(first), seeds), group("b", list(second)[::-1], seeds[::-1]))
    each = np.subtract(second, first)
    reach = stats.t.ppf(0.975, len(each) - 1) * stats.sem(each)
    assert found is not None
    assert found.paired
    assert (found.low, found.high) == pytest.approx((each.mean() - reach, each.mean() + reach), abs=1e-9)


def test_runs_that_are_all_alike_have_an_interval_without_width() -> None:
    assert (group("a", [0.5, 0.5]).low, group("a", [0.5, 0.5]).high) == (0.5, 0.5)
    found = subtract(group("a", [0.5, 0.5]), group("b", [0.75, 0.75]))
    assert found == Difference(0.25, 0.25, 0.25, paired=True)


def test_one_run_has_neither_deviation_nor_interval_nor_difference() -> None:
    assert (group("a", [0.5]).deviation, group("a", [0.5]).low) == (None, None)
    assert subtract(group("a", [0.5]), group("b", [0.6, 0.7])) is None


def test_groups_are_named_by_what_sets_them_apart(tmp_path: Path) -> None:
    for number, (name, width) in enumerate([("SGD", 16), ("SGD", 32), ("AdamW", 16), ("SGD", 16)]):
        model = {"_target_": "a.CustomResNet", "width": width} | ({"depth": 2} if width == 32 else {})
        make_run(tmp_path / f"version_{number}", seed=number, model=model, optimizer=optimizer(name))
    groups = group_runs(find_runs([str(tmp_path)])[0])
    assert {name: len(runs) for name, runs in groups.items()} == {
        "width=16 optimizer=SGD": 2,
        "width=32 optimizer=SGD": 1,
        "width=16 optimizer=AdamW": 1,
    }


def test_keys_of_one_name_are_named_whole_and_those_that_follow_others_not_at_all(tmp_path: Path) -> None:
    for number, (one, other) in enumerate([(0, 0), (0, 1), (1, 1)]):
        make_run(tmp_path / f"version_{number}", one={"size": one}, other={"size": other}, third=one)
    names = list(group_runs(find_runs([str(tmp_path)])[0]))
    assert names == ["one.size=0 other.size=0", "one.size=0 other.size=1", "one.size=1 other.size=1"]


def test_runs_that_differ_in_their_seeds_alone_are_one_group(tmp_path: Path) -> None:
    for number in range(2):
        make_run(tmp_path / f"version_{number}", seed=number, name=f"seed={number}")
    assert list(group_runs(find_runs([str(tmp_path)])[0])) == ["all"]


def test_what_does_not_count_is_listed_with_its_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (2, 10):
        make_run(tmp_path / f"version_{number}", seed=number, resumed=number)
    make_run(tmp_path / "version_3", ckpt="last.ckpt")
    make_run(tmp_path / "version_4")
    (tmp_path / "version_4" / "summary.json").unlink()
    make_run(tmp_path / "version_5")
    (tmp_path / "version_5" / "summary.json").rename(tmp_path / "version_5" / "checkpoints")
    make_run(tmp_path / "version_6")
    (tmp_path / "version_6" / "summary.json").write_text('{"test_accuracy": 0.')
    make_run(tmp_path / "version_7")
    (tmp_path / "version_7" / "summary.json").write_text("{}")
    make_run(tmp_path / "version_8")
    (tmp_path / "version_8" / "config.yaml").write_text("a: [")
    (found,) = compare(compose("compare", f"logs=[{tmp_path}]"))
    assert (found.runs, found.resumed, found.seeds) == (2, 2, [2, 10])
    printed = capsys.readouterr().out
    for number, reason in {
        3: "an evaluation",
        4: "nothing was trained",
        5: "unfinished: it goes on with ckpt_path=last",
        6: "damaged: summary.json: ",
        7: "damaged: summary.json has no test_accuracy",
        8: "damaged: config.yaml: ",
    }.items():
        assert f"  {tmp_path}/version_{number}: {reason}" in printed
    assert "2 (2 resumed)" in printed


@pytest.mark.parametrize("form", ["table", "markdown", "csv", "json"])
def test_every_format_has_the_figures(tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, (one, other) in enumerate([(0.85, 0.87), (0.86, 0.89), (0.84, 0.86)]):
        make_run(tmp_path / f"a/version_{seed}", one, seed, optimizer=optimizer("SGD"))
        make_run(tmp_path / f"b/version_{seed}", other, seed, optimizer=optimizer("AdamW"))
    compare(compose("compare", f"logs=[{tmp_path}/a,{tmp_path}/b]", f"format={form}", f"plot={tmp_path}/runs.png"))
    printed = capsys.readouterr()
    with Image.open(tmp_path / "runs.png") as picture:
        assert picture.format == "PNG"
    if form == "json":
        record = json.loads(printed.out)
        assert [each["mean"] for each in record["groups"]] == pytest.approx([0.85, 0.26 / 3 + 0.7866666], abs=1e-3)
        assert record["difference"]["paired"]
        return
    if form == "csv":
        rows = list(csv.DictReader(io.StringIO(printed.out)))
        assert [row["name"] for row in rows] == ["optimizer=SGD", "optimizer=AdamW"]
        assert float(rows[0]["mean"]) == pytest.approx(0.85)
    else:
        assert "85.00% ± 1.00" in printed.out
    said = "optimizer=AdamW less optimizer=SGD: +2.33 points (95 % interval +0.90 to +3.77; runs of one seed in pairs)"
    assert said in printed.out + printed.err


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        (["nowhere"], "logs=nowhere: there is no such folder"),
        (["."], "logs=.: no run there is at its end"),
        ([".", "plot=runs.jpg"], "plot=runs.jpg: give the name of a file that ends in .png"),
    ],
)
def test_what_cannot_be_compared_is_said_in_a_line(
    typed: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as refused:
        compare(compose("compare", f"logs=[{typed[0]}]", *typed[1:]))
    assert str(refused.value) == line


def test_the_command_takes_folders_as_they_are_and_waits_for_no_torch(tmp_path: Path) -> None:
    make_run(tmp_path / "version_0")
    script = Path(__file__).resolve().parents[2] / "scripts" / "compare.py"
    command = [sys.executable, "-X", "importtime", script, str(tmp_path), "format=json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert [each["runs"] for each in json.loads(done.stdout)["groups"]] == [1]
    assert " torch\n" not in done.stderr
    assert "loading" not in done.stderr
