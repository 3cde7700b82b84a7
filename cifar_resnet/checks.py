"""What is known to fail before it is expensive: tried or compared in a second, ahead of images, search and training."""

import inspect
import math
import os
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch
from hydra.errors import InstantiationException
from lightning.pytorch import Trainer
from omegaconf import DictConfig, OmegaConf

from cifar_resnet.data.datamodule import ImageDataModule
from cifar_resnet.data.sources import IMAGE_SIZE, ImageSet
from cifar_resnet.errors import InputError, one_line
from cifar_resnet.training.classifier import ImageClassifier


def blank_data() -> ImageDataModule:
    """Return two black images of two classes, to build a classifier for."""
    blank = ImageSet(np.zeros((2, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8), np.arange(2), ("one", "other"))
    return ImageDataModule(blank, blank)


def check_classifier(classifier: ImageClassifier) -> None:
    """Pass an image through the network, and make the optimizer once.

    Raises:
        InputError: the network does not return a logit a class, or the optimizer does not take its arguments.
    """
    with torch.no_grad():
        shape = tuple(classifier.eval()(classifier.example_input_array).shape)
    if shape != (1, len(classifier.classes)):
        raise InputError(
            f"model._target_={classifier.hparams['model']['_target_']}: it returns {shape} for an image and "
            f"{len(classifier.classes)} classes, not {(1, len(classifier.classes))}: it has to use num_classes"
        )
    try:
        classifier.make_optimizer(lr=1.0)
    except InstantiationException as error:
        raise reason(error, "optimizer") from error
    except (TypeError, ValueError) as error:
        raise InputError(f"optimizer: {one_line(error)}") from error


def reason(error: InstantiationException, key: str) -> BaseException:
    """Return what is behind Hydra's failure to call what the configuration names under ``key``.

    A wrong name or argument becomes an `InputError`; a failure inside the callable, a user's network perhaps, stays
    what it is and keeps its traceback.
    """
    cause = error.__cause__ or error
    if isinstance(cause, ImportError | TypeError | InstantiationException):
        return InputError(f"{key}: {one_line(cause)}")
    return cause


def check_trainer_options(options: Mapping[str, Any]) -> None:
    """Raise `InputError` for an option that Lightning's Trainer does not have."""
    known = inspect.signature(Trainer).parameters
    for name in options:
        if name not in known:
            like = get_close_matches(name, known, n=1)
            meant = f"; did you mean trainer.{like[0]}?" if like else ""
            raise InputError(f"trainer.{name}: Lightning's Trainer has no such argument{meant}")


def check_cores(trainer: Trainer) -> None:
    """Raise `InputError` for more processes on a CPU than it has cores."""
    cores = os.cpu_count() or 1
    if trainer.strategy.root_device.type == "cpu" and trainer.num_devices > cores:
        raise InputError(f"trainer.devices={trainer.num_devices}: this machine has {cores} CPU cores; ask for no more")


def check_share(batch_size: int, devices: int) -> None:
    """Raise `InputError` for a batch that cannot be shared evenly."""
    if batch_size % devices:
        raise InputError(f"data.batch_size={batch_size} is shared by {devices} devices: choose a multiple of it")


def check_lengths(config: DictConfig, data: ImageDataModule, checkpoint: Mapping[str, Any] | None) -> None:
    """Compare what the data turned out to be with the limits of an epoch and with the checkpoint that is resumed.

    Raises:
        InputError: a limit leaves no batch, or the checkpoint has other classes or a schedule of another length.
    """
    loaders = {"train": data.train_dataloader(), "val": data.val_dataloader(), "test": data.test_dataloader()}
    batches = {part: limited(part, len(loader), config) for part, loader in loaders.items()}
    if checkpoint is None:
        return
    classes = checkpoint["hyper_parameters"]["classes"]
    if list(classes) != list(data.classes):
        raise InputError(
            f"ckpt_path={config.ckpt_path} was trained on other classes ({', '.join(classes[:5])}, …) than the data's "
            f"({', '.join(data.classes[:5])}, …): resume with the same data"
        )
    steps = math.ceil(batches["train"] / config.trainer.accumulate_grad_batches) * config.trainer.max_epochs
    before = checkpoint["lr_schedulers"][0]["total_steps"]
    if min(steps, config.trainer.get("max_steps") or steps) != before:
        raise InputError(
            f"ckpt_path={config.ckpt_path}: its One Cycle schedule has {before} steps, this run's {steps}: resume with "
            "the same epochs, images, batch size and accumulation, or start anew without ckpt_path"
        )


def limited(part: str, batches: int, config: DictConfig) -> int:
    """Return how many of the batches of ``train``, ``val`` or ``test`` are used.

    Raises:
        InputError: the limit leaves none.
    """
    limit = config.trainer.get(f"limit_{part}_batches")
    if limit is None:
        return batches
    if isinstance(limit, int):
        return min(limit, batches)
    if int(limit * batches) < 1:
        raise InputError(
            f"trainer.limit_{part}_batches={limit}: less than one of the {batches} {part} batches; give a whole number"
        )
    return int(limit * batches)


def check_resumable(config: DictConfig, checkpoint: Mapping[str, Any]) -> None:
    """Raise `InputError` if this run would not go on with what the checkpoint's began."""
    if not checkpoint.get("lr_schedulers"):
        raise InputError(f"ckpt_path={config.ckpt_path} holds weights alone: there is no training in it to resume")
    before = checkpoint["hyper_parameters"]
    options: Any = OmegaConf.to_container(config, resolve=True)
    now = {
        "trainer.max_epochs": options["trainer"]["max_epochs"],
        "schedule.peak_epoch": options["schedule"]["peak_epoch"],
        "model": options["model"],
        "optimizer": options["optimizer"],
        "classifier.temperature": options["classifier"]["temperature"],
        "classifier.label_smoothing": options["classifier"]["label_smoothing"],
    }
    for key, value in now.items():
        trained = before[key.rpartition(".")[2]]
        if trained != value:
            raise InputError(
                f"ckpt_path={config.ckpt_path} was trained with {key}={trained}, not {value}: "
                "resume with the same value, or start anew without ckpt_path"
            )
