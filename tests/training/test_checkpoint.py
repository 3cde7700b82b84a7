"""A checkpoint that is damaged, changed or of another project is answered in one line that names it."""

import copy
import io
import random
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_classifier, make_data, make_trainer

from cifar_resnet.errors import InputError
from cifar_resnet.training.checkpoint import check_classes, load_classifier, read_checkpoint
from cifar_resnet.training.checkpoint_io import AtomicCheckpointIO, read_contents


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a training, as it is saved."""
    folder = tmp_path_factory.mktemp("whole")
    trainer = make_trainer(folder, max_epochs=1, plugins=[AtomicCheckpointIO()])
    trainer.fit(make_classifier(make_data()), datamodule=make_data())
    trainer.save_checkpoint(folder / "last.ckpt", weights_only=False)
    return folder / "last.ckpt"


@pytest.fixture
def contents(whole: Path) -> dict[str, Any]:
    return copy.deepcopy(read_contents(whole))


def refused(path: Path, words: str) -> None:
    with pytest.raises(InputError) as error:
        load_classifier(str(path))
    assert str(error.value).startswith(f"ckpt={path}")
    assert str(error.value).isprintable()
    assert words in str(error.value)


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    for name in ("nothing.ckpt", "", "x" * 5000):
        refused(tmp_path / name, "no such file")


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 half a zip", b"PK\x05\x06" + b"\0" * 18])
def test_a_broken_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.ckpt").write_bytes(content)
    refused(tmp_path / "broken.ckpt", "is not a readable checkpoint")


@pytest.mark.parametrize(
    "other",
    [
        {"state_dict": {}, "hyper_parameters": {"lr": 0.1}},  # another Lightning project
        {"state_dict": {}, "hyper_parameters": None},
        {"state_dict": {}, "hyper_parameters": ["temperature"]},
        {"fc.weight": torch.zeros(2)},  # weights alone
        [torch.zeros(2)],
        None,
    ],
)
def test_a_checkpoint_of_another_project(tmp_path: Path, other: Any) -> None:
    torch.save(other, tmp_path / "other.ckpt")
    refused(tmp_path / "other.ckpt", "is not a checkpoint of this project")


def same(one: Any, other: Any) -> bool:
    """Whether two contents are the same to the bit; not by their sums."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return (one.dtype, one.shape) == (other.dtype, other.shape) and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return repr(one) == repr(other)


