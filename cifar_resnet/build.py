"""From a configuration to a prepared process, data, classifier and trainer: the one place that builds."""

import ctypes
import logging
import platform
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import CheckpointIO
from lightning.pytorch.plugins.layer_sync import LayerSync
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from pydantic import ValidationError
from rich import get_console

from cifar_resnet.callbacks.averaging import MovingAverage
from cifar_resnet.callbacks.progress import StepProgressBar
from cifar_resnet.callbacks.resumption import ResumableCheckpoint
from cifar_resnet.cli.schema import Evaluate, Train
from cifar_resnet.cli.sections import Call, Images
from cifar_resnet.data.datamodule import ImageDataModule
from cifar_resnet.data.patches import patch_covariance
from cifar_resnet.data.sources import Source
from cifar_resnet.errors import InputError, one_line
from cifar_resnet.models.libraries import has_weights, origin_of, settle
from cifar_resnet.training.checkpoint_io import AtomicCheckpointIO
from cifar_resnet.training.classifier import ImageClassifier, balanced_weights
from cifar_resnet.training.named import make
from cifar_resnet.training.precision import Choice, fastest_precision, mixed_precision
from cifar_resnet.training.sync_batch_norm import CPUSyncBatchNorm
from cifar_resnet.training.trust import allowed_call, without_weights

IGNORED_WARNINGS = (
    "The '.*_dataloader' does not have many workers",  # images are in memory: see `ImageDataModule`
    ".*AMP with fp16 is not supported on CPU",  # the experiment says it in its own words
    "You passed in a `val_dataloader` but have no `validation_step`",  # the search looks at the training loss alone
    ".*The dirpath has changed from",  # a run that goes on from another's checkpoint has a folder of its own
    "Checkpoint directory .* exists and is not empty",  # one that goes on with its own has the same
    "Experiment logs directory .* exists and is not empty",  # what metrics.csv held is kept: see `results/loggers.py`
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning's own business
    ".*recommended to use `self.log\\(.*sync_dist",  # the metrics are gathered from all devices before they are logged
    "Image size .* exceeds limit",  # such an image is refused by its name and size
    ".*`torch.jit.trace",  # how TensorBoard draws the graph
    ".*functional.all_gather is deprecated",  # Lightning's own business
)
"""Beginnings of warnings that tell the user nothing that can be acted on."""


