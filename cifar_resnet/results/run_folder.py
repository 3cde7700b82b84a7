"""What a run leaves: its folder, its summary, and the same in the terminal."""

import copy
import itertools
import json
import shutil
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, Self

import yaml
from filelock import FileLock, Timeout
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from rich import get_console
from rich.table import Table

from cifar_resnet.analysis.metrics import Evaluation
from cifar_resnet.analysis.remarks import remark_far_ahead, remark_one_class
from cifar_resnet.callbacks.evaluator import Evaluator
from cifar_resnet.callbacks.history import History
from cifar_resnet.cli.schema import Evaluate, Train
from cifar_resnet.data.datamodule import ImageDataModule
from cifar_resnet.errors import InputError, one_line
from cifar_resnet.lr.search import LrSearch, write_lr_search
from cifar_resnet.results.machine import device_name, versions
from cifar_resnet.results.report import write_report
from cifar_resnet.results.unfinished import CONFIG, LOCK, busy
from cifar_resnet.training.checkpoint_io import remove_leftovers
from cifar_resnet.training.classifier import ImageClassifier


@dataclass(frozen=True)
class TrainResult:
    """What came out of a training.

    Attributes:
        accuracy: share of the test images that are classified correctly, 0 to 1.
        lr_min, lr_max: the bounds of the One Cycle schedule, given or found.
        classifier: the trained network in evaluation mode; raw pixels in, logits out.
        evaluation: every figure of the test.
        summary: what ``summary.json`` holds.
        folder: of the run; None beside the first device, and under ``trainer.fast_dev_run``.
    """

    accuracy: float
    lr_min: float
    lr_max: float
    classifier: ImageClassifier
    evaluation: Evaluation
    summary: dict[str, Any]
    folder: Path | None