def pack(members: dict[str, bytes]) -> bytes:
    """A zip file as torch reads it, with right sums."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return packed.getvalue()


def edited(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]


def damaged(whole: bytes, rng: random.Random, count: int) -> Iterator[bytes]:
    """A file after a disk, a network or a hurry."""
    for _ in range(count):
        yield edited(whole, rng)
    for _ in range(count // 4):
        yield whole[: rng.randrange(len(whole))]
        start, length = rng.randrange(len(whole)), rng.randrange(1, 5000)
        yield whole[:start] + whole[start + length :]
        yield whole[:start] + bytes(length) + whole[start + length :]


def rewritten(whole: bytes, rng: random.Random, count: int) -> Iterator[bytes]:
    """A file whose own sums are right, of contents that were not saved like this."""
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    assert len(pack(members)) > 10_000
    pickled = next(name for name in members if name.endswith("data.pkl"))
    tensors = [name for name in members if "/data/" in name and members[name]]
    for _ in range(count):
        yield pack(members | {pickled: edited(members[pickled], rng)})
        tensor = rng.choice(tensors)
        yield pack(members | {tensor: edited(members[tensor], rng)})
        alike = [name for name in tensors if len(members[name]) == len(members[tensor])]
        one, other = rng.choice(alike), rng.choice(alike)
        yield pack(members | {one: members[other], other: members[one]})


def attempt(path: Path, content: bytes) -> tuple[dict[str, Any] | None, str]:
    """What is read from a file with this content, or what it is refused with."""
    path.write_bytes(content)
    try:
        return read_contents(path), ""
    except InputError as error:
        return None, str(error)


MUTATIONS = 120
"""Of each of the first kind; in all it comes to about 5 times as many. Set it to 10,000 for an afternoon."""


@pytest.mark.parametrize("change", [damaged, rewritten])
def test_what_is_read_is_what_was_saved(
    tmp_path: Path, whole: Path, contents: dict[str, Any], change: Callable[..., Iterator[bytes]]
) -> None:
    path, refusals, count = tmp_path / "changed.ckpt", 0, 0
    for content in change(whole.read_bytes(), random.Random(0), MUTATIONS):
        found, line = attempt(path, content)
        if found is None:
            assert line.startswith(f"ckpt={path} is not a readable checkpoint: ")
        else:  # the name of the sum may have been hit
            assert same({key: value for key, value in found.items() if key in contents}, contents)
        refusals, count = refusals + (found is None), count + 1
    assert count >= 200
    assert refusals > 0.8 * count


def test_damage_is_seen_in_a_checkpoint_without_a_sum_of_its_contents(tmp_path: Path, contents: dict[str, Any]) -> None:
    path = tmp_path / "old.ckpt"
    torch.save(contents, path)
    assert same(read_contents(path), contents)
    content, rng = path.read_bytes(), random.Random(1)
    for _ in range(MUTATIONS // 2):
        found, line = attempt(path, edited(content, rng))
        assert "is not a readable checkpoint" in line if found is None else same(found, contents)


def test_a_changed_value_is_seen(tmp_path: Path, whole: Path) -> None:
    path = tmp_path / "changed.ckpt"
    raw = torch.load(whole, weights_only=True)
    torch.save(raw, path)
    load_classifier(str(path))
    raw["epoch"] += 1
    torch.save(raw, path)
    refused(path, "what is in it is not what was saved; use another copy")


def test_a_small_file_takes_no_more_memory_than_it_has(tmp_path: Path, whole: Path, contents: dict[str, Any]) -> None:
    path = tmp_path / "bomb.ckpt"
    many: list[Any] = ["x"]
    for _ in range(40):
        many = [many] * 10
    for bomb in (torch.zeros(1).expand(10**12), many):
        torch.save(contents | {"bomb": bomb}, path)
        refused(path, "is not a readable checkpoint")
    for method, more in ((zipfile.ZIP_DEFLATED, b""), (zipfile.ZIP_LZMA, random.Random(0).randbytes(1000))):
        with zipfile.ZipFile(path, "w") as archive, zipfile.ZipFile(whole) as honest:
            for name in honest.namelist():
                archive.writestr(name, honest.read(name))
            archive.writestr("archive/more", more, method)
        refused(path, "is not a readable checkpoint")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"x")
        archive.infolist()[0].file_size = 2**40
    refused(path, "is not a readable checkpoint")
    torch.save(contents, path, _use_new_zipfile_serialization=False)
    refused(path, "is not a readable checkpoint")
    model = {"_target_": "cifar_resnet.models.CustomResNet", "width": 1024}  # 7 GB
    contents["hyper_parameters"]["model"] = model
    torch.save(contents, path)
    refused(path, "its network cannot be made again: network.prep.0.weight is (2, 3, 3, 3), not (1024, 3, 3, 3)")


@pytest.mark.parametrize(
    ("hparams", "words"),
    [
        ({"temperature": 0}, "temperature is 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": "8"}, "temperature is '8'"),
        ({"temperature": 10**400}, "temperature is 1000"),
        ({"temperature": None}, "temperature is None"),
        ({"label_smoothing": 2}, "label_smoothing is 2"),
        ({"class_weights": "balanced"}, "class_weights is 'balanced'"),
        ({"class_weights": [1.0, -1.0, 1.0]}, "class_weights.1 is -1.0"),
        ({"class_weights": [1.0, 1.0]}, "2 class_weights for 3 classes"),
        ({"compile": "yes"}, "compile is 'yes'"),
        ({"compile_mode": "fast"}, "compile_mode is 'fast'"),
        ({"validation_name": "train"}, "validation_name is 'train'"),
        ({"max_epochs": 0}, "max_epochs is 0"),
        ({"lr_max": float("inf")}, "lr_max is inf"),
        ({"peak_epoch": [1]}, "peak_epoch is [1]"),
        ({"std": [-0.1, 0.1, 0.1]}, "std.0 is -0.1"),
        ({"test_std": [0.1, 0.0, 0.1]}, "test_std.1 is 0.0"),
        ({"mean": [0.1, 0.1]}, "mean is [0.1, 0.1]"),
        ({"test_mean": "abc"}, "test_mean is 'abc'"),
        ({"mean": torch.zeros(3)}, "mean is tensor("),
        ({"classes": "abc"}, "classes is 'abc'"),
        ({"classes": ["cat"]}, "classes is ['cat']"),
        ({"classes": ["cat", "dog", "cat"]}, "each name may be there once"),
        ({"classes": [1, 2, 3]}, "classes.0 is 1"),
        ({"classes": None}, "classes is None"),
        ({"model": None}, "model is None"),
        ({"model": {"width": 2}}, "model._target_ is {'width': 2}"),
        ({"model": {"_target_": "CustomResNet"}}, "model._target_ is 'CustomResNet'"),
        ({"model": {"_target_": "cifar_resnet.models.CustomResNet", "width": "2"}}, "model.width is '2'"),
        ({"model": {"_target_": "cifar_resnet.models.CustomResNet", "num_classes": 3}}, "num_classes cannot be set"),
        ({"optimizer": {"_target_": "torch.optim.SGD", "lr": 1.0}}, "lr cannot be set here"),
        ({"more\n\x1b[2J": 1}, r"'more\n\x1b[2J' is 1: Extra inputs are not permitted"),
        ({5: 1}, "5 is 5: Keys should be strings"),
    ],
    ids=str,
)
def test_hyperparameters_that_no_training_has(
    tmp_path: Path, contents: dict[str, Any], hparams: dict[str, Any], words: str
) -> None:
    contents["hyper_parameters"] |= hparams
    torch.save(contents, tmp_path / "odd.ckpt")
    refused(tmp_path / "odd.ckpt", words)


def test_hyperparameters_of_earlier_versions(tmp_path: Path, contents: dict[str, Any]) -> None:
    parameters = contents["hyper_parameters"]
    parameters["watched"] = parameters.pop("validation_name")
    del parameters["compile_mode"]
    torch.save(contents, tmp_path / "old.ckpt")
    hparams = load_classifier(str(tmp_path / "old.ckpt")).hparams
    assert (hparams["validation_name"], hparams["compile_mode"]) == ("test", "default")
    del parameters["watched"]
    torch.save(contents, tmp_path / "old.ckpt")
    refused(tmp_path / "old.ckpt", "is not a checkpoint that can be used")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda _: None, "it has no weights in it"),
        (lambda weights: weights | {3: torch.zeros(1)}, "it has no weights in it"),
        (lambda weights: weights | {"mean": [0.1, 0.1, 0.1]}, "it has no weights in it"),
        (lambda weights: {}, "mean is missing"),
        (lambda weights: weights | {"mean": torch.zeros(2)}, "mean is (2,), not (3,)"),
        (lambda weights: weights | {"more": torch.zeros(2)}, 'Unexpected key(s) in state_dict: "more"'),
        (lambda weights: weights | {"mean": torch.full((3,), torch.nan)}, "weights that are not finite"),
    ],
)
def test_weights_of_another_network(
    tmp_path: Path, contents: dict[str, Any], change: Callable[[Any], Any], words: str
) -> None:
    contents["state_dict"] = change(contents["state_dict"])
    torch.save(contents, tmp_path / "other.ckpt")
    refused(tmp_path / "other.ckpt", words)


def test_a_network_that_is_not_there_any_more(tmp_path: Path, contents: dict[str, Any]) -> None:
    contents["hyper_parameters"]["model"] = {"_target_": "cifar_resnet.models.CustomResNet", "depth": 2}
    torch.save(contents, tmp_path / "old.ckpt")
    refused(tmp_path / "old.ckpt", "its network cannot be made again: model: cifar_resnet.models.CustomResNet got an")


def test_a_network_that_cannot_be_made_without_values_is_loaded_and_its_shapes_compared(
    tmp_path: Path, contents: dict[str, Any]
) -> None:
    """torchvision's RegNets cannot be made on the meta device, where shapes are compared otherwise."""
    model = {"_target_": "cifar_resnet.models.from_torchvision", "name": "regnet_x_400mf"}
    classifier = make_classifier(make_data(), model=model)
    contents["hyper_parameters"]["model"] = model
    contents["state_dict"] = classifier.state_dict()
    torch.save(contents, tmp_path / "regnet.ckpt")
    assert same(dict(load_classifier(str(tmp_path / "regnet.ckpt")).state_dict()), dict(classifier.state_dict()))
    contents["hyper_parameters"]["model"] = model | {"name": "regnet_x_800mf"}
    torch.save(contents, tmp_path / "other.ckpt")
    refused(tmp_path / "other.ckpt", "its network cannot be made again: Error(s) in loading state_dict")


def test_the_classifier_is_made_from_what_was_verified(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is read once: another one may have its name a moment later."""
    opened: list[object] = []
    real_load = torch.load
    monkeypatch.setattr(torch, "load", lambda *given, **named: (opened.append(given), real_load(*given, **named))[1])
    classifier = load_classifier(str(whole))
    assert len(opened) == 1
    assert not classifier.training
    assert same(dict(classifier.state_dict()), dict(read_checkpoint(str(whole))["state_dict"]))


def test_classes_must_be_the_same_in_the_same_order() -> None:
    check_classes("a.ckpt", ("cat", "dog"), ("cat", "dog"))
    with pytest.raises(InputError, match="only in the checkpoint: dog; only in the data: cow"):
        check_classes("a.ckpt", ("cat", "dog"), ("cat", "cow"))
    with pytest.raises(InputError, match="the order differs, label 0 is cat in the checkpoint, dog in the data"):
        check_classes("a.ckpt", ("cat", "dog"), ("dog", "cat"))
