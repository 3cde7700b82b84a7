"""The command line: bad input ends as one line that says what to do, good input arrives as it was meant."""

import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given
from hypothesis import strategies as st

from cifar_resnet.cli import command, overrides
from cifar_resnet.cli.compose import compose
from cifar_resnet.cli.overrides import CONFIGS, read_override
from cifar_resnet.errors import InputError

Run = Callable[..., list[Any]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """``run("seed=1")`` is ``python scripts/train.py seed=1`` with a job that only keeps the configuration."""
    monkeypatch.chdir(tmp_path)

    def run(*overrides: str, name: str = "train") -> list[Any]:
        monkeypatch.setattr(sys, "argv", [f"scripts/{name}.py", *overrides])
        given: list[Any] = []
        command.run(name, given.append)
        return given

    return run


@pytest.fixture
def refusal(run: Run, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., str]:
    """Return the one line with which a command line is refused, and see that there is nothing else to see."""

    def refusal(*overrides: str, name: str = "train") -> str:
        with pytest.raises(SystemExit) as stopped:
            run(*overrides, name=name)
        out, err = capfd.readouterr()
        assert stopped.value.code == 2
        assert out == ""
        assert err.startswith(f"{name}.py: ")
        assert err.count("\n") == 1
        assert "Traceback" not in err
        assert "Error executing job" not in err
        assert list(tmp_path.iterdir()) == []
        return err

    return refusal


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("data.batchsize=4", "data.batch_size"),
        ("batch_size=4", "data.batch_size"),
        ("optimiser.momentum=0.9", "optimizer.momentum"),
        ("trainer.max_epoch=3", "trainer.max_epochs"),
        ("lr_max=0.1", "schedule.lr_max"),
        ("lr=0.1", "schedule.lr_max"),
        ("optimizer.lr=0.1", "schedule.lr_max"),
        ("epochs=3", "trainer.max_epochs"),
        ("width=16", "model.width"),
        ("ckpt=last.ckpt", "ckpt_path"),
        ("modle.width=3", "model.width"),
        ("sead=1", "seed"),
        ("++data.batchsize=4", "data.batch_size"),
        ("+galery.count=3", "gallery.count"),
        ("+trainer.max_epoch=1", "trainer.max_epochs"),
        ("--batch_size=4", "data.batch_size"),
    ],
)
def test_a_misspelled_key_is_answered_with_the_right_one(refusal: Callable[..., str], typed: str, meant: str) -> None:
    line = refusal(typed)
    suggestions = re.search(r"did you mean (.+)\?", line)
    assert suggestions is not None
    assert meant in suggestions[1].split(" or ")
    assert "--help" in line


