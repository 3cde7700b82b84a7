"""From a configuration to data, classifier, callbacks and trainer: the one place that builds."""

import ctypes
import json
import logging
import platform
import sys
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, RichModelSummary, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from rich import get_console
from rich.table import Table

from cifar_resnet import lr_search
from cifar_resnet.classifier import ImageClassifier
from cifar_resnet.datamodule import ImageDataModule
from cifar_resnet.errors import InputError
from cifar_resnet.gallery import MisclassifiedGallery
from cifar_resnet.history import History

STEP_OPTIONS = ("accelerator", "precision", "accumulate_grad_batches", "gradient_clip_val", "deterministic")
"""The Trainer options that change what an optimizer step does; the search uses them too."""


def train(config: DictConfig) -> dict[str, Any]:
    """Search the bounds where they are not given, train, test, and leave a run in ``lightning_logs/version_N/``.

    Returns:
        What ``summary.json`` holds.

    Raises:
        InputError: something in the configuration cannot work; found before training, nothing was written then.
    """
    prepare(config)
    history, gallery = History(), MisclassifiedGallery(**config.gallery, seed=config.seed)
    trainer = build_trainer(config, [history, gallery])
    resume(config)
    data = build_data(config)
    classifier = build_classifier(config, data)
    gallery.check(classifier)
    announce(config, data, classifier, trainer)
    found = find_bounds(config, classifier, data, trainer)
    if trainer.is_global_zero and trainer.log_dir is not None:
        record(config, found, trainer)
    trainer.fit(classifier, datamodule=data, ckpt_path=config.ckpt_path, weights_only=True)
    (metrics,) = trainer.test(classifier, datamodule=data, verbose=False)
    summary = summarize(config, trainer, classifier, history, gallery, metrics)
    if trainer.is_global_zero:
        report(config, summary, trainer)
    return summary


def find_lr(config: DictConfig) -> lr_search.LrSearch:
    """Run the search alone, print the bounds, and leave ``lr_find.json`` and ``lr_find.png`` in a new run folder.

    Raises:
        InputError: something in the configuration cannot work, or the loss never fell; nothing was written then.
    """
    prepare(config)
    config.schedule.lr_min = config.schedule.lr_max = None
    trainer = build_trainer(config, [])
    data = build_data(config)
    classifier = build_classifier(config, data)
    announce(config, data, classifier, trainer)
    found = find_bounds(config, classifier, data, trainer)
    assert found is not None
    if trainer.log_dir is not None:
        record(config, found, trainer)
    bounds = f"schedule.lr_min={found.lr_min:g} schedule.lr_max={found.lr_max:g}"
    _say(f"train with them: python scripts/train.py {bounds}")
    return found


def prepare(config: DictConfig) -> None:
    """Seed everything and set up the process."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (".*does not have many workers.*", ".*16-mixed.*not supported on CPU.*", ".*isinstance.*LeafSpec.*"):
        warnings.filterwarnings("ignore", message)
    seed_everything(config.seed, workers=True, verbose=False)
    torch.set_float32_matmul_precision("high")  # TF32 where there is TF32
    _keep_freed_memory()


def _keep_freed_memory() -> None:
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
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        raise InputError(f"data.source: {_one_line(error)}") from error
    except TypeError as error:
        raise InputError(f"data: {_one_line(error)}") from error


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
        raise InputError(f"model: {_one_line(error)}") from error


def build_trainer(config: DictConfig, callbacks: list[Callback]) -> Trainer:
    """Make Lightning's Trainer, with progress in a terminal, checkpoints and TensorBoard."""
    options: Any = OmegaConf.to_container(config.trainer, resolve=True)
    in_terminal = get_console().is_terminal
    if in_terminal:
        callbacks = [*callbacks, RichModelSummary(max_depth=2)]
        if options["enable_progress_bar"]:
            callbacks.append(RichProgressBar())
    checkpoints = [ModelCheckpoint(filename="last", enable_version_counter=False, save_on_train_epoch_end=True)]
    if config.data.val_size:
        best = ModelCheckpoint(filename="best", enable_version_counter=False, monitor="val/accuracy", mode="max")
        checkpoints.append(best)
    logger = TensorBoardLogger(options["default_root_dir"], "lightning_logs", log_graph=True, default_hp_metric=False)
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
        return Trainer(**options)
    except (MisconfigurationException, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"trainer: {_one_line(error)}") from error


def resume(config: DictConfig) -> None:
    """Take the bounds of the checkpoint that training goes on from, and refuse what cannot be resumed."""
    if config.ckpt_path is None:
        return
    before = load_checkpoint(config.ckpt_path)["hyper_parameters"]
    for key, now in (("max_epochs", config.trainer.max_epochs), ("peak_epoch", config.schedule.peak_epoch)):
        if before[key] != now:
            raise InputError(
                f"ckpt_path={config.ckpt_path} was trained with {key}={before[key]}, not {now}: its One Cycle schedule "
                "cannot be stretched; resume with the same value, or start anew without ckpt_path"
            )
    for key in ("lr_min", "lr_max"):
        if config.schedule[key] not in (None, before[key]):
            raise InputError(
                f"schedule.{key}={config.schedule[key]}: the checkpoint has {before[key]}; leave it out to resume"
            )
        config.schedule[key] = before[key]


