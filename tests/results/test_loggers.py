"""Runs in CSV, MLflow and W&B beside TensorBoard: what arrives there, read back as their users would read it."""

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch.loggers import MLFlowLogger

from cifar_resnet import find_lr, train
from cifar_resnet.cli.compose import compose
from cifar_resnet.errors import InputError, RunError
from cifar_resnet.results.loggers import close_logger, open_logger
from cifar_resnet.results.record import TrainResult

SMALL = [
    "data=digits",
    "data.train_size=128",
    "model.width=2",
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    "trainer.max_epochs=2",
    "trainer.log_every_n_steps=1",
    "schedule.peak_epoch=1",
    "schedule.lr_min=0.01",
    "schedule.lr_max=0.3",
    "gallery.count=1",
    "errors.limit=0",
]
PICTURES = {"batch", "curves", "confusion_matrix", "reliability", "gallery"}


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainResult]:
    """A run that is logged everywhere, with nothing sent anywhere."""
    for extra in ("mlflow", "wandb"):
        pytest.importorskip(extra, reason=f"the extra {extra} is not installed")
    root = tmp_path_factory.mktemp("root")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "")  # so that what the run sets is undone
        for variable in ("MLFLOW_ALLOW_FILE_STORE", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
            patch.delenv(variable, raising=False)
        for variable in ("WANDB_PROJECT", "WANDB_DIR"):
            patch.delenv(variable, raising=False)
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        for variable in ("CONFIG", "CACHE", "DATA"):
            patch.setenv(f"WANDB_{variable}_DIR", str(root / variable.lower()))
        yield train(*SMALL, "name=mine", "loggers=[csv,mlflow,wandb]", f"trainer.default_root_dir={root}")


def root_of(result: TrainResult) -> Path:
    assert result.folder is not None
    return result.folder.parents[2]


def test_csv_has_every_scalar_in_the_folder_of_the_run(result: TrainResult) -> None:
    assert result.folder is not None
    rows = list(csv.DictReader((result.folder / "metrics.csv").read_text().splitlines()))
    assert len([row for row in rows if row["train/loss"]]) == 2
    assert len([row for row in rows if row["step/loss"]]) == 4
    (accuracy,) = (row["result/test_accuracy"] for row in rows if row["result/test_accuracy"])
    assert float(accuracy) == result.accuracy
    assert yaml.safe_load((result.folder / "hparams.yaml").read_text())["lr_max"] == 0.3
    assert (result.folder / "config.yaml").exists()
    assert [path.name for path in result.folder.parent.iterdir()] == ["version_0"]


def test_mlflow_has_parameters_scalars_and_pictures(result: TrainResult) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient((root_of(result) / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("cifar-resnet")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("mine/version_0", "FINISHED")
    assert len(run.data.params) == 10
    assert (run.data.params["epochs"], run.data.params["lr_max"]) == ("2", "0.3")
    assert run.data.metrics["result/test_accuracy"] == result.accuracy
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "train/loss")] == [1, 3]
    pictures = {Path(file.path).stem for file in client.list_artifacts(run.info.run_id, "pictures")}
    assert pictures == PICTURES


def test_wandb_has_configuration_scalars_and_pictures(result: TrainResult) -> None:
    import wandb

    (folder,) = (root_of(result) / "wandb").glob("offline-run-*")
    (file,) = folder.glob("*.wandb")
    seen = read_offline(file)
    assert (seen["project"], seen["name"]) == ("cifar-resnet", "mine/version_0")
    assert seen["config"]["lr_max"] == 0.3
    assert seen["summary"]["result/test_accuracy"] == result.accuracy
    assert len(seen["history"]["train/loss"]) == 2
    pictures = {path.stem.rsplit("_", 2)[0] for path in (folder / "files" / "media" / "images").rglob("*.png")}
    assert pictures == PICTURES
    assert wandb.run is None  # the next run of this process is one of its own


def read_offline(file: Path) -> dict[str, Any]:
    """What an offline run keeps to be sent later: records in blocks, as LevelDB's log has them, behind a header."""
    from wandb.proto.wandb_internal_pb2 import Record

    seen: dict[str, Any] = {"config": {}, "summary": {}, "history": {}}
    data, place, parts = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if (left := 32_768 - place % 32_768) < 7:
            place += left
            continue
        end, kind = place + 7 + int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        parts, place = parts + data[place + 7 : end], end
        if kind not in (1, 4):  # neither whole nor the last part
            continue
        record, parts = Record.FromString(parts), b""
        if record.HasField("run"):
            seen |= {"project": record.run.project, "name": record.run.display_name}
        for update in record.config.update:
            seen["config"][update.key] = json.loads(update.value_json)
        for update in record.summary.update:
            seen["summary"]["/".join(update.nested_key)] = json.loads(update.value_json)
        for item in record.history.item:
            seen["history"].setdefault("/".join(item.nested_key), []).append(json.loads(item.value_json))
    return seen


def test_a_csv_file_that_goes_on_keeps_what_was_before_the_step(tmp_path: Path) -> None:
    config = compose("train", *SMALL, "loggers=[csv]")
    logger = open_logger("csv", config, tmp_path, 0)
    for step in range(4):
        logger.log_metrics({"loss": step / 2}, step)
    close_logger(logger, tmp_path, succeeded=False)
    logger = open_logger("csv", config, tmp_path, 2)
    logger.log_metrics({"loss": 7.0, "new": 1.0}, 2)
    close_logger(logger, tmp_path, succeeded=True)
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    assert [(row["step"], row["loss"], row["new"]) for row in rows] == [
        ("0", "0.0", ""),
        ("1", "0.5", ""),
        ("2", "7.0", "1.0"),
    ]


def test_the_picture_of_a_search_arrives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    from mlflow.tracking import MlflowClient

    uri = (tmp_path / "elsewhere").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "searches")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    searched = [given for given in SMALL if not given.startswith("schedule.lr_")]
    find_lr(*searched, "lr_search.num_training=50", "loggers=[mlflow]", f"trainer.default_root_dir={tmp_path}")
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("searches")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert [file.path for file in client.list_artifacts(run.info.run_id, "pictures")] == ["pictures/lr_find.png"]


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_missing_extra_is_named_before_anything_is_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=rf"pip install 'cifar-resnet\[{name}\]'"):
        train(*SMALL, f"loggers=[{name}]", f"trainer.default_root_dir={tmp_path}")
    assert not list(tmp_path.iterdir())


