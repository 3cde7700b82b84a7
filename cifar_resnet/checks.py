"""What is known to fail before it is expensive: tried or compared in a second, ahead of images, search and training."""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import ClusterEnvironment, SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from cifar_resnet.build import build_classifier
from cifar_resnet.cli.schema import Train
from cifar_resnet.data.datamodule import ImageDataModule
from cifar_resnet.data.sources import ImageSet, InMemory
from cifar_resnet.errors import InputError, one_line
from cifar_resnet.models.libraries import origin_of, settle
from cifar_resnet.results.loggers import check_installed
from cifar_resnet.training.checkpoint import check_classes
from cifar_resnet.training.classifier import ImageClassifier
from cifar_resnet.training.sync_batch_norm import unsynchronized

OF_EARLIER_VERSIONS = {"lr_end": None, "flat_epochs": 0.0, "bias_factor": 1.0}
"""What the hyperparameters that are compared were before there were keys for them."""


class Launcher(NamedTuple):
    """What starts a process for each device, and the variables in which it says how many on how many machines."""

    name: str
    environment: type[ClusterEnvironment]
    of_a_machine: str
    machines: str


LAUNCHERS = (
    Launcher("torchrun", TorchElasticEnvironment, "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE"),
    Launcher("srun", SLURMEnvironment, "SLURM_NTASKS_PER_NODE", "SLURM_NNODES"),
)
"""Torchrun comes first, for where srun has started it, it starts the processes."""


def before_data(config: Train, trainer: Trainer, checkpoint: Mapping[str, Any]) -> None:
    """Compare the configuration with the machine and with the checkpoint that is resumed, empty where none is.

    Raises:
        InputError: something of it cannot work.
    """
    check_installed(config.loggers)
    cores, batch_size = os.cpu_count() or 1, config.data.batch_size
    on_cpu = trainer.strategy.root_device.type == "cpu"
    if on_cpu and trainer.num_devices > cores:
        raise InputError(f"trainer.devices={trainer.num_devices}: this machine has {cores} CPU cores; ask for no more")
    processes(trainer)
    if batch_size is not None and batch_size % trainer.world_size:
        raise InputError(
            f"data.batch_size={batch_size} is shared by {trainer.world_size} devices: choose a multiple of it"
        )
    launcher = trainer.strategy.launcher
    if launcher is not None and launcher.is_interactive_compatible:  # it forks or spawns
        raise InputError(
            f"trainer.devices={trainer.num_devices}: forked processes, a notebook's too, would keep what they learn "
            "to themselves; use a script with trainer.strategy=ddp, or trainer.devices=1"
        )
    if checkpoint:
        _check_resumable(config, checkpoint, trainer.world_size)


def processes(trainer: Trainer) -> None:
    """Raise `InputError` where torchrun or srun started other processes than the Trainer has devices.

    Each of them would be a run of its own, or all would wait for some that never come.
    """
    launcher = next((each for each in LAUNCHERS if each.environment.detect()), None)
    if launcher is None:
        return
    asked = trainer.num_devices, trainer.num_nodes
    variables = launcher.of_a_machine, launcher.machines
    started = tuple(int(os.environ.get(variable, own)) for variable, own in zip(variables, asked, strict=True))
    if started != asked:
        raise InputError(
            f"trainer.devices={asked[0]} trainer.num_nodes={asked[1]}: {launcher.name} started {started[0]} a machine, "
            f"on {started[1]}: set trainer.devices={started[0]} trainer.num_nodes={started[1]}"
        )


def after_data(config: Train, data: ImageDataModule, checkpoint: Mapping[str, Any]) -> None:
    """Compare what the data turned out to be with the limits of an epoch and with the checkpoint that is resumed.

    Raises:
        InputError: a limit leaves no batch, or the checkpoint has other classes or a schedule of another length.
    """
    limits, accumulated = config.trainer, config.trainer.accumulate_grad_batches
    batches = batches_used("train", len(data.train_dataloader()), limits.limit_train_batches)
    batches_used("val", len(data.val_dataloader()), limits.limit_val_batches)
    batches_used("test", len(data.test_dataloader()), limits.limit_test_batches)
    if batches % accumulated:
        raise InputError(
            f"trainer.limit_train_batches={limits.limit_train_batches} leaves {batches} batches, no multiple of "
            f"trainer.accumulate_grad_batches={accumulated}: the last step of every epoch would be a weaker one"
        )
    if not checkpoint:
        return
    check_classes(f"ckpt_path={config.ckpt_path}", checkpoint["hyper_parameters"]["classes"], data.classes)
    schedule = checkpoint["lr_schedulers"][0]
    steps = batches // accumulated * limits.max_epochs
    before = schedule.get("total_steps") and schedule["total_steps"] + schedule.get("flat_steps", 0)
    if steps != before:
        raise InputError(
            f"ckpt_path={config.ckpt_path}: its One Cycle schedule has {before} steps, this run's {steps}: resume with "
            "the same epochs, images, batch size and accumulation, or start anew without ckpt_path"
        )


