"""What cannot work is refused before an image is decoded or a step is trained, and nothing is written."""

import os
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cifar_resnet import build, checks, experiment, find_lr, train
from cifar_resnet.cli.compose import compose
from cifar_resnet.data.sources import Digits, ImageSet
from cifar_resnet.errors import InputError
from cifar_resnet.training.checkpoint import read_checkpoint

SMALL = [
    "data=digits",
    "data.train_size=200",
    "model.width=2",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=2",
    "schedule.peak_epoch=1",
    "gallery.count=1",
    "schedule.lr_min=0.01",
    "schedule.lr_max=0.1",
]


class Narrow(nn.Module):
    """A network that does not care how many classes there are."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.layer = nn.Conv2d(3, 7, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x).flatten(1)


class Generous(nn.Module):
    """A network that returns more than logits."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.layer = nn.Conv2d(3, num_classes, 32)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.layer(x).flatten(1), x


class Normed(nn.Sequential):
    """A network with a batch norm that is an activation as well."""

    class Active(nn.BatchNorm2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).relu()

    def __init__(self, num_classes: int):
        super().__init__(nn.Conv2d(3, num_classes, 32), self.Active(num_classes), nn.Flatten())


class Faulty(nn.Module):
    """A network with a mistake in it."""

    def __init__(self, num_classes: int):
        super().__init__()
        raise ZeroDivisionError("a mistake of the network's author")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@cache
def digits() -> tuple[ImageSet, ImageSet]:
    return Digits().train(), Digits().test()


@pytest.fixture(autouse=True)
def _digits_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = digits()
    monkeypatch.setattr(Digits, "train", lambda _: train)
    monkeypatch.setattr(Digits, "test", lambda _: test)


