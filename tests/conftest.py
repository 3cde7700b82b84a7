"""What several tests share: small image sets, a small classifier, a quick Trainer, composed configurations."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
from hydra.core.global_hydra import GlobalHydra
from lightning.pytorch import Trainer, seed_everything
from omegaconf import DictConfig

from cifar_resnet.classifier import ImageClassifier
from cifar_resnet.config import CONFIGS
from cifar_resnet.datamodule import ImageDataModule
from cifar_resnet.sources import ImageSet

SGD = {"_target_": "torch.optim.SGD", "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}


def make_image_set(count: int, classes: int = 3, seed: int = 0) -> ImageSet:
    """Noise with a class-dependent tint, so that a small network can learn it; every class occurs."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    images = rng.integers(0, 150, (count, 32, 32, 3)) + (labels[:, None, None, None] == np.arange(3)) * 80
    return ImageSet(
        images.astype(np.uint8), labels.astype(np.int64), tuple(f"class{label}" for label in range(classes))
    )


def make_data(train: int = 48, test: int = 12, **options: Any) -> ImageDataModule:
    options = {"batch_size": 16, "num_workers": 0} | options
    return ImageDataModule(make_image_set(train), make_image_set(test, seed=1), **options)


def make_classifier(data: ImageDataModule, seed: int = 0, **options: Any) -> ImageClassifier:
    seed_everything(seed, verbose=False)
    return ImageClassifier(
        **{
            "model": {"_target_": "cifar_resnet.models.CustomResNet", "width": 2},
            "classes": list(data.classes),
            "mean": data.mean,
            "std": data.std,
            "test_mean": data.test_mean,
            "test_std": data.test_std,
            "optimizer": SGD,
            "lr_min": 0.01,
            "lr_max": 0.1,
            "peak_epoch": 1,
            "max_epochs": 3,
        }
        | options
    )


def make_trainer(folder: Path, **options: Any) -> Trainer:
    return Trainer(
        **{
            "accelerator": "cpu",
            "max_epochs": 3,
            "default_root_dir": folder,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "use_distributed_sampler": False,
        }
        | options
    )


@pytest.fixture
def compose() -> Iterator[Callable[..., DictConfig]]:
    """Compose a command's configuration as its script does: ``compose("train", "seed=1")``."""
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        yield lambda name, *overrides: hydra.compose(name, overrides=list(overrides))
    GlobalHydra.instance().clear()