def load_checkpoint(path: str, key: str = "ckpt_path") -> dict[str, Any]:
    """Return the contents of a checkpoint of this project.

    Args:
        path: the file.
        key: the key that it was given by, for the messages.

    Raises:
        InputError: there is no such file, it cannot be read, or it is of another project.
    """
    if not Path(path).is_file():
        raise InputError(f"{key}={path}: no such file; checkpoints are in lightning_logs/version_N/checkpoints/")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever the bytes of a broken file provoke
        raise InputError(f"{key}={path} is not a readable checkpoint ({_one_line(error)})") from error
    if not isinstance(checkpoint, dict) or "temperature" not in checkpoint.get("hyper_parameters", {}):
        raise InputError(f"{key}={path} is not a checkpoint of this project: it has no ImageClassifier in it")
    return checkpoint


def load_classifier(path: str) -> ImageClassifier:
    """Return the classifier of a checkpoint, in evaluation mode, on the CPU.

    Raises:
        InputError: there is no such checkpoint, or its network cannot be built here.
    """
    load_checkpoint(path, "ckpt")
    try:
        # A network that was compiled for training runs without: compiling takes longer than a pass over the images.
        classifier = ImageClassifier.load_from_checkpoint(path, map_location="cpu", weights_only=True, compile=False)
    except (InstantiationException, RuntimeError) as error:
        raise InputError(f"ckpt={path}: its network cannot be built ({_one_line(error)})") from error
    return classifier.eval()


def announce(config: DictConfig, data: ImageDataModule, classifier: ImageClassifier, trainer: Trainer) -> None:
    """Say in a few lines what is about to happen."""
    watched = f", {len(data.val):,} for validation" if data.val is not None else ""
    _say(f"data: {len(data.train):,} training{watched} and {len(data.test):,} test images, {len(data.classes)} classes")
    parameters = sum(parameter.numel() for parameter in classifier.network.parameters())
    device = trainer.strategy.root_device
    _say(f"network: {config.model._target_.rpartition('.')[2]}, {parameters:,} parameters, on {_device_name(device)}")
    if device.type == "cpu" and config.trainer.precision == "16-mixed":
        _say("precision: 16-mixed needs a GPU; a CPU runs bf16-mixed, often slower than trainer.precision=32-true")


def find_bounds(
    config: DictConfig, classifier: ImageClassifier, data: ImageDataModule, trainer: Trainer
) -> lr_search.LrSearch | None:
    """Give the classifier its LRMIN and LRMAX: those of the configuration, else those that the search finds."""
    hparams = classifier.hparams
    if None not in (hparams["lr_min"], hparams["lr_max"]):
        return None
    found = lr_search.search(
        classifier, data, **config.lr_search, trainer_options={name: config.trainer[name] for name in STEP_OPTIONS}
    )
    for name in ("lr_min", "lr_max"):
        if hparams[name] is None:
            hparams[name] = getattr(found, name)
    if hparams["lr_min"] >= hparams["lr_max"]:
        raise InputError(
            f"schedule.lr_min={hparams['lr_min']:g} is not below schedule.lr_max={hparams['lr_max']:g}, "
            "one of which was found by the search: give both, or neither"
        )
    # Lightning starts the processes of further devices with this command line: they take the bounds from there.
    sys.argv += [f"schedule.{name}={hparams[name]!r}" for name in ("lr_min", "lr_max")]
    _say(f"LR search: lr_min={found.lr_min:g} lr_max={found.lr_max:g}  ({found.seconds:.1f} s)")
    return found


def record(config: DictConfig, found: lr_search.LrSearch | None, trainer: Trainer) -> None:
    """Begin the run's folder: the resolved configuration, and what the search saw."""
    folder = Path(str(trainer.log_dir))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True))
    _say(f"run folder: {folder}")
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
    trainer.logger.experiment.add_figure("lr_search", figure)  # type: ignore[union-attr]


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
        "device": _device_name(trainer.strategy.root_device),
        "versions": versions(),
    }


def report(config: DictConfig, summary: dict[str, Any], trainer: Trainer) -> None:
    """Write ``summary.json``, log the hyperparameters with the result, and show the same in the terminal."""
    table = Table(show_header=False, box=None, pad_edge=False)
    for key, value in summary.items():
        if key == "versions":
            continue
        table.add_row(key.replace("_", " "), f"{value:.4g}" if isinstance(value, float) else str(value))
    get_console().print(table)
    if trainer.log_dir is None:
        return
    folder = Path(trainer.log_dir)
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    logger = trainer.logger
    assert isinstance(logger, TensorBoardLogger)
    chosen: Any = OmegaConf.to_container(config, resolve=True)
    metrics = {f"hp/{key}": summary[key] for key in ("test_accuracy", "train_seconds")}
    logger.log_hyperparams(chosen | {"found": {key: summary[key] for key in ("lr_min", "lr_max")}}, metrics)
    logger.finalize("success")
    _say(f"look at it: tensorboard --logdir {folder.parent}      or open {folder / 'gallery.png'}")


def versions() -> dict[str, str]:
    """Return the versions of what a result depends on."""
    packages = ("torch", "lightning", "albumentations", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type


def _say(line: str) -> None:
    if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        get_console().print(line, highlight=False, soft_wrap=True)