@pytest.fixture
def no_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading the data set is a failure."""

    def read(self: Digits) -> None:
        raise AssertionError("images were decoded first")

    monkeypatch.setattr(Digits, "train", read)
    monkeypatch.setattr(Digits, "test", read)


def refused(run: Callable[..., Any], *overrides: str) -> str:
    """Return what a run says that is refused with one line, leaving nothing."""
    before = sorted(Path().rglob("*"))
    with pytest.raises(InputError) as error:
        run(*overrides)
    assert "\n" not in str(error.value)
    assert sorted(Path().rglob("*")) == before
    return str(error.value)


TORCHRUN = {"TORCHELASTIC_RUN_ID": "1", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
SLURM = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "job", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}


@pytest.mark.usefixtures("no_images")
@pytest.mark.parametrize(
    ("variables", "words"),
    [
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "1"}, "torchrun started 2 a machine, on 1"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "1", "GROUP_WORLD_SIZE": "2"}, "torchrun started 1 a machine, on 2"),
        (SLURM | {"SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1"}, "srun started 2 a machine, on 1"),
        (SLURM | {"SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": "2"}, "srun started 1 a machine, on 2"),
    ],
)
def test_as_many_devices_as_a_launcher_started_processes(
    variables: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise each process would be a run of its own."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for run, typed in ((train, SMALL), (find_lr, SMALL[:-2])):
        assert refused(run, *typed).startswith(f"trainer.devices=1 trainer.num_nodes=1: {words}: set trainer.devices=")


@pytest.mark.usefixtures("no_images")
@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("trainer.strategy=foo", "strategy='foo'"),
        ("trainer.devices=[0,1]", "`devices`"),
        ("trainer.devices=1000", f"this machine has {os.cpu_count()} CPU cores"),
        ("trainer.accelerator=gpu", "accelerator=auto"),
        (
            "trainer.sync_batchnorm=true model._target_=test_checks.Normed ~model.width",
            "the network's Active is a batch norm of its own kind",
        ),
        ("trainer.devices=2 trainer.strategy=ddp_fork", "would keep what they learn"),
        (
            "+optimizer.foo=1",
            "torch.optim.SGD got an unexpected keyword argument 'foo'; it takes params, lr",
        ),
        ("optimizer._target_=torch.optim.Foo", "optimizer._target_=torch.optim.Foo: there is nothing by that name"),
        ("optimizer._target_=builtins.dict", "optimizer: "),
        ("optimizer.momentum=0", "optimizer: Nesterov momentum requires a momentum"),
        ("+model.foo=1", "CustomResNet got an unexpected keyword argument 'foo'; it takes width"),
        (
            "model._target_=cifar_resnet.models.Nope",
            "cifar_resnet.models.Nope: there is nothing by that name",
        ),
        ("model._target_=nope.Nope", "(No module named 'nope'); correct it, or install its package"),
        ("model._target_=builtins.dict", "model._target_=builtins.dict: it makes a dict, not a Module"),
        ("model._target_=torch.pi", "model: torch.pi 3.14"),
        ("model._target_=torch.nn.Identity", "model._target_=torch.nn.Identity: it returns (1, 3, 32, 32)"),
        (
            "model._target_=test_checks.Narrow ~model.width",
            "it returns (1, 7) for an image and 2 classes, not (1, 2)",
        ),
        ("model._target_=test_checks.Generous ~model.width", "it returns tuple for an image and 2 classes, not (1, 2)"),
    ],
)
def test_a_wrong_part_is_found_before_the_images(typed: str, words: str) -> None:
    assert words in refused(train, *SMALL, *typed.split())
    assert words in refused(find_lr, *SMALL[:-2], *typed.split())


@pytest.mark.usefixtures("no_images")
@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("gallery.layer=nope", "its stages are prep, layer1, layer2, layer3, pool, fc"),
        ("gallery.layer=fc", "gallery.layer=fc: gradcam cannot explain it"),
        ("gallery.layer=fc gallery.method=eigencam", "gallery.layer=fc: eigencam cannot explain it"),
        ("ckpt_path=nope.ckpt", "ckpt_path=nope.ckpt: no such file"),
        ("ckpt_path=/", "ckpt_path=/: no such file"),
    ],
)
def test_a_gallery_or_checkpoint_that_cannot_be_is_found_before_the_images(typed: str, words: str) -> None:
    assert words in refused(train, *SMALL, *typed.split())


@pytest.mark.usefixtures("no_images")
def test_an_absent_accelerator_is_found_before_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert "accelerator=auto" in refused(train, *SMALL, "trainer.accelerator=cuda")


def test_a_batch_that_devices_cannot_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    line = refused(train, *SMALL, "trainer.devices=2", "data.batch_size=21")
    assert "data.batch_size=21 is shared by 2 devices" in line


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (
            "+data.source.foo=1",
            "data.source: cifar_resnet.data.sources.Digits got an unexpected keyword argument 'foo'",
        ),
        ("data.source._target_=os.getcwd", "data.source._target_=os.getcwd: it makes a str, not a Source"),
        ("data.source._target_=nope.nope", "data.source._target_=nope.nope: there is nothing by that name"),
        ("data=folder data.root=nope", "nope: no such folder"),
        ("data.val_size=3", "at least one image of each of the 10 classes"),
        ("data.val_size=5000", "the 898 training images that there are"),
        ("data.train_size=5000", "the 898 training images that there are"),
        ("data.train_size=5", "at least one image of each of the 10 classes"),
        ("trainer.limit_train_batches=0.01", "less than one of the 3 train batches"),
        ("trainer.limit_val_batches=0.01", "less than one of the 1 val batches"),
        ("trainer.limit_test_batches=0.5", "less than one of the 1 test batches"),
    ],
)
def test_what_does_not_fit_the_images_is_found_before_the_search(typed: str, words: str) -> None:
    overrides = [*SMALL, "schedule.lr_min=null", *typed.split()]
    assert words in refused(train, *overrides)


def test_a_mistake_in_a_users_network_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        train(*SMALL, "model._target_=test_checks.Faulty", "~model.width")


def test_the_rehearsal_leaves_the_random_numbers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def first_weights(rehearsed: bool) -> torch.Tensor:
        config = compose("train", *SMALL)
        build.prepare(config.seed)
        if rehearsed:
            checks.try_classifier(config)
        return (
            build.build_classifier(config, experiment.read_images(build.build_data(config, 1))).network.prep[0].weight
        )  # type: ignore[index]

    assert torch.equal(first_weights(rehearsed=True), first_weights(rehearsed=False))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a run of `SMALL`."""
    folder = tmp_path_factory.mktemp("trained")
    train(*SMALL, f"trainer.default_root_dir={folder}")
    return folder / "lightning_logs" / "version_0" / "checkpoints" / "last.ckpt"


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("trainer.max_epochs=3", "was trained with trainer.max_epochs=2, not 3 (in a longer schedule"),
        ("schedule.peak_epoch=0.5", "was trained with schedule.peak_epoch=1.0, not 0.5"),
        ("model.width=3", "was trained with model="),
        ("model=resnet18", "was trained with model="),
        ("optimizer=adamw", "was trained with optimizer="),
        ("optimizer.weight_decay=0.1", "was trained with optimizer="),
        ("classifier.temperature=1", "was trained with classifier.temperature=8.0, not 1"),
        ("classifier.label_smoothing=0.1", "was trained with classifier.label_smoothing=0.0, not 0.1"),
        ("classifier.class_weights=balanced", "was trained with classifier.class_weights=null, not balanced"),
        ("schedule.lr_max=0.2", "was trained with schedule.lr_max=0.1, not 0.2"),
        ("schedule.lr_end=0", "was trained with schedule.lr_end=null, not 0"),
        ("schedule.flat_epochs=0.5", "was trained with schedule.flat_epochs=0.0, not 0.5"),
        ("schedule.bias_factor=64", "was trained with schedule.bias_factor=1.0, not 64"),
        ("data.batch_size=50", "its One Cycle schedule has 6 steps, this run's 8"),
        ("data.train_size=300", "its One Cycle schedule has 6 steps, this run's 8"),
        ("trainer.accumulate_grad_batches=3", "its One Cycle schedule has 6 steps, this run's 2"),
        ("trainer.limit_train_batches=2", "its One Cycle schedule has 6 steps, this run's 4"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(trained: Path, typed: str, words: str) -> None:
    assert words in refused(train, *SMALL, f"ckpt_path={trained}", typed)


def test_a_checkpoint_of_weighted_classes_is_refused_without_weights(trained: Path, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(str(trained))
    checkpoint["hyper_parameters"]["class_weights"] = [1.0] * 10
    torch.save(checkpoint, tmp_path / "weighted.ckpt")
    line = refused(train, *SMALL, f"ckpt_path={tmp_path}/weighted.ckpt")
    assert "was trained with classifier.class_weights=balanced, not null" in line


def test_a_checkpoint_of_several_devices_is_refused_on_one(trained: Path, tmp_path: Path) -> None:
    checkpoint = torch.load(trained, weights_only=True)
    del checkpoint["sha256"]
    other = tmp_path / "other.ckpt"
    torch.save(checkpoint | {"devices": 2}, other)
    assert "was trained on 2 devices, not 1" in refused(train, *SMALL, f"ckpt_path={other}")


def test_a_checkpoint_of_other_classes_is_refused(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, part in zip(("train", "test"), digits(), strict=True):
        renamed = replace(part, classes=tuple("abcdefghij"))
        monkeypatch.setattr(Digits, name, lambda _, renamed=renamed: renamed)
    line = refused(train, *SMALL, f"ckpt_path={trained}")
    assert (
        f"ckpt_path={trained}: its classes are not those of the data (only in the checkpoint: 0, 1, 2, 3, 4 and 5 more;"
        in line
    )


def test_a_broken_or_foreign_checkpoint_is_refused(trained: Path, tmp_path: Path) -> None:
    whole = trained.read_bytes()
    for content in (b"", b"garbage", whole[:-500], whole[:100]):
        (tmp_path / "broken.ckpt").write_bytes(content)
        line = refused(train, *SMALL, "ckpt_path=broken.ckpt")
        assert line.startswith("ckpt_path=broken.ckpt is not a readable checkpoint")
    for foreign in ({"state_dict": {}}, {"hyper_parameters": {"lr": 1}}, [1, 2], nn.Linear(2, 2).state_dict()):
        torch.save(foreign, tmp_path / "foreign.ckpt")
        line = refused(train, *SMALL, "ckpt_path=foreign.ckpt")
        assert "is not a checkpoint of this project" in line
    for nothing in ([], None, [1]):
        torch.save(read_checkpoint(str(trained)) | {"lr_schedulers": nothing}, tmp_path / "weights.ckpt")
        assert "holds weights alone" in refused(train, *SMALL, "ckpt_path=weights.ckpt")