def test_a_logger_that_cannot_begin_leaves_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere://at.all")
    with pytest.raises(InputError, match=r"loggers=\[mlflow\] cannot begin: .*nowhere"):
        train(*SMALL, "loggers=[csv,mlflow]", f"trainer.default_root_dir={tmp_path}")
    assert not list(tmp_path.iterdir())


def test_a_run_goes_on_after_a_server_was_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    from mlflow.exceptions import MlflowException

    def lose(logger: MLFlowLogger, metrics: dict[str, float], step: int | None = None) -> None:
        if step and step > 2:
            raise MlflowException("API request failed:\nconnection refused")

    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    with monkeypatch.context() as patch:
        patch.setattr(MLFlowLogger, "log_metrics", lose)
        with pytest.raises(RunError, match=r"^loggers=\[mlflow\] has failed: API .*connection refused: see"):
            train(*SMALL, "loggers=[mlflow]", f"trainer.default_root_dir={tmp_path}")
    result = train(*SMALL, "loggers=[mlflow]", "ckpt_path=last", f"trainer.default_root_dir={tmp_path}")
    assert [path.name for path in (tmp_path / "lightning_logs").iterdir()] == ["version_0"]
    assert result.folder is not None
    assert json.loads((result.folder / "summary.json").read_text())["resumed"] == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("[csv,excel]", r"loggers=excel: expected a list of csv \| mlflow \| wandb"),
        ("[csv,csv]", "loggers: csv is named more than once"),
    ],
)
def test_an_unknown_or_repeated_one_is_refused(given: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        compose("train", f"loggers={given}")
