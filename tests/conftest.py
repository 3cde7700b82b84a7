"""What several tests share: small image sets, a small classifier, a quick Trainer, a small CIFAR-10 archive."""

import hashlib
import io
import os
import pickle
import socket
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from lightning.pytorch import Trainer, seed_everything
from torch.multiprocessing import start_processes
from torchvision.datasets import CIFAR10

from cifar_resnet.data.datamodule import ImageDataModule
from cifar_resnet.data.sources import ImageSet, InMemory, Source
from cifar_resnet.training import precision
from cifar_resnet.training.classifier import ImageClassifier

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of what a test starts: as many tests run at once as there are cores
torch.set_num_threads(1)
settings.register_profile("untimed", deadline=None)  # a busy machine is no error
settings.load_profile("untimed")

SGD = {"_target_": "torch.optim.SGD", "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}

DATA = {
    "batch_size": 16,
    "num_workers": 0,
    "padding": "reflect",
    "flip": True,
    "cutout": 8,
    "val_size": 0,
    "train_size": None,
    "test_statistics": "train",
    "seed": 0,
}


@pytest.fixture(autouse=True)
def _a_processor_without_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test sees does not depend on what the processor has; those of the choice of a precision set it anew."""
    monkeypatch.setattr(precision, "bf16_instructions", list)


def well_formed(images: ImageSet, count: int) -> bool:
    """Whether a source gave this many images as every source has to."""
    return (
        images.images.shape == (count, 32, 32, 3)
        and images.images.dtype == np.uint8
        and images.images.flags.c_contiguous
        and images.labels.shape == (count,)
        and images.labels.dtype == np.int64
    )


def make_image_set(count: int, classes: int = 3, seed: int = 0) -> ImageSet:
    """Noise with a class-dependent tint, so that a small network can learn it; every class occurs."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    images = rng.integers(0, 150, (count, 32, 32, 3)) + (labels[:, None, None, None] == np.arange(3)) * 80
    return ImageSet(
        images.astype(np.uint8), labels.astype(np.int64), tuple(f"class{label}" for label in range(classes))
    )


def make_data(train: int = 48, test: int = 12, **options: Any) -> ImageDataModule:
    return read_data(InMemory(make_image_set(train), make_image_set(test, seed=1)), **options)


def read_data(source: Source, **options: Any) -> ImageDataModule:
    """A data module that has read all images."""
    data = ImageDataModule(source, **DATA | options)
    data.setup()
    return data


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


def start(run: Callable[..., None], processes: int, *arguments: Any) -> None:
    """Run a function in several processes at once, which load PyTorch and Lightning together."""
    get_context("forkserver").set_forkserver_preload(["cifar_resnet.build"])
    start_processes(run, arguments, processes, start_method="forkserver")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def official(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A small archive in the official format, served by this machine, and its batches."""
    rng = np.random.default_rng(0)
    names = [name for name, _ in CIFAR10.train_list + CIFAR10.test_list]
    batches = {
        name: {"data": rng.integers(0, 256, (2, 3072), dtype=np.uint8), "labels": rng.integers(0, 10, 2).tolist()}
        for name in names
    }
    meta = {"label_names": [f"thing{number}" for number in range(10)]}
    served = tmp_path / "served" / CIFAR10.filename
    served.parent.mkdir()
    sums = {}
    with tarfile.open(served, "w:gz") as tar:
        for name, content in {**batches, CIFAR10.meta["filename"]: meta}.items():
            pickled = pickle.dumps(content)
            sums[name] = hashlib.md5(pickled).hexdigest()
            member = tarfile.TarInfo(f"{CIFAR10.base_folder}/{name}")
            member.size = len(pickled)
            tar.addfile(member, io.BytesIO(pickled))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=served.parent))
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{server.server_port}/{CIFAR10.filename}")
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(served.read_bytes()).hexdigest())
    monkeypatch.setattr(CIFAR10, "train_list", [[name, sums[name]] for name in names[:5]])
    monkeypatch.setattr(CIFAR10, "test_list", [[names[5], sums[names[5]]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": sums[CIFAR10.meta["filename"]]})
    yield SimpleNamespace(served=served, batches=batches, names=names, server=server)
    server.shutdown()
    server.server_close()
