"""The three jobs: train, find the learning-rate bounds, evaluate."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer
from torch.distributed import DistError

from cifar_resnet import checks, interruption
from cifar_resnet.analysis.metrics import Evaluation
from cifar_resnet.analysis.remarks import describe_counts, remark_batch_norm, remark_few_steps, remark_lopsided
from cifar_resnet.build import (
    build_classifier,
    build_data,
    build_source,
    build_trainer,
    choose_precision,
    prepare,
    with_trained_source,
)
from cifar_resnet.callbacks.errors_page import ErrorsPage
from cifar_resnet.callbacks.evaluator import Evaluator
from cifar_resnet.callbacks.gallery import MisclassifiedGallery
from cifar_resnet.callbacks.history import History
from cifar_resnet.callbacks.inputs import InputPreview
from cifar_resnet.callbacks.outputs import OutputCollector
from cifar_resnet.cli.schema import Evaluate, LrFind, Train
from cifar_resnet.data.batches import batch_size_for
from cifar_resnet.data.datamodule import ImageDataModule
from cifar_resnet.errors import InputError, RunError, one_line
from cifar_resnet.interruption import Answer
from cifar_resnet.lr.search import TRIED_STEPS, LrSearch, search, try_sweep
from cifar_resnet.messages import say
from cifar_resnet.models.libraries import has_weights, origin_of
from cifar_resnet.results.layers import count_parameters, layer_table, list_layers
from cifar_resnet.results.loggers import naming_failures
from cifar_resnet.results.machine import device_name
from cifar_resnet.results.record import TrainResult, record_evaluation, record_network, record_result, record_search
from cifar_resnet.results.run_folder import RunFolder, print_once
from cifar_resnet.results.unfinished import find_unfinished
from cifar_resnet.training.checkpoint import check_classes, load_classifier, read_checkpoint
from cifar_resnet.training.classifier import ImageClassifier
from cifar_resnet.training.precision import Choice

CLIPPING = {"gradient_clip_val", "gradient_clip_algorithm"}
TESTING = "testing, and drawing what it gets wrong"
STEP_OPTIONS = {"accelerator", "accumulate_grad_batches", "deterministic", *CLIPPING}
"""The Trainer options that change what an optimizer step does; the search uses them too."""


def train(config: Train) -> TrainResult:
    """Search the bounds where they are not given, train, test, and leave a run in ``lightning_logs/version_N/``.

    Raises:
        InputError: something in the configuration cannot work; found before training, nothing was written then.
        RunError: what had begun cannot go on; the last checkpoint is there.
        Finished: ``ckpt_path`` leads to a run that is at its end.
    """
    prepare(config.seed)
    history, outputs = History(), OutputCollector()
    evaluator, gallery = Evaluator(outputs), MisclassifiedGallery(outputs, **dict(config.gallery), seed=config.seed)
    page = ErrorsPage(outputs, config.errors.limit, gallery.layer, gallery.method)
    config, unfinished = find_unfinished(config)
    checkpoint = read_checkpoint(config.ckpt_path, "ckpt_path") if config.ckpt_path else {}
    choice = choose_precision(config, checkpoint)
    watchers = [history, InputPreview(), outputs, evaluator, gallery, page]
    trainer = build_trainer(config, watchers, choice.precision)
    checks.before_data(config, trainer, checkpoint)
    gallery.check(checks.try_classifier(config, resumed=bool(checkpoint)))
    data = read_images(build_data(config, trainer.world_size))
    checks.after_data(config, data, checkpoint)
    classifier = build_classifier(with_bounds_of(checkpoint, config), data, resumed=bool(checkpoint))
    announce(config, data, classifier, trainer, choice)
    print_once(layer_table(list_layers(classifier)))
    with naming_failures(), RunFolder(config, trainer, unfinished, checkpoint.get("global_step", 0)) as run:
        run.open_others()
        if trainer.is_global_zero:
            record_search(run, find_bounds(config, classifier, data, trainer), data)
        record_network(run, config, classifier, data)
        try:
            say(f"training up to epoch {config.trainer.max_epochs}")
            with interruption.answering(Answer.NOTE):
                trainer.fit(classifier, datamodule=data, ckpt_path=config.ckpt_path, weights_only=True)
            if run.logger is not None:
                run.logger.complete.add(data.validation_name)
            say(TESTING)
            trainer.test(classifier, datamodule=data, verbose=False)
        except RuntimeError as error:
            if trainer.world_size > 1 and ("gloo" in str(error) or isinstance(error, DistError)):
                raise RunError("the process of another device has ended: go on with ckpt_path=last") from error
            raise
        assert evaluator.evaluation is not None
        return record_result(run, config, classifier, data, history, evaluator.evaluation)


def find_lr(config: LrFind) -> LrSearch:
    """Run the search alone, print the bounds, and leave ``lr_find.json`` and ``lr_find.png`` in a new run folder.

    Raises:
        InputError: something in the configuration cannot work, or the loss never fell; nothing was written then.
    """
    prepare(config.seed)
    choice = choose_precision(config, {})
    trainer = build_trainer(config, [], choice.precision)
    checks.before_data(config, trainer, {})
    checks.try_classifier(config)
    data = read_images(build_data(config, trainer.world_size))
    checks.after_data(config, data, {})
    classifier = build_classifier(config, data)
    announce(config, data, classifier, trainer, choice)
    with naming_failures(), RunFolder(config, trainer) as run:
        run.open_others()
        found = find_bounds(config, classifier, data, trainer)
        assert found is not None
        record_search(run, found, data)
    bounds = f"schedule.lr_min={found.bounds.lr_min:g} schedule.lr_max={found.bounds.lr_max:g}"
    print_once(f"train with them: the same keys behind python scripts/train.py, and {bounds}")
    return found


def evaluate(config: Evaluate) -> Evaluation:
    """Evaluate a checkpoint on the test images, print the figures, and leave them, with pictures, in a new run folder.

    Images, their size, the statistics that normalize them and the precision are the checkpoint's, unless the
    configuration names others.

    Raises:
        InputError: something in the configuration cannot work, or the checkpoint's classes are not those of the data;
            nothing was written then.
    """
    prepare(config.seed)
    classifier, checkpoint = load_classifier(config.ckpt, config.trust), read_checkpoint(config.ckpt)
    is_named, config = config.data.source is not None, with_trained_source(config, checkpoint)
    outputs = OutputCollector(flip=config.tta == "flip")
    evaluator, gallery = Evaluator(outputs), MisclassifiedGallery(outputs, **dict(config.gallery), seed=config.seed)
    page = ErrorsPage(outputs, config.errors.limit, gallery.layer, gallery.method)
    gallery.check(classifier)
    trainer = build_trainer(config, [outputs, evaluator, gallery, page], choose_precision(config, checkpoint).precision)
    checks.processes(trainer)
    data = ImageDataModule(build_source(config), image_size=classifier.hparams["image_size"])
    if is_named:
        data.prepare_data()
    try:
        data.setup("test")
    except RuntimeError as error:  # of a source that would have to fetch first
        raise InputError(
            f"ckpt={config.ckpt} was trained on images that are not here ({one_line(error)}): give data=… to fetch them"
        ) from error
    check_classes(f"ckpt={config.ckpt}", classifier.classes, data.classes)
    print_once(f"data: {count_images(data)}, on {device_name(trainer.strategy.root_device)}")
    with RunFolder(config, trainer) as run:
        say(TESTING)
        trainer.test(classifier, datamodule=data, verbose=False)
        assert evaluator.evaluation is not None
        record_evaluation(run, config, classifier, evaluator.evaluation)
        return evaluator.evaluation


def read_images(data: ImageDataModule) -> ImageDataModule:
    """Return the data with all images in it."""
    data.prepare_data()
    data.setup()
    return data


def with_bounds_of(checkpoint: Mapping[str, Any], config: Train) -> Train:
    """Return the configuration with the bounds with which the training began that is gone on with."""
    if not checkpoint:
        return config
    bounds = {name: checkpoint["hyper_parameters"][name] for name in ("lr_min", "lr_max")}
    return config.model_copy(update={"schedule": config.schedule.model_copy(update=bounds)})


def announce(
    config: Train, data: ImageDataModule, classifier: ImageClassifier, trainer: Trainer, choice: Choice
) -> None:
    """Say in a few lines what is about to happen, and what is likely to go wrong."""
    print_once(f"data: {count_images(data)}")
    for remark in remark_data(data, weighted=config.classifier.class_weights is not None):
        print_once(f"note: {remark}")
    parameters = count_parameters(classifier)
    device = device_name(trainer.strategy.root_device)
    print_once(f"network: {config.model.title}, {parameters:,} parameters, on {device}")
    size, begun = classifier.hparams["model"].get("input_size"), has_weights(classifier.hparams["model"])
    if origin_of(config.model.call) and size:
        normalized = ", and normalized as for its weights" if begun else ""
        print_once(f"network: images are scaled to {size}×{size} pixels{normalized}")
    batches = len(data.train_dataloader()) * config.trainer.max_epochs
    for remark in remark_batch_norm(classifier.network, batches):
        print_once(f"note: {remark}")
    print_once(f"precision: {choice.precision} ({choice.reason})")


def count_images(data: ImageDataModule) -> str:
    """Return how many images of each part were read, how many a class has, and how many are in a batch."""
    parts = {"training": data.train, "validation": data.val, "test": data.test}
    images = ", ".join(f"{len(part):,} {name}" for name, part in parts.items() if part is not None)
    batches = "" if data.train is None else f", batches of {data.batch_size_in_effect:,}"
    return f"{images} images, {describe_counts(data.class_counts)}{batches}"


def remark_data(data: ImageDataModule, weighted: bool) -> list[str]:
    """Return what is to be said before training with this data; ``weighted``: the loss makes up for rare classes."""
    counts, size, accumulated = data.class_counts, data.batch_size_in_effect, data.accumulate_grad_batches
    images = sum(counts.values())
    advised = batch_size_for(images, accumulated, data.devices)
    return remark_few_steps(images // size // accumulated, size, advised) + remark_lopsided(counts, weighted)


def find_bounds(config: Train, classifier: ImageClassifier, data: ImageDataModule, trainer: Trainer) -> LrSearch | None:
    """Give the classifier its LRMIN and LRMAX: those of the configuration, else those that the search finds.

    The first device alone searches; when training begins the others take its bounds (`ImageClassifier.setup`).
    """
    hparams = classifier.hparams
    if None not in (hparams["lr_min"], hparams["lr_max"]):
        return None
    index = trainer.strategy.root_device.index
    options = config.trainer.model_dump(include=STEP_OPTIONS) | {"devices": 1 if index is None else [index]}
    options["precision"] = trainer.precision
    if config.trainer.fast_dev_run:
        try_sweep(classifier, data, options)
        lr_min = hparams["lr_min"] or (hparams["lr_max"] or 10 * config.lr_search.lowest) / 10
        hparams.update(lr_min=lr_min, lr_max=hparams["lr_max"] or 10 * lr_min)
        print_once(f"LR search: {TRIED_STEPS} steps tried, too few for bounds; fast_dev_run goes on with low rates")
        return None
    found = search(classifier, data, **config.lr_search.model_dump(), trainer_options=options)
    for name in ("lr_min", "lr_max"):
        if hparams[name] is None:
            hparams[name] = getattr(found.bounds, name)
    if hparams["lr_min"] >= hparams["lr_max"]:
        raise InputError(
            f"schedule.lr_min={hparams['lr_min']:g} is not below schedule.lr_max={hparams['lr_max']:g}, "
            "one of which was found by the search: give both, or neither"
        )
    print_once(
        f"LR search: lr_min={found.bounds.lr_min:g} lr_max={found.bounds.lr_max:g}  "
        f"({found.summary}; {found.seconds:.1f} s)"
    )
    return found
