"""From a configuration to a prepared process, data, classifier and trainer."""

import ctypes
import logging
import platform
import warnings
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, RichModelSummary
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from rich import get_console

from cifar_resnet import checks
from cifar_resnet.callbacks.progress import StepProgressBar
from cifar_resnet.data.datamodule import ImageDataModule
from cifar_resnet.errors import InputError, one_line
from cifar_resnet.training.classifier import ImageClassifier

NO_NEWS = (
    "The '.*_dataloader' does not have many workers",  # images are in memory: see `ImageDataModule`
    ".*AMP with fp16 is not supported on CPU",  # `announce` says it
    "You passed in a `val_dataloader` but have no `validation_step`",  # the search looks at the training loss alone
    ".*The dirpath has changed from",  # a resumed run has a folder of its own
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning's own business
    ".*recommended to use `self.log\\(.*sync_dist",  # the metrics are gathered from all devices before they are logged
    ".*`torch.jit.trace",  # how TensorBoard draws the graph
)
"""Beginnings of warnings that tell the user nothing that can be acted on."""


def prepare(config: DictConfig) -> None:
    """Seed everything and set up the process."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in NO_NEWS:
        warnings.filterwarnings("ignore", message)
    seed_everything(config.seed, workers=True, verbose=False)
    torch.set_float32_matmul_precision("high")  # TF32 where there is TF32
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Let glibc reuse the blocks of freed activations instead of returning each to the system.

    Otherwise every step of a CPU run takes its gigabytes anew, page fault by page fault: a third of the time
    (docs/performance.md).
    """
    if platform.libc_ver()[0] == "glibc":
        m_trim_threshold, m_mmap_max = -1, -4
        libc = ctypes.CDLL(None)
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, -1)


def build_data(config: DictConfig) -> ImageDataModule:
    """Read the images and wrap them."""
    options: Any = OmegaConf.to_container(config.data, resolve=True)
    source = options.pop("source")
    for key in ("root", "resize"):  # these the source has taken
        options.pop(key, None)
    try:
        train_images, test_images = instantiate(source)
        return ImageDataModule(train_images, test_images, **options, seed=config.seed)
    except InstantiationException as error:
        raise checks.reason(error, "data.source") from error
    except TypeError as error:
        raise InputError(f"data: {one_line(error)}") from error


def build_classifier(config: DictConfig, data: ImageDataModule) -> ImageClassifier:
    """Make the network, with what it needs to know of the data."""
    options: Any = OmegaConf.to_container(config, resolve=True)
    try:
        return ImageClassifier(
            model=options["model"],
            classes=list(data.classes),
            mean=data.mean,
            std=data.std,
            test_mean=data.test_mean,
            test_std=data.test_std,
            optimizer=options["optimizer"],
            **options["schedule"],
            max_epochs=config.trainer.max_epochs,
            **options["classifier"],
            watched=data.watched,
        )
    except InstantiationException as error:
        raise checks.reason(error, "model") from error


def build_trainer(config: DictConfig, callbacks: list[Callback]) -> Trainer:
    """Make Lightning's Trainer, with progress in a terminal, checkpoints and TensorBoard."""
    options: Any = OmegaConf.to_container(config.trainer, resolve=True)
    checks.check_trainer_options(options)
    in_terminal = get_console().is_terminal
    if in_terminal:
        callbacks = [*callbacks, RichModelSummary(max_depth=2)]
        if options["enable_progress_bar"]:
            callbacks.append(StepProgressBar())
    checkpoints = [ModelCheckpoint(filename="last", enable_version_counter=False, save_on_train_epoch_end=True)]
    if config.data.val_size:
        best = ModelCheckpoint(filename="best", enable_version_counter=False, monitor="val/accuracy", mode="max")
        checkpoints.append(best)
    logger = TensorBoardLogger(options["default_root_dir"], "lightning_logs", default_hp_metric=False)
    options |= {
        "logger": logger,
        "callbacks": [*callbacks, LearningRateMonitor("step"), *checkpoints],
        "enable_progress_bar": in_terminal and options["enable_progress_bar"],
        "enable_model_summary": in_terminal,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,  # the data module gives each device its share of a batch itself
        "benchmark": not options["deterministic"],
    }
    try:
        trainer = Trainer(**options)
    except (MisconfigurationException, TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"trainer: {one_line(error)} (accelerator=auto devices=1 strategy=auto precision=32-true work anywhere)"
        ) from error
    checks.check_cores(trainer)
    return trainer


def run_logger(trainer: Trainer) -> TensorBoardLogger | None:
    """Return what this process records the run with: nothing beside the first device, and under ``fast_dev_run``."""
    logger = trainer.logger
    return logger if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero else None
