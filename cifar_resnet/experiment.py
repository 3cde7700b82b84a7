"""The three jobs: train, find the learning-rate bounds, evaluate."""

import shlex
import sys
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from omegaconf import DictConfig

from cifar_resnet import checks
from cifar_resnet.analysis.metrics import Evaluation, show
from cifar_resnet.build import build_classifier, build_data, build_trainer, prepare, run_logger
from cifar_resnet.callbacks.evaluator import Evaluator
from cifar_resnet.callbacks.gallery import MisclassifiedGallery
from cifar_resnet.callbacks.history import History
from cifar_resnet.data.datamodule import ImageDataModule
from cifar_resnet.errors import InputError
from cifar_resnet.lr import search as lr_search
from cifar_resnet.results import run_folder as records
from cifar_resnet.results.run_folder import device_name, say
from cifar_resnet.training.checkpoint import check_classes, load_classifier, read_checkpoint
from cifar_resnet.training.classifier import ImageClassifier

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
    trainer = build_trainer(config, [history, gallery, Evaluator()])
    checks.check_share(config.data.batch_size, trainer.world_size)
    checkpoint = resume(config)
    gallery.check(rehearse(config))
    data = build_data(config)
    checks.check_lengths(config, data, checkpoint)
    classifier = build_classifier(config, data)
    announce(config, data, classifier, trainer)
    found = find_bounds(config, classifier, data)
    logger = run_logger(trainer)
    if logger:
        records.begin(config, found, logger)
        records.log_graph(classifier, logger)
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
    checks.check_lengths(config, data, checkpoint=None)
    classifier = build_classifier(config, data)
    announce(config, data, classifier, trainer)
    found = find_bounds(config, classifier, data)
    assert found is not None
    logger = run_logger(trainer)
    if logger:
        records.begin(config, found, logger)
    say(f"train with them: python scripts/train.py {shlex.join(sys.argv[1:])}")  # `find_bounds` has added them
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
    checks.limited("test", len(data.test_dataloader()), config)
    check_classes(config.ckpt, classifier.classes, data.classes)
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


def rehearse(config: DictConfig) -> ImageClassifier:
    """Build the classifier for two blank images, so that a mistake is found before any are decoded."""
    config = config.copy()
    config.classifier.compile = False  # it takes a minute
    with isolate_rng():
        classifier = build_classifier(config, checks.blank_data())
        checks.check_classifier(classifier)
    return classifier


def resume(config: DictConfig) -> dict[str, Any] | None:
    """Return the checkpoint that training goes on from, and take its bounds; refuse what cannot be resumed."""
    if config.ckpt_path is None:
        return None
    checkpoint = read_checkpoint(config.ckpt_path, "ckpt_path")
    checks.check_resumable(config, checkpoint)
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
            hparams[name] = getattr(found.bounds, name)
    if hparams["lr_min"] >= hparams["lr_max"]:
        raise InputError(
            f"schedule.lr_min={hparams['lr_min']:g} is not below schedule.lr_max={hparams['lr_max']:g}, "
            "one of which was found by the search: give both, or neither"
        )
    # Lightning starts the processes of further devices with this command line: they take the bounds from there.
    sys.argv += [f"schedule.{name}={hparams[name]!r}" for name in ("lr_min", "lr_max")]
    say(
        f"LR search: lr_min={found.bounds.lr_min:g} lr_max={found.bounds.lr_max:g}  "
        f"({found.summary}; {found.seconds:.1f} s)"
    )
    return found