def batches_used(part: str, batches: int, limit: float | None) -> int:
    """Return how many of the ``train``, ``val`` or ``test`` batches a limit leaves; raise `InputError` for none."""
    if limit is None:
        return batches
    if isinstance(limit, int):
        return min(limit, batches)
    if int(limit * batches) < 1:
        raise InputError(
            f"trainer.limit_{part}_batches={limit}: less than one of the {batches} {part} batches; give a whole number"
        )
    return int(limit * batches)


def try_classifier(config: Train, resumed: bool = False) -> ImageClassifier:
    """Return the classifier as it is for two blank images, after it has passed one through, and made its optimizer.

    Raises:
        InputError: the network does not return a logit a class, or network or optimizer do not take their arguments.
    """
    uncompiled = config.classifier.model_copy(update={"compile": False})  # it takes a minute
    side = config.data.image_size
    blank = ImageSet(np.zeros((2, side, side, 3), np.uint8), np.arange(2), ("one", "other"))
    data = ImageDataModule(InMemory(blank, blank), image_size=side)
    data.setup()
    with isolate_rng():
        classifier = build_classifier(config.model_copy(update={"classifier": uncompiled}), data, resumed).eval()
        outputs = _outputs_of(classifier, config)
        shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        if shape != (1, 2):
            raise InputError(
                f"model._target_={config.model.target}: it returns {shape} for an image and 2 classes, not (1, 2): "
                "it has to use num_classes, and to return logits alone"
            )
        if config.trainer.sync_batchnorm and (other := unsynchronized(classifier)):
            raise InputError(
                f"trainer.sync_batchnorm=true: the network's {other} is a batch norm of its own kind, which cannot be "
                "synchronized; leave it out"
            )
        try:
            classifier.make_optimizer(lr=1.0)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"optimizer: {one_line(error)}") from error
    return classifier


@torch.no_grad()
def _outputs_of(classifier: ImageClassifier, config: Train) -> object:
    """Pass a blank image through; what goes wrong inside of a user's own network keeps its traceback."""
    try:
        return classifier.network(classifier.normalize(classifier.example_input_array))
    except (RuntimeError, ValueError, AssertionError) as error:
        if (origin := origin_of(config.model.call)) is None:
            raise
        side = config.model.input_size or config.data.image_size
        raise InputError(
            f"model.name={config.model.name}: it takes no images of {side}×{side} ({one_line(error)[:100]}): "
            f"scale them by model.input_size={origin.side}"
        ) from error


def _check_resumable(config: Train, checkpoint: Mapping[str, Any], devices: int) -> None:
    schedulers = checkpoint.get("lr_schedulers")
    if not (isinstance(schedulers, list) and schedulers and isinstance(schedulers[0], dict)):
        raise InputError(f"ckpt_path={config.ckpt_path} holds weights alone: there is no training in it to resume")
    if checkpoint.get("devices", devices) != devices:  # older versions did not say
        raise InputError(
            f"ckpt_path={config.ckpt_path} was trained on {checkpoint['devices']} devices, not {devices}: resume with "
            "as many, which share each batch in the same way"
        )
    parameters = checkpoint["hyper_parameters"]
    before = OF_EARLIER_VERSIONS | parameters
    before |= {"class_weights": "balanced" if parameters.get("class_weights") else "null"}
    before |= {"lr_end": _said(before["lr_end"]), "averaging": checkpoint.get("averaged", "null")}
    now = {
        "trainer.max_epochs": config.trainer.max_epochs,
        "schedule.peak_epoch": config.schedule.peak_epoch,
        "model": settle(config.model.call),
        "optimizer": config.optimizer.call,
        "classifier.temperature": config.classifier.temperature,
        "classifier.label_smoothing": config.classifier.label_smoothing,
        "classifier.class_weights": config.classifier.class_weights or "null",
        "schedule.lr_min": config.schedule.lr_min,
        "schedule.lr_max": config.schedule.lr_max,
        "schedule.lr_end": _said(config.schedule.lr_end),
        "schedule.flat_epochs": config.schedule.flat_epochs,
        "schedule.bias_factor": config.schedule.bias_factor,
        "averaging": config.averaging.model_dump() if config.averaging.decay else "null",
    }
    for key, value in now.items():
        trained = before[key.rpartition(".")[2]]
        if value not in (None, trained):
            reason = " (in a longer schedule every rate would have been another)" if key == "trainer.max_epochs" else ""
            raise InputError(
                f"ckpt_path={config.ckpt_path} was trained with {key}={trained}, not {value}{reason}: "
                "resume with the same value, or start anew without ckpt_path"
            )


def _said(value: float | None) -> float | str:
    """Return a value as one types it, which is compared: None would mean that any is right."""
    return "null" if value is None else value