class RunFolder:
    """The folder of a run, which is its own as long as it lasts; nothing is written beside the first device.

    Nor is anything under ``trainer.fast_dev_run``. In a ``with`` block: a run that an `InputError` ends leaves no
    folder.

    Args:
        config: what is run.
        trainer: what runs it; from here on it logs to the folder.
        unfinished: the folder of an earlier run that goes on; None claims the next ``version_N``.
        step: the optimizer step it goes on from; TensorBoard forgets what was logged behind it.
    """

    def __init__(self, config: Train | Evaluate, trainer: Trainer, unfinished: Path | None = None, step: int = 0):
        self.config = config
        self.trainer = trainer
        self.path: Path | None = None
        self.logger: TensorBoardLogger | None = None
        self.chosen = config.model_dump(by_alias=True, exclude_unset=True)
        self._is_new = unfinished is None
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        logs = Path(config.trainer.default_root_dir, "lightning_logs")
        try:
            self.path, self._lock = _lock_folder(unfinished) if unfinished else _claim_version(logs)
        except Timeout as error:
            raise busy(unfinished) from error
        self.logger = trainer.logger = TensorBoardLogger(
            logs.parent,
            logs.name,
            version=int(self.path.name.removeprefix("version_")),
            default_hp_metric=False,
            purge_step=None if self._is_new else step,
        )
        remove_leftovers(self.path / "checkpoints")
        if self._is_new:
            _replace(self.path / CONFIG, yaml.safe_dump(self.chosen, sort_keys=False))
        print_once(f"run folder: {self.path}" + ("" if self._is_new else f", goes on after step {step}"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.path is None:
            return
        self._lock.release()
        if self._is_new and kind is not None and issubclass(kind, InputError):
            shutil.rmtree(self.path)
            with suppress(OSError):  # it has others
                self.path.parent.rmdir()

    def record_search(self, found: LrSearch | None, data: ImageDataModule) -> None:
        """Write and log what the search saw of the data, where there was one."""
        if found is None or self.logger is None or self.path is None:
            return
        facts = {
            "optimizer": self.chosen["optimizer"],
            "batch_size": data.batch_size_in_effect,
            "precision": self.trainer.precision,
            "seed": self.config.seed,
            "versions": versions(),
        }
        self.logger.experiment.add_figure("lr_search", write_lr_search(found, facts, self.path))

    def log_graph(self, classifier: ImageClassifier) -> None:
        """Log the network's graph; a copy is traced, so that the network stays as it is."""
        if self.logger is None:
            return
        network, pixels = copy.deepcopy(classifier.network), classifier.normalize(classifier.example_input_array)
        try:
            with redirect_stdout(StringIO()):  # TensorBoard announces a failure before it raises it
                self.logger.experiment.add_graph(network, pixels)
        except Exception as error:  # tracing fails in as many ways as there are networks
            print_once(f"TensorBoard gets no graph: the network cannot be traced ({one_line(error)[:100]})")

    def finish(
        self, classifier: ImageClassifier, data: ImageDataModule, history: History, evaluator: Evaluator
    ) -> TrainResult:
        """Show the summary; write ``summary.json`` and ``report.html``; log the hyperparameters with the result."""
        evaluation = evaluator.evaluation
        assert evaluation is not None
        assert isinstance(self.config, Train)
        bounds = {name: classifier.hparams[name] for name in ("lr_min", "lr_max")}
        train_accuracy = history.epochs[-1].train_accuracy if history.epochs else None
        summary = {
            "network": self.config.model.title,
            "test_accuracy": evaluation.accuracy.value,
            "balanced_accuracy": evaluation.balanced_accuracy,
            "macro_f1": evaluation.macro_f1,
            "train_accuracy": train_accuracy,
            "epochs": self.trainer.current_epoch,
            "train_seconds": history.seconds,
            "images_per_second": history.images / history.seconds if history.seconds else None,
            "resumed": history.resumed,
            **bounds,
            "batch_size": data.batch_size_in_effect,
            "parameters": sum(parameter.numel() for parameter in classifier.network.parameters()),
            "seed": self.config.seed,
            "misclassified": evaluation.errors,
            "device": device_name(self.trainer.strategy.root_device),
            "precision": self.trainer.precision,
            "remarks": remark_one_class(evaluation) + remark_far_ahead(train_accuracy, evaluation),
            "versions": versions(),
        }
        if self.logger is not None and self.path is not None:
            self._record(self.logger, self.path, summary, evaluation)
        self.point_to_it()
        accuracy = evaluation.accuracy.value
        return TrainResult(
            accuracy, **bounds, classifier=classifier.eval(), evaluation=evaluation, summary=summary, folder=self.path
        )

    def _record(self, logger: TensorBoardLogger, folder: Path, summary: dict[str, Any], evaluation: Evaluation) -> None:
        hidden = {"remarks", "versions"} | (set() if evaluation.uneven else {"balanced_accuracy", "macro_f1"})
        table = Table(show_header=False, box=None, pad_edge=False)
        for key, value in summary.items():
            if key not in hidden:
                table.add_row(key.replace("_", " "), f"{value:.4g}" if isinstance(value, float) else str(value))
        get_console().print(table)
        for remark in summary["remarks"]:
            print_once(f"note: {remark}")
        metrics = {f"hp/{key}": summary[key] for key in ("test_accuracy", "train_seconds")}
        found = {key: summary[key] for key in ("lr_min", "lr_max")}
        # At the last step, so that TensorBoard forgets them where a run goes on that was killed after this.
        logger.log_hyperparams(self.chosen | {"found": found}, metrics, step=self.trainer.global_step)
        logger.finalize("success")
        write_report(folder, summary)
        _replace(folder / "summary.json", json.dumps(summary, indent=1) + "\n")  # a run that has it is at its end
        if summary["misclassified"] == 0:
            print_once("no test image was misclassified: the gallery is empty")

    def point_to_it(self) -> None:
        """Say where to look at what the run left."""
        if self.path is not None:
            report = self.path / "report.html"
            pictures = f"open {report}" if report.exists() else f"the pictures in {self.path}"
            print_once(f"look at it: {pictures}      or tensorboard --logdir {self.path.parent}")


@rank_zero_only
def print_once(line: str) -> None:
    """Print a line, once however many devices there are."""
    get_console().print(line, highlight=False, soft_wrap=True)


def _replace(path: Path, text: str) -> None:
    """Write a file under another name first: whoever finds it finds all of it."""
    draft = path.with_name(f".{path.name}")
    draft.write_text(text)
    draft.replace(path)


def _claim_version(logs: Path) -> tuple[Path, FileLock]:
    """Make and lock the next ``version_N``; `mkdir` and the lock let one process alone have it.

    The last one is taken where a run was killed before it had written down there what it is.
    """
    logs.mkdir(parents=True, exist_ok=True)
    numbers = (path.name.removeprefix("version_") for path in logs.glob("version_*"))
    last = max(map(int, filter(str.isdecimal, numbers)), default=-1)
    for number in itertools.count(max(last, 0)):
        path = logs / f"version_{number}"
        if number > last:
            with suppress(FileExistsError):
                path.mkdir()
        if _is_unused(path):
            with suppress(Timeout, PermissionError):
                _, lock = _lock_folder(path)
                if _is_unused(path):
                    return path, lock
                lock.release()
    raise AssertionError("there is always a next number")


def _lock_folder(path: Path) -> tuple[Path, FileLock]:
    lock = FileLock(path / LOCK)
    lock.acquire(blocking=False)
    return path, lock


def _is_unused(folder: Path) -> bool:
    try:
        return {file.name for file in folder.iterdir()} <= {LOCK, f".{CONFIG}"}
    except OSError:  # no folder, or not ours
        return False
