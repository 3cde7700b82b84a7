"""From a configuration to data, classifier, callbacks and trainer: the one place that builds."""

import ctypes
import logging
import platform
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, RichModelSummary, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.seed import isolate_rng
from omegaconf import DictConfig, OmegaConf
from rich import get_console

from cifar_resnet import lr_search, records, rehearsal
from cifar_resnet.checkpoint import load_classifier, read_checkpoint
from cifar_resnet.classifier import ImageClassifier
from cifar_resnet.datamodule import ImageDataModule
from cifar_resnet.errors import InputError, one_line
from cifar_resnet.evaluation import Evaluation, show
from cifar_resnet.evaluator import Evaluator
from cifar_resnet.gallery import MisclassifiedGallery
from cifar_resnet.history import History
from cifar_resnet.records import device_name, say

STEP_OPTIONS = ("accelerator", "precision", "accumulate_grad_batches", "gradient_clip_val", "deterministic")
"""The Trainer options that change what an optimizer step does; the search uses them too."""

NO_NEWS = (
    "The '.*_dataloader' does not have many workers",  # images are in memory: see `ImageDataModule`
    ".*AMP with fp16 is not supported on CPU",  # `announce` says it
    "You passed in a `val_dataloader` but have no `validation_step`",  # the search looks at the training loss alone
    ".*The dirpath has changed from",  # a resumed run has a folder of its own
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning's own business
    ".*recommended to use `self.log\\(.*sync_dist",  # the metrics are gathered from all devices before they are logged
    ".*`torch.jit.trace",  # how TensorBoardLogger draws the graph
)
"""Beginnings of warnings that tell the user nothing that can be acted on."""


def train(config: DictConfig) -> dict[str, Any]:
    """Search the bounds where they are not given, train, test, and leave a run in ``lightning_logs/version_N/``.

    Returns:
        What ``summary.json`` holds.

    Raises:
        InputError: something in the configuration cannot work; found before training, nothing was written then.
    """
    prepare(config)
    history, gallery = History(), MisclassifiedGallery(**config.gallery, seed=config.seed)
    trainer = build_trainer(config, [history, gallery, Evaluator()])
    rehearsal.check_share(config.data.batch_size, trainer.world_size)
    checkpoint = resume(config)
    gallery.check(rehearse(config))
    data = build_data(config)
    rehearsal.check_lengths(config, data, checkpoint)
    classifier = build_classifier(config, data)
    announce(config, data, classifier, trainer)
    found = find_bounds(config, classifier, data)
    logger = run_logger(trainer)
    if logger:
        records.begin(config, found, logger)
    trainer.fit(classifier, datamodule=data, ckpt_path=config.ckpt_path, weights_only=True)
    (metrics,) = trainer.test(classifier, datamodule=data, verbose=False)
    summary = records.summarize(config, trainer, classifier, history, gallery, metrics)
    if logger:
        records.finish(config, summary, logger)
    return summary


def find_lr(config: DictConfig) -> lr_search.LrSearch:
    """Run the search alone, print the bounds, and leave ``lr_find.json`` and ``lr_find.png`` in a new run folder.

    Raises:
        InputError: something in the configuration cannot work, or the loss never fell; nothing was written then.
    """
    prepare(config)
    config.schedule.lr_min = config.schedule.lr_max = None
    trainer = build_trainer(config, [])
    rehearse(config)
    data = build_data(config)
    rehearsal.check_lengths(config, data, checkpoint=None)
    classifier = build_classifier(config, data)
    announce(config, data, classifier, trainer)
    found = find_bounds(config, classifier, data)
    assert found is not None
    logger = run_logger(trainer)
    if logger:
        records.begin(config, found, logger)
    bounds = f"schedule.lr_min={found.lr_min:g} schedule.lr_max={found.lr_max:g}"
    say(f"train with them: python scripts/train.py {bounds}")
    return found


def evaluate(config: DictConfig) -> Evaluation:
    """Evaluate a checkpoint on the test images, print the figures, and leave them, with pictures, in a new run folder.

    The statistics that normalize the images are the checkpoint's.

    Raises:
        InputError: something in the configuration cannot work, or the checkpoint's classes are not those of the data;
            nothing was written then.
    """
    prepare(config)
    classifier = load_classifier(config.ckpt)
    evaluator = Evaluator(flip=config.tta == "flip")
    gallery = MisclassifiedGallery(**config.gallery, seed=config.seed)
    gallery.check(classifier)
    trainer = build_trainer(config, [evaluator, gallery])
    data = build_data(config)
    rehearsal.limited("test", len(data.test_dataloader()), config)
    _check_classes(config.ckpt, classifier.classes, data.classes)
    device = device_name(trainer.strategy.root_device)
    say(f"data: {len(data.test):,} test images, {len(data.classes)} classes, on {device}")
    logger = run_logger(trainer)
    if logger:
        records.begin(config, None, logger)
    trainer.test(classifier, datamodule=data, verbose=False)
    assert evaluator.evaluation is not None
    if trainer.is_global_zero:
        show(evaluator.evaluation)
    if logger:
        folder = Path(logger.log_dir)
        say(f"look at it: tensorboard --logdir {folder.parent}      (or the pictures in {folder})")
    return evaluator.evaluation


