"""What a run leaves: its folder, its summary, and the same in the terminal."""

import copy
import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from rich import get_console
from rich.table import Table

from cifar_resnet.callbacks.gallery import MisclassifiedGallery
from cifar_resnet.callbacks.history import History
from cifar_resnet.lr import search as lr_search
from cifar_resnet.results.report import write_report
from cifar_resnet.training.classifier import ImageClassifier


def begin(config: DictConfig, found: lr_search.LrSearch | None, logger: TensorBoardLogger) -> None:
    """Begin the run's folder: the resolved configuration, and what the search saw."""
    folder = Path(logger.log_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True))
    say(f"run folder: {folder}")
    if found is None:
        return
    facts = {
        "optimizer": OmegaConf.to_container(config.optimizer, resolve=True),
        "batch_size": config.data.batch_size,
        "precision": config.trainer.precision,
        "seed": config.seed,
        "versions": versions(),
    }
    figure = lr_search.write(found, facts, folder)
    logger.experiment.add_figure("lr_search", figure)


def log_graph(classifier: ImageClassifier, logger: TensorBoardLogger) -> None:
    """Log the network's graph; a copy is traced, so that it stays as it is."""
    network = copy.deepcopy(classifier.network)
    logger.experiment.add_graph(network, classifier.normalize(classifier.example_input_array))


def summarize(
    config: DictConfig,
    trainer: Trainer,
    classifier: ImageClassifier,
    history: History,
    gallery: MisclassifiedGallery,
    metrics: Mapping[str, float],
) -> dict[str, Any]:
    """Return the figures of a finished run."""
    return {
        "test_accuracy": metrics["test/accuracy"],
        "train_accuracy": history.epochs[-1].train_accuracy if history.epochs else None,
        "epochs": trainer.current_epoch,
        "train_seconds": history.seconds,
        "images_per_second": history.images / history.seconds if history.seconds else None,
        "lr_min": classifier.hparams["lr_min"],
        "lr_max": classifier.hparams["lr_max"],
        "parameters": sum(parameter.numel() for parameter in classifier.network.parameters()),
        "seed": config.seed,
        "misclassified": gallery.errors,
        "device": device_name(trainer.strategy.root_device),
        "versions": versions(),
    }


def finish(config: DictConfig, summary: dict[str, Any], logger: TensorBoardLogger) -> None:
    """Show the summary, write ``summary.json`` and ``report.html``, and log the hyperparameters with the result."""
    table = Table(show_header=False, box=None, pad_edge=False)
    for key, value in summary.items():
        if key == "versions":
            continue
        table.add_row(key.replace("_", " "), f"{value:.4g}" if isinstance(value, float) else str(value))
    get_console().print(table)
    folder = Path(logger.log_dir)
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    chosen: Any = OmegaConf.to_container(config, resolve=True)
    metrics = {f"hp/{key}": summary[key] for key in ("test_accuracy", "train_seconds")}
    logger.log_hyperparams(chosen | {"found": {key: summary[key] for key in ("lr_min", "lr_max")}}, metrics)
    logger.finalize("success")
    if summary["misclassified"] == 0:
        say("no test image was misclassified: the gallery is empty")
    say(f"look at it: open {write_report(folder)}      or tensorboard --logdir {folder.parent}")


def versions() -> dict[str, str]:
    """Return the versions of what a result depends on."""
    packages = ("torch", "lightning", "albumentations", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def device_name(device: torch.device) -> str:
    """Return what a person calls the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type


def say(line: str) -> None:
    """Print a line, once however many devices there are."""
    if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        get_console().print(line, highlight=False, soft_wrap=True)