@pytest.mark.parametrize("typed", ["foo=1", "+foo=1", "+gallery.foo=1", "--foo", "gpus=1", "zzz.zzz=1"])
def test_where_nothing_is_near_nothing_is_suggested(refusal: Callable[..., str], typed: str) -> None:
    line = refusal(typed)
    assert typed.lstrip("-+").partition("=")[0] in line
    assert "did you mean" not in line
    assert "--help" in line


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("data=digits data.root=x", "data.root: no such key here; it belongs to data=cifar10 and data=folder"),
        ("optimizer=adamw optimizer.momentum=0.5", "it belongs to optimizer=muon and optimizer=sgd"),
        (
            "experiment=quikstart",
            "choose experiment=assignment | ddp | debug | fifteen_minutes | laptop | overfit | page | quickstart",
        ),
        ("experiment=null", "choose experiment="),
        ("data=cifar100", "choose data=cifar10 | csv | digits | folder | torchvision"),
        ("model=resnet", "choose model=custom_resnet | resnet18"),
        ("data={a:1}", "choose data=cifar10 | csv | digits | folder | torchvision"),
        ("data=[a,b]", "choose data=cifar10 | csv | digits | folder | torchvision"),
        ("data=null", "choose data=cifar10 | csv | digits | folder | torchvision"),
        ("data=3", "choose data=cifar10 | csv | digits | folder | torchvision"),
        ("data=", "choose data=cifar10 | csv | digits | folder | torchvision"),
        ("optimizer=null", "choose optimizer=adamw | muon | sgd"),
        ("word", "word: no such key"),
        ("=3", "write KEY=VALUE"),
        ("größe=3", "write KEY=VALUE"),
        ("data.flip", "write data.flip=VALUE"),
        ("~seed", "seed=VALUE"),
        ("~data", "data=VALUE"),
        ("~optimizer._target_", "optimizer._target_=VALUE"),
        ("data.batch_size=1,2", "put -m before it"),
        ("seed=1 -m data.flip=maybe", "data.flip=maybe: expected true or false"),
        ("-m seed=interval(0,1)", "seed=interval(0,1): a range, which needs hydra/sweeper=optuna"),
        ("hydra/launcher=joblib", "hydra/launcher=joblib: is about several runs; put -m before it"),
        ("-m seed=1,2 hydra.sweep.dir=x", "hydra.sweep.dir: no such key"),
        ("--cfg=foo", "invalid choice: 'foo'"),
        ("--config-name=nope", "--config-name=nope: no such option"),
        ("--resolve", "--resolve: no such option"),
        ("--run --multirun", "--run: no such option"),
        ("data@x=3", "cannot read 'data@x=3'"),
        ("hydra.run.dir=/proc/x", "hydra.run.dir: no such key"),
        ("trainer.default_root_dir=s3://x/y", "trainer.default_root_dir: s3://x/y is not a folder"),
        ("schedule={foo:1}", "schedule.foo: no such key"),
        ("trainer=foo", "trainer=foo: is a section"),
        ("-m seed=1,2 data.batchsize=3", "did you mean data.batch_size?"),
        ("-m data=nope,digits", "choose data=cifar10 | csv | digits | folder | torchvision"),
        ("data=folder", "data.root is not set: give data.root=VALUE (--help"),
        ("data.root=${nope}", "data.root: Interpolation key 'nope' not found"),
        ("schedule=3", "schedule=3: is a section; set its keys, such as schedule.peak_epoch="),
        ("gallery=null", "gallery=null: is a section"),
        ("data.source=null", "data.source=null: is a section"),
    ],
)
def test_what_cannot_be_used_is_answered_with_what_to_do(refusal: Callable[..., str], typed: str, words: str) -> None:
    assert words in refusal(*typed.split())


@pytest.mark.parametrize("value", ["9" * 5_000, "[" * 300 + "]" * 300, "[" * 50 + "]" * 50])
def test_what_python_cannot_read_is_a_text_like_any_other(refusal: Callable[..., str], value: str) -> None:
    line = refusal(f"data.batch_size={value}")
    assert line.startswith("train.py: data.batch_size=")
    assert line.endswith(": expected a whole number from 1 to 65,536, or null\n")
    assert len(line) <= command.LONGEST_LINE + 1


@pytest.mark.parametrize("option", ["--help", "-m"])
def test_a_reference_to_what_is_not_there_is_refused_with_any_option(refusal: Callable[..., str], option: str) -> None:
    assert "seed: Interpolation key 'nope' not found" in refusal("seed=${nope}", option)


def test_a_wrong_value_is_shown_as_it_is_typed(refusal: Callable[..., str]) -> None:
    assert (
        refusal("data.batch_size=abc")
        == "train.py: data.batch_size=abc: expected a whole number from 1 to 65,536, or null\n"
    )
    assert "data.image_size=null:" in refusal("data.image_size=null")
    assert "data.num_workers=true:" in refusal("data.num_workers=true", name="lr_find")