def _check_classes(path: str, trained: Sequence[str], found: Sequence[str]) -> None:
    if trained == found:
        return
    sides = (("checkpoint", set(trained) - set(found)), ("data", set(found) - set(trained)))
    odd = [f"only in the {side}: {_enumerate(sorted(names))}" for side, names in sides if names]
    if not odd:
        label = next(label for label, (one, other) in enumerate(zip(trained, found, strict=True)) if one != other)
        odd = [f"the order differs, label {label} is {trained[label]} in the checkpoint, {found[label]} in the data"]
    raise InputError(
        f"ckpt={path}: its classes are not those of the data ({'; '.join(odd)}); "
        "evaluate it on images of the classes that it was trained on"
    )


def _enumerate(names: Sequence[str], most: int = 5) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{rest}"


def prepare(config: DictConfig) -> None:
    """Seed everything and set up the process."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in NO_NEWS:
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
        raise rehearsal.reason(error, "data.source") from error
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
        raise rehearsal.reason(error, "model") from error


def build_trainer(config: DictConfig, callbacks: list[Callback]) -> Trainer:
    """Make Lightning's Trainer, with progress in a terminal, checkpoints and TensorBoard."""
    options: Any = OmegaConf.to_container(config.trainer, resolve=True)
    rehearsal.check_trainer_options(options)
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
        trainer = Trainer(**options)
    except (MisconfigurationException, TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"trainer: {one_line(error)} (accelerator=auto devices=1 strategy=auto precision=32-true work anywhere)"
        ) from error
    rehearsal.check_cores(trainer)
    return trainer


def run_logger(trainer: Trainer) -> TensorBoardLogger | None:
    """Return what this process records the run with: nothing beside the first device, and under ``fast_dev_run``."""
    logger = trainer.logger
    return logger if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero else None


def rehearse(config: DictConfig) -> ImageClassifier:
    """Build the classifier for two blank images, so that a mistake is found before any are decoded."""
    config = config.copy()
    config.classifier.compile = False  # it takes a minute
    with isolate_rng():
        classifier = build_classifier(config, rehearsal.blank_data())
        rehearsal.check_classifier(classifier)
    return classifier


def resume(config: DictConfig) -> dict[str, Any] | None:
    """Return the checkpoint that training goes on from, and take its bounds; refuse what cannot be resumed."""
    if config.ckpt_path is None:
        return None
    checkpoint = read_checkpoint(config.ckpt_path, "ckpt_path")
    rehearsal.check_resumable(config, checkpoint)
    for key in ("lr_min", "lr_max"):
        before = checkpoint["hyper_parameters"][key]
        if config.schedule[key] not in (None, before):
            raise InputError(
                f"schedule.{key}={config.schedule[key]}: the checkpoint has {before}; leave it out to resume"
            )
        config.schedule[key] = before
    return checkpoint


def announce(config: DictConfig, data: ImageDataModule, classifier: ImageClassifier, trainer: Trainer) -> None:
    """Say in a few lines what is about to happen."""
    watched = f", {len(data.val):,} for validation" if data.val is not None else ""
    say(f"data: {len(data.train):,} training{watched} and {len(data.test):,} test images, {len(data.classes)} classes")
    parameters = sum(parameter.numel() for parameter in classifier.network.parameters())
    device = trainer.strategy.root_device
    say(f"network: {config.model._target_.rpartition('.')[2]}, {parameters:,} parameters, on {device_name(device)}")
    if device.type == "cpu" and config.trainer.precision == "16-mixed":
        say("precision: 16-mixed needs a GPU; a CPU runs bf16-mixed, often slower than trainer.precision=32-true")


def find_bounds(config: DictConfig, classifier: ImageClassifier, data: ImageDataModule) -> lr_search.LrSearch | None:
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
    say(f"LR search: lr_min={found.lr_min:g} lr_max={found.lr_max:g}  ({found.seconds:.1f} s)")
    return found
