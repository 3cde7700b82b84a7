"""What is written down of a run in its folder and told to TensorBoard: the search, the network, the result."""

import json
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import yaml
from rich import get_console
from rich.table import Table

from cifar_resnet.analysis.metrics import Evaluation, print_evaluation
from cifar_resnet.analysis.remarks import remark_far_ahead, remark_one_class
from cifar_resnet.callbacks.history import History
from cifar_resnet.callbacks.pictures import write_picture
from cifar_resnet.cli.schema import Evaluate, Train
from cifar_resnet.cli.sections import Model
from cifar_resnet.data.datamodule import ImageDataModule
from cifar_resnet.errors import one_line
from cifar_resnet.lr.figure import draw_lr_search
from cifar_resnet.lr.search import LrSearch, write_lr_search
from cifar_resnet.results.layers import COLUMNS, count_parameters, list_layers
from cifar_resnet.results.machine import device_name, versions
from cifar_resnet.results.report import write_report
from cifar_resnet.results.run_folder import RunFolder, print_once
from cifar_resnet.training.classifier import ImageClassifier


@dataclass(frozen=True)
class TrainResult:
    """What came out of a training.

    Attributes:
        accuracy: share of the test images that are classified correctly, 0 to 1.
        val_accuracy: that of the images held out of training, after the last epoch; None where there were none.
        lr_min, lr_max: the bounds of the One Cycle schedule, given or found.
        classifier: the trained network in evaluation mode; raw pixels in, logits out.
        evaluation: every figure of the test.
        summary: what ``summary.json`` holds.
        folder: of the run; None beside the first device, and under ``trainer.fast_dev_run``.
    """

    accuracy: float
    val_accuracy: float | None
    lr_min: float
    lr_max: float
    classifier: ImageClassifier
    evaluation: Evaluation
    summary: dict[str, Any]
    folder: Path | None


def record_search(run: RunFolder, found: LrSearch | None, data: ImageDataModule) -> None:
    """Write and log what the search saw of the data, where there was one."""
    if found is None or run.logger is None or run.path is None:
        return
    facts = {
        "optimizer": run.chosen["optimizer"],
        "batch_size": data.batch_size_in_effect,
        "precision": run.trainer.precision,
        "seed": run.config.seed,
        "versions": versions(),
    }
    write_lr_search(found, facts, run.path)
    write_picture(draw_lr_search(found.bounds, found.sweeps), run.path / "lr_find.png", run.logger, "lr_search")


def record_network(run: RunFolder, config: Train, classifier: ImageClassifier, data: ImageDataModule) -> None:
    """Log what is trained, and how: graph, layers, configuration and hyperparameters."""
    if run.logger is None:
        return
    run.logger.hparams = compared = hyperparameters(config, classifier, data, run)
    for other in run.others:
        other.log_hyperparams(compared)
    run.logger.log_code("configuration", yaml.safe_dump(run.chosen, sort_keys=False))
    run.logger.log_table("layers", COLUMNS, map(astuple, list_layers(classifier)))
    try:
        run.logger.log_network(classifier)
    except Exception as error:  # tracing fails in as many ways as there are networks
        print_once(f"TensorBoard gets no graph: the network cannot be traced ({one_line(error)[:100]})")


def hyperparameters(
    config: Train, classifier: ImageClassifier, data: ImageDataModule, run: RunFolder
) -> dict[str, Any]:
    """Return the ten that matter most where runs are compared."""
    return {
        "data": config.data.title,
        "network": config.model.title,
        "optimizer": config.optimizer.target.rpartition(".")[2],
        "epochs": config.trainer.max_epochs,
        "batch_size": data.batch_size_in_effect,
        "peak_epoch": config.schedule.peak_epoch,
        "lr_min": classifier.hparams["lr_min"],
        "lr_max": classifier.hparams["lr_max"],
        "precision": run.trainer.precision,
        "seed": config.seed,
    }


def record_result(
    run: RunFolder,
    config: Train,
    classifier: ImageClassifier,
    data: ImageDataModule,
    history: History,
    evaluation: Evaluation,
) -> TrainResult:
    """Show the summary; write ``summary.json`` and ``report.html``; log the hyperparameters with the result."""
    compared = hyperparameters(config, classifier, data, run)
    train_accuracy = history.epochs[-1].train_accuracy if history.epochs else None
    summary = {
        "test_accuracy": evaluation.accuracy.value,
        "balanced_accuracy": evaluation.balanced_accuracy,
        "macro_f1": evaluation.macro_f1,
        "train_accuracy": train_accuracy,
        "train_seconds": history.seconds,
        "images_per_second": history.images / history.seconds if history.seconds else None,
        "resumed": history.resumed,
        **compared,
        "epochs": run.trainer.current_epoch,
        "parameters": count_parameters(classifier),
        "misclassified": evaluation.errors,
        "device": device_name(run.trainer.strategy.root_device),
        "remarks": remark_one_class(evaluation) + remark_far_ahead(train_accuracy, evaluation),
        "versions": versions(),
    }
    if run.logger is not None and run.path is not None:
        hidden = {"remarks", "versions"} | (set() if evaluation.uneven else {"balanced_accuracy", "macro_f1"})
        shown = {key.replace("_", " "): _text(value) for key, value in summary.items() if key not in hidden}
        run.logger.log_table("result", ("", ""), shown.items())
        _print(shown, summary["remarks"])
        metrics = {f"result/{key}": summary[key] for key in ("test_accuracy", "train_seconds")}
        # At the last step, so that TensorBoard forgets them where a run goes on that was killed after this.
        # TensorBoard's table has the metrics out of sight: the accuracy is among the keys too, the first by its name.
        accuracy = {"accuracy": evaluation.accuracy.value}
        run.logger.log_hyperparams(accuracy | compared, metrics, step=run.trainer.global_step)
        run.logger.finalize("success")
        for other in run.others:
            other.log_metrics(metrics, run.trainer.global_step)
        write_report(run.path, summary)
        run.write("summary.json", json.dumps(summary, indent=1) + "\n")  # a run that has it is at its end
        if not evaluation.errors:
            print_once("no test image was misclassified: the gallery is empty")
    run.point_to_it()
    return TrainResult(
        accuracy=evaluation.accuracy.value,
        val_accuracy=history.epochs[-1].val_accuracy if history.epochs and data.val is not None else None,
        lr_min=classifier.hparams["lr_min"],
        lr_max=classifier.hparams["lr_max"],
        classifier=classifier.eval(),
        evaluation=evaluation,
        summary=summary,
        folder=run.path,
    )


def record_evaluation(run: RunFolder, config: Evaluate, classifier: ImageClassifier, evaluation: Evaluation) -> None:
    """Show the figures of an evaluation, and write ``report.html``."""
    if run.trainer.is_global_zero:
        print_evaluation(evaluation)
    if run.path is not None:
        summary = {
            "network": Model.model_validate(classifier.hparams["model"]).title,
            "data": config.data.title,
            "parameters": count_parameters(classifier),
            "device": device_name(run.trainer.strategy.root_device),
            "precision": run.trainer.precision,
            "remarks": remark_one_class(evaluation),
            "versions": versions(),
        }
        write_report(run.path, summary)
    run.point_to_it()


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _print(shown: dict[str, str], remarks: list[str]) -> None:
    table = Table(show_header=False, box=None, pad_edge=False)
    for row in shown.items():
        table.add_row(*row)
    get_console().print(table)
    for remark in remarks:
        print_once(f"note: {remark}")