def prepare(seed: int) -> None:
    """Seed everything and set up the process."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric.strategies.launchers").setLevel(logging.INFO)  # says which device has ended
    for message in IGNORED_WARNINGS:
        warnings.filterwarnings("ignore", message)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # of an earlier run in this process, whose other devices have ended
    seed_everything(seed, workers=True, verbose=False)
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


def build_data(config: Train, devices: int) -> ImageDataModule:
    """Make the data module, which has read no image yet; raise `InputError` where `data.source` makes no `Source`."""
    return ImageDataModule(
        build_source(config),
        **config.data.model_dump(exclude=set(Images.model_fields)),
        seed=config.seed,
        accumulate_grad_batches=config.trainer.accumulate_grad_batches,
        devices=devices,
        machines=config.trainer.num_nodes,
    )


def build_source(config: Train | Evaluate) -> Source:
    """Make what reads the images; raise `InputError` where `data.source` does not."""
    return make(Source, config.data.source.call, "data.source")  # type: ignore[type-abstract]


def with_trained_source(config: Evaluate, checkpoint: Mapping[str, Any]) -> Evaluate:
    """Return the configuration with the source of the images that a checkpoint was trained on, if it names none itself.

    What it says of where they are holds. Nothing is fetched for a checkpoint's sake, which may be a stranger's.

    Raises:
        InputError: the checkpoint does not say, or it names a source that is neither known nor trusted.
    """
    if config.data.source is not None:
        return config
    origin, trained = f"ckpt={config.ckpt}", checkpoint.get("source")
    try:
        source = Call.model_validate(trained).call
    except ValidationError as error:
        hint = "give data=cifar10, or data=folder data.root=DIR"
        raise InputError(f"{origin} does not say what it was trained on, as earlier versions do not: {hint}") from error
    moved = config.data.model_dump(include=source.keys(), exclude_none=True)
    source = allowed_call(Source, source | moved, config.trust, f"{origin}: its source")
    images = config.data.model_copy(update={"source": Call.model_validate(source)})
    return config.model_copy(update={"data": images})


def build_classifier(config: Train, data: ImageDataModule, resumed: bool = False) -> ImageClassifier:
    """Make the network, with what it needs to know of the data.

    One that begins with the weights of a library has its images normalized as they were for these.

    Args:
        config: has it in ``model``.
        data: that was read.
        resumed: its weights will be those of a checkpoint, so none are fetched.

    Raises:
        InputError: ``model`` makes no network.
    """
    model, origin = settle(config.model.call), origin_of(config.model.call)
    statistics = {name: getattr(data, name) for name in ("mean", "std", "test_mean", "test_std")}
    if origin is not None and has_weights(model):
        statistics = {name: list(getattr(origin, name.removeprefix("test_"))) for name in statistics}
    weights = balanced_weights([*data.class_counts.values()]) if config.classifier.class_weights else None
    covariance = patch_covariance(data.train.images, data.std) if config.model.whiten and data.train else None
    classifier = ImageClassifier(
        model=without_weights(model) if resumed else model,
        classes=list(data.classes),
        **statistics,
        optimizer=config.optimizer.call,
        **config.schedule.model_dump(),
        max_epochs=config.trainer.max_epochs,
        **config.classifier.model_dump() | {"class_weights": weights},
        image_size=data.image_size,
        validation_name=data.validation_name,
        flip=bool(data.flip),
        patch_covariance=covariance,
    )
    classifier.hparams["model"] = model
    return classifier


def kind_of_device(config: Train | Evaluate) -> torch.device:
    """Return the kind of device that `trainer.accelerator` comes to on this machine, without an index."""
    asked = config.trainer.accelerator
    found = torch.accelerator.current_accelerator(check_available=True) if asked != "cpu" else None
    return found or torch.device("cpu")


def choose_precision(config: Train | Evaluate, checkpoint: Mapping[str, Any]) -> Choice:
    """Choose what `trainer.precision` leaves open: as in the training that is gone on with, else what is fastest.

    A checkpoint of a version that had no choice was trained in 32-true.
    """
    asked, device, reason = config.trainer.precision, kind_of_device(config), "as asked for"
    alone = config.trainer.devices == 1 and (isinstance(config, Evaluate) or config.trainer.num_nodes == 1)
    if asked == "auto" and checkpoint:
        asked, reason = checkpoint.get("precision", "32-true"), "as before"
    if asked in (16, "16-mixed"):
        return mixed_precision(device, alone)
    if asked != "auto":
        return Choice(str(asked), reason)
    if isinstance(config, Train) and config.trainer.gradient_clip_val and config.optimizer.fused:
        return Choice("32-true", "a fused optimizer clips gradients in no other")
    return fastest_precision(device, alone)


def build_trainer(config: Train | Evaluate, callbacks: Sequence[Callback], precision: str) -> Trainer:
    """Make Lightning's Trainer; raise `InputError` where this machine cannot do what the configuration asks for."""
    options = config.trainer.model_dump() | {"precision": precision}
    in_terminal = get_console().is_terminal
    own: list[Callback] = [LearningRateMonitor("step")]
    if in_terminal and config.trainer.enable_progress_bar:
        own.append(StepProgressBar())
    if isinstance(config, Train) and config.data.val_size:  # before the next one, which keeps what it is compared with
        own.append(ModelCheckpoint(filename="best", enable_version_counter=False, monitor="val/accuracy", mode="max"))
    if isinstance(config, Train) and config.averaging.decay:  # before those that save
        own.append(MovingAverage(config.averaging.decay, config.averaging.every))
    if isinstance(config, Train):
        own.append(ModelCheckpoint(filename="last", enable_version_counter=False, save_on_train_epoch_end=True))
        own.append(ResumableCheckpoint(config.checkpoint.minutes, config.data.source.call))
    plugins: list[CheckpointIO | LayerSync] = [AtomicCheckpointIO()]
    if isinstance(config, Train) and config.trainer.sync_batchnorm and kind_of_device(config).type == "cpu":
        options["sync_batchnorm"] = False  # of PyTorch, which has it on GPUs alone
        plugins.append(CPUSyncBatchNorm())
    options |= {
        "logger": TensorBoardLogger(config.trainer.default_root_dir, "lightning_logs", default_hp_metric=False),
        "callbacks": [*callbacks, *own],
        "plugins": plugins,
        "enable_progress_bar": in_terminal and config.trainer.enable_progress_bar,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,  # the data module gives each device its share of a batch itself
        "benchmark": not config.trainer.deterministic,
    }
    try:
        return Trainer(**options)
    except (MisconfigurationException, TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"trainer: {one_line(error)} (accelerator=auto devices=1 strategy=auto precision=32-true work anywhere)"
        ) from error
