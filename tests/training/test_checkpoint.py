"""A file that is no checkpoint of this project is answered in one line that names it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_classifier, make_data, make_trainer

from cifar_resnet.errors import InputError
from cifar_resnet.training.checkpoint import check_classes, load_classifier, read_checkpoint


def refused(path: Path, words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        load_classifier(str(path))
    assert str(error.value).startswith(f"ckpt={path}")
    assert "\n" not in str(error.value)


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    refused(tmp_path / "nothing.ckpt", "no such file")
    refused(tmp_path, "no such file")


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 half a zip"])
def test_a_broken_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.ckpt").write_bytes(content)
    refused(tmp_path / "broken.ckpt", "is not a readable checkpoint")


@pytest.mark.parametrize(
    "other",
    [
        {"state_dict": {}, "hyper_parameters": {"lr": 0.1}},  # another Lightning project
        {"fc.weight": torch.zeros(2)},  # weights alone
        [torch.zeros(2)],
    ],
)
def test_a_checkpoint_of_another_project(tmp_path: Path, other: Any) -> None:
    torch.save(other, tmp_path / "other.ckpt")
    refused(tmp_path / "other.ckpt", "is not a checkpoint of this project")


def test_a_network_that_is_not_there_any_more(tmp_path: Path) -> None:
    data = make_data()
    trainer, path = make_trainer(tmp_path), tmp_path / "old.ckpt"
    trainer.strategy.connect(make_classifier(data))
    trainer.save_checkpoint(path)
    checkpoint = read_checkpoint(str(path))
    checkpoint["hyper_parameters"]["model"]["_target_"] = "cifar_resnet.models.Gone"
    torch.save(checkpoint, path)
    refused(path, "its network cannot be made again")


def test_classes_must_be_the_same_in_the_same_order() -> None:
    check_classes("a.ckpt", ("cat", "dog"), ("cat", "dog"))
    with pytest.raises(InputError, match="only in the checkpoint: dog; only in the data: cow"):
        check_classes("a.ckpt", ("cat", "dog"), ("cat", "cow"))
    with pytest.raises(InputError, match="the order differs, label 0 is cat in the checkpoint, dog in the data"):
        check_classes("a.ckpt", ("cat", "dog"), ("dog", "cat"))