def test_a_place_that_cannot_be_written_to(
    refusal: Callable[..., str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("outside") / "file"
    file.touch()
    assert f"{file} is not a folder" in refusal(f"trainer.default_root_dir={file}")
    assert f"{file} is not a folder" in refusal(f"trainer.default_root_dir={file}/below")
    assert "File name too long" in refusal(f"trainer.default_root_dir={'l' * 260}")


@pytest.mark.parametrize(
    "path",
    [
        "my photos",
        "Bilder/März",
        "日本",
        "a (b) [c]",
        "it's, mine",
        "epoch=3-step=4.ckpt",
        "C:\\photos\\x",
        "C:\\photos\\",
        "it's\\",
        "\\'",
        "a{b}",
        "#1",
    ],
)
def test_a_path_needs_no_quotes(run: Run, path: str) -> None:
    (config,) = run(f"data.root={path}")
    assert config.data.source.call["root"] == config.data.root == path


def test_home_is_found_behind_an_equals_sign(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    (config,) = run("data.root=~/photos", "ckpt_path='~/in quotes'")
    assert config.data.root == "/home/somebody/photos"
    assert config.ckpt_path == "~/in quotes"


@example(path="\\ ")
@given(path=st.text(st.characters(exclude_categories=("C",), exclude_characters="'\""), min_size=1))
def test_any_path_is_read_as_it_is_or_as_a_plain_value(path: str) -> None:
    try:
        typed = read_override(f"ckpt_path={path}", "train")
    except InputError:  # several values
        assert "," in path
        return
    value = OverridesParser.create().parse_override(typed).value()
    unescaped = re.sub(r"\\(\s)", r"\1", path)  # as a shell would
    assert value in (path, path.strip(), unescaped, unescaped.strip()) or not isinstance(value, str)


UNUSABLE = [
    ("train", "+optimizer.lr=3", "optimizer: lr cannot be set here; the rate comes from schedule.lr_min"),
    ("train", "+model.num_classes=3", "model: num_classes cannot be set here; the data says how many there are"),
    ("train", "+model._partial_=true", "model: _partial_ cannot be set here"),
    ("train", "+model._args_=[1]", "model: _args_ cannot be set here"),
    ("train", "+data.source._recursive_=false", "data.source: _recursive_ cannot be set here"),
    ("train", "+trainer.logger=false", "trainer.logger: no such key"),
    ("train", "+trainer.callbacks=x", "trainer.callbacks: no such key"),
    ("train", "+trainer.num_sanity_val_steps=2", "trainer.num_sanity_val_steps: no such key"),
    ("train", "+trainer.overfit_batches=0.5", "trainer.overfit_batches: no such key"),
    ("predict", "+model.width=16", "model.width: no such key"),
    ("predict", "+trainer.devices=1", "trainer.devices: no such key"),
    ("export", "data.root=x", "data.root: no such key"),
    ("evaluate", "experiment=quickstart", "experiment: no such key (--help"),
    ("evaluate", "data.flip=true", "data.flip: no such key"),
    ("evaluate", "+data.batch_size=3", "data.batch_size: no such key"),
    ("evaluate", "trainer.max_epochs=3", "trainer.max_epochs: no such key"),
    ("lr_find", "ckpt_path=x", "leave it out"),
]


@pytest.mark.parametrize(("name", "typed", "words"), UNUSABLE)
def test_what_a_command_cannot_use_is_refused(refusal: Callable[..., str], name: str, typed: str, words: str) -> None:
    given = {"train": [], "lr_find": [], "predict": ["ckpt=x", "images=x"]}.get(name, ["ckpt=x"])
    assert words in refusal(*given, typed, name=name)


def test_good_overrides_arrive(run: Run) -> None:
    (config,) = run(
        "experiment=[laptop,quickstart]",
        "++seed=7",
        "+optimizer.dampening=0",
        "~optimizer.nesterov",
        "schedule={lr_min: 1}",
        "+data.source.anything=3",
    )
    assert (config.seed, config.model.width, config.data.batch_size) == (7, 16, 64)
    assert config.optimizer.call["dampening"] == 0
    assert "nesterov" not in config.optimizer.call
    assert (config.schedule.lr_min, config.schedule.lr_max) == (1, None)
    assert config.data.source.call["anything"] == 3


@pytest.mark.parametrize(
    "typed", ["-m seed=3,4 data=digits", "seed=range(3,5) data=digits -m", "seed=3,4 -m data=digits"]
)
def test_several_values_run_one_after_the_other(run: Run, tmp_path: Path, typed: str) -> None:
    assert [(config.seed, config.data.root) for config in run(*typed.split())] == [(3, None), (4, None)]
    assert list(tmp_path.iterdir()) == []


def test_values_are_combined_as_they_are_meant(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    configs = run("-m", "seed=1,2", "optimizer=sgd,adamw", "data.root=~/my photos", "experiment=[laptop]")
    names = [config.optimizer.target.rpartition(".")[2] for config in configs]
    assert [config.seed for config in configs] == [1, 1, 2, 2]
    assert names == ["SGD", "AdamW"] * 2
    assert {(config.data.root, config.model.width) for config in configs} == {("/home/somebody/my photos", 16)}


def test_a_process_that_a_sweeps_job_starts_does_this_job_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning starts further devices with the command line and the environment of this process."""
    monkeypatch.setattr(sys, "argv", typed := ["train.py", "-m", "ckpt_path='a b,c','~/d'", "seed=3"])
    seen: list[tuple[str, Any]] = []

    def job(config: Any) -> None:
        assert "LOCAL_RANK" not in os.environ
        monkeypatch.setenv("LOCAL_RANK", "0")
        seen.append((config.ckpt_path, compose("train", *sys.argv[1:]).ckpt_path))

    command.run("train", job)
    assert seen == [("a b,c", "a b,c"), ("~/d", "~/d")]
    assert sys.argv == typed
    assert "LOCAL_RANK" not in os.environ


def test_no_job_of_a_sweep_runs_before_all_are_known_to_be_good(monkeypatch: pytest.MonkeyPatch) -> None:
    def job(config: object) -> None:
        raise AssertionError

    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "seed=2,-1"])
    with pytest.raises(SystemExit):
        command.run("train", job)


def test_a_key_that_a_sweeps_job_cannot_use_ends_in_one_line(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run("-m", "seed=-1,2")
    assert stopped.value.code == 2
    assert capfd.readouterr().err == "train.py: seed=-1: expected a whole number from 0 to 4,294,967,295\n"


@pytest.mark.parametrize("name", ["train", "lr_find", "evaluate", "predict", "export"])
def test_help_shows_every_key_with_value_and_meaning(run: Run, capsys: pytest.CaptureFixture[str], name: str) -> None:
    run("--help", *(["seed=17"] if name in {"train", "lr_find"} else []), name=name)
    text = capsys.readouterr().out
    assert f"python scripts/{name}.py" in text
    for group in ("data", "model", "optimizer", "experiment"):
        listed = f"{group}={' | '.join(sorted(path.stem for path in (CONFIGS / group).glob('[!_]*.yaml')))}"
        assert (listed in text) == (name in {"train", "lr_find"} or (name, group) == ("evaluate", "data"))
    if name in {"train", "lr_find"}:
        assert re.search(r"^seed +17 +of weights, splits, order", text, re.MULTILINE)
        assert re.search(r"^data.batch_size +512 +images in a step", text, re.MULTILINE)
    else:
        assert re.search(r"^ckpt +the checkpoint, such as", text, re.MULTILINE)


def test_cfg_job_shows_what_would_run(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--cfg", "job", "seed=5") == []
    assert yaml.safe_load(capsys.readouterr().out)["seed"] == 5


def test_a_mistake_in_the_project_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(config: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(ZeroDivisionError):
        command.run("train", broken)


def test_a_failing_job_ends_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def refuses(config: object) -> None:
        raise InputError("photos/a.png is broken:\n repair it")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(SystemExit) as stopped:
        command.run("train", refuses)
    assert stopped.value.code == 2
    assert capfd.readouterr() == ("", "train.py: photos/a.png is broken: repair it\n")


def test_of_several_runs_one_that_fails_is_listed_and_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuses_two(config: Any) -> object:
        if config.seed == 2:
            raise InputError("photos/a.png is broken:\n repair it")
        return SimpleNamespace(folder=Path(f"version_{config.seed}"))

    seen: list[list[Path]] = []
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "seed=1,2,3", "data=digits"])
    with pytest.raises(SystemExit) as stopped:
        command.run("train", refuses_two, afterwards=seen.append)
    assert str(stopped.value.code).splitlines() == [
        "train.py: 1 of 3 runs failed",
        "run 2 of 3: seed=2: photos/a.png is broken: repair it",
    ]
    assert seen == [[Path("version_1"), Path("version_3")]]
    assert "failed: photos/a.png is broken: repair it" in capfd.readouterr().err.splitlines()


@pytest.mark.parametrize(
    ("typed", "names"),
    [
        ("seed=1,2 data=digits", ["seed=1", "seed=2"]),
        ("optimizer=sgd,adamw model.width=4,8", [f"optimizer={o},width={w}" for o in ("sgd", "adamw") for w in (4, 8)]),
        ("seed=1,2 name=mine", ["mine/seed=1", "mine/seed=2"]),
        ("name=a,b", ["a", "b"]),
        ("seed=3", [None]),
        ("seed=3 name=mine", ["mine"]),
        ("+model.depth=1,2", ["depth=1", "depth=2"]),
        ("data=folder data.root=../some/place,/other", ["root=.._some_place", "root=_other"]),
    ],
)
def test_each_of_several_runs_is_named_by_what_is_its_own(run: Run, typed: str, names: list[str | None]) -> None:
    assert [config.name for config in run("-m", *typed.split())] == names


@pytest.mark.parametrize("name", ["", "..", "a/../b", "/tmp/a", "a//b", ".hidden", "a/", "~/a:b"])
def test_a_name_that_is_no_folder_in_the_logs_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="name="):
        compose("train", f"name='{name}'")


def test_the_process_is_left_as_it_was(run: Run) -> None:
    directory, arguments = os.getcwd(), ["scripts/train.py", "seed=1"]
    run("seed=1")
    assert os.getcwd() == directory
    assert sys.argv == arguments


def test_the_keys_of_ones_own_files_are_keys_like_any_other(
    run: Run, refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    own = tmp_path_factory.mktemp("own") / "configs"
    shutil.copytree(CONFIGS, own)
    (own / "model" / "my_network.yaml").write_text("_target_: my_package.MyNetwork\ndepth: 3\n")
    (own / "data" / "mine.yaml").write_text(
        "defaults: [_batches, _self_]\nsource: {_target_: my_package.Mine, noise: 0.5}\n"
    )
    monkeypatch.setattr(overrides, "CONFIGS", own)
    (config,) = run("model=my_network", "model.depth=5", "data=mine", "data.source.noise=2")
    assert config.model.call == {"_target_": "my_package.MyNetwork", "depth": 5}
    assert config.data.source.call == {"_target_": "my_package.Mine", "noise": 2}
    assert "model.depht: no such key" in refusal("model=my_network", "model.depht=5")
    assert "choose model=custom_resnet | my_network | resnet18" in refusal("model=nope")


def test_a_file_without_its_key_is_told_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a photo.jpg").touch()
    for name, key in (("evaluate", "ckpt"), ("predict", "ckpt"), ("export", "ckpt"), ("train", "ckpt_path")):
        with pytest.raises(InputError, match=rf"^logs/some run/last.ckpt: write {key}=logs/some run/last.ckpt$"):
            compose(name, "logs/some run/last.ckpt")
    with pytest.raises(InputError, match=r"^a photo.jpg: write images=a photo.jpg$"):
        compose("predict", "a photo.jpg")
    with pytest.raises(InputError, match="no such key"):
        compose("predict", "nothing.jpg")


LIBRARY = {"pretrained": False, "weights": None, "input_size": None}


@pytest.mark.parametrize(
    ("typed", "model", "temperature"),
    [
        ("experiment=laptop", {"_target_": "cifar_resnet.models.CustomResNet", "width": 16}, 8),
        ("experiment=laptop model=resnet18", {"_target_": "cifar_resnet.models.resnet18", "width": 16}, 8),
        (
            "model=torchvision experiment=laptop model.name=vgg11 +model.dropout=0.1",
            {"_target_": "cifar_resnet.models.from_torchvision", "name": "vgg11", "dropout": 0.1} | LIBRARY,
            8,
        ),
        ("experiment=assignment model._target_=my.Net", {"_target_": "my.Net"}, 1),
        ("model._target_=my.Net experiment=laptop model.width=4", {"_target_": "my.Net", "width": 4}, 1),
        ("model._target_=my.Net +model.depth=2 model.width=4 ~model.width", {"_target_": "my.Net", "depth": 2}, 1),
    ],
)
def test_a_network_has_no_arguments_of_another(run: Run, typed: str, model: dict[str, Any], temperature: float) -> None:
    (config,) = run(*typed.split())
    assert config.model.call == model
    assert config.classifier.temperature == temperature


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("model=torchvision", "model.name is not set: give model.name=VALUE"),
        ("model.name=resnet18", "model.name: no such key here; it belongs to model=timm and model=torchvision"),
        (
            "experiment=laptop model=timm model.name=x model.width=8",
            "model.width: no such key here; it belongs to model=custom_resnet and model=resnet18",
        ),
        ("model=torchvision model.name=x model.pretrained=1", "model.pretrained=1: expected true or false"),
    ],
)
def test_a_networks_arguments_are_its_own(refusal: Callable[..., str], typed: str, words: str) -> None:
    assert words in refusal(*typed.split())
