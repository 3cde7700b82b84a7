"""The command line: bad input ends as one line that says what to do, good input arrives as it was meant."""

import math
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import hydra
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from cifar_resnet.analysis.gradcam import METHODS
from cifar_resnet.cli.command import CONFIGS, check, command
from cifar_resnet.cli.overrides import readable
from cifar_resnet.cli.schema import EXPECTED, Expected, number, whole
from cifar_resnet.errors import InputError

Run = Callable[..., list[DictConfig]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """``run("seed=1")`` is ``python scripts/train.py seed=1`` with a task that only keeps the configuration."""
    monkeypatch.chdir(tmp_path)

    def run(*overrides: str, name: str = "train") -> list[DictConfig]:
        monkeypatch.setattr(sys, "argv", [f"scripts/{name}.py", *overrides])
        given: list[DictConfig] = []
        command(name)(given.append)()
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


@pytest.fixture(scope="module")
def defaults() -> DictConfig:
    """What the training command runs with when nothing is typed."""
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return hydra.compose("train")


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
        ("modle=resnet18", "model"),
        ("sead=1", "seed"),
        ("++data.batchsize=4", "data.batch_size"),
        ("+galery.count=3", "gallery.count"),
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
        ("optimizer=adamw optimizer.momentum=0.5", "it belongs to optimizer=sgd"),
        ("experiment=quikstart", "choose experiment=assignment | laptop | quickstart"),
        ("experiment=null", "choose experiment="),
        ("data=cifar100", "choose data=cifar10 | digits | folder"),
        ("model=resnet", "choose model=custom_resnet | resnet18"),
        ("data={a:1}", "choose data=cifar10 | digits | folder"),
        ("data=[a,b]", "choose data=cifar10 | digits | folder"),
        ("data=null", "choose data=cifar10 | digits | folder"),
        ("data=3", "choose data=cifar10 | digits | folder"),
        ("data=", "choose data=cifar10 | digits | folder"),
        ("optimizer=null", "choose optimizer=adamw | sgd"),
        ("word", "write key=value"),
        ("=3", "write key=value"),
        ("größe=3", "write key=value"),
        ("data.flip", "write data.flip=VALUE"),
        ("+trainer.max_epochs=3", "leave out the +"),
        ("+data.batch_size=3", "leave out the +"),
        ("~seed", "seed=VALUE"),
        ("~data", "data=VALUE"),
        ("~optimizer._target_", "optimizer._target_=VALUE"),
        ("data.batch_size=1,2", "put -m before it"),
        ("seed=1 -m data.flip=true", "data.flip=true: options such as -m come before"),
        ("--cfg=foo", "invalid choice: 'foo'"),
        ("--config-name=nope", "'nope'"),
        ("data=folder", "data.root is not set: give data.root="),
        ("data.root=${nope}", "data.root: Interpolation key 'nope' not found"),
        ("schedule=3", "schedule=3: is a section; set its keys, for example schedule.peak_epoch="),
        ("gallery=null", "gallery=null: is a section"),
        ("data.source=null", "data.source=null: is a section"),
    ],
)
def test_what_cannot_be_used_is_answered_with_what_to_do(refusal: Callable[..., str], typed: str, words: str) -> None:
    assert words in refusal(*typed.split())


@pytest.mark.parametrize(
    "typed",
    """
    data.batch_size=abc data.batch_size=0 data.batch_size=-1 data.batch_size=1e9 data.batch_size=2.5 data.batch_size=
    data.batch_size=null data.batch_size=true data.batch_size=[1,2] data.batch_size={a:1} data.batch_size=99999999999
    seed=-1 seed=4294967296 seed=1.0 model.width=0 model.width=4096 trainer.max_epochs=0 data.num_workers=-1
    data.num_workers=10000 schedule.lr_max=high schedule.lr_max=nan schedule.lr_max=inf schedule.lr_max=0
    schedule.lr_min=-0.1 data.flip=maybe data.flip=1 data.padding=zeros data.cutout=33 data.cutout=-8 data.val_size=-1
    data.train_size=0 data.test_statistics=val data.root= optimizer.momentum=2 optimizer.weight_decay=-1
    optimizer.nesterov=2 optimizer.fused=1 optimizer._target_=SGD model._target_=null lr_search.num_training=1
    lr_search.lowest=0 lr_search.repeats=0 classifier.temperature=0 classifier.label_smoothing=1.5
    classifier.compile=yes classifier.compile_mode=fast gallery.count=0 gallery.order=worst
    gallery.method=nope ckpt_path= trainer.accelerator=foo trainer.devices=0 trainer.devices=[] trainer.devices=two
    trainer.precision=17 trainer.limit_train_batches=0 trainer.limit_train_batches=1.5 trainer.limit_test_batches=-1
    trainer.accumulate_grad_batches=0 trainer.gradient_clip_val=-1 trainer.log_every_n_steps=0
    trainer.deterministic=5 trainer.fast_dev_run=x +trainer.max_steps=0
    """.split(),  # noqa: SIM905
)
def test_a_wrong_value_is_answered_with_what_is_expected(defaults: DictConfig, typed: str) -> None:
    override = OverridesParser.create().parse_override(typed)
    key = override.key_or_group
    config = defaults.copy()
    OmegaConf.update(config, key, override.value(), force_add=True)
    with pytest.raises(InputError) as error:
        check(config)
    assert str(error.value).startswith(f"{key}=")
    assert str(error.value).endswith(f": expected {EXPECTED[key].phrase}")


def test_a_wrong_value_is_shown_as_it_is_typed(refusal: Callable[..., str]) -> None:
    assert refusal("data.batch_size=abc") == "train.py: data.batch_size=abc: expected a whole number from 1 to 65,536\n"
    assert "data.batch_size=null:" in refusal("data.batch_size=null")
    assert "data.num_workers=true:" in refusal("data.num_workers=true", name="lr_find")


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("schedule.peak_epoch=24", "trainer.max_epochs=24"),
        ("schedule.peak_epoch=30", "trainer.max_epochs=24"),
        ("schedule.lr_min=0.1 schedule.lr_max=0.1", "must be below schedule.lr_max=0.1"),
        ("schedule.lr_min=0.2 schedule.lr_max=0.1", "must be below schedule.lr_max=0.1"),
        ("lr_search.lowest=10", "must be below lr_search.highest=10"),
        ("lr_search.highest=0.0001", "must be below lr_search.highest=0.0001"),
        ("trainer.gradient_clip_val=1 trainer.precision=16-mixed", "add optimizer.fused=false"),
    ],
)
def test_values_that_exclude_each_other(refusal: Callable[..., str], typed: str, words: str) -> None:
    assert words in refusal(*typed.split())
    assert words in refusal(*typed.split(), name="lr_find")


def test_a_place_that_cannot_be_written_to(
    refusal: Callable[..., str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("outside") / "file"
    file.touch()
    assert f"{file} is not a folder" in refusal(f"trainer.default_root_dir={file}")
    assert f"{file} is not a folder" in refusal(f"trainer.default_root_dir={file}/below")


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
        "a{b}",
        "#1",
    ],
)
def test_a_path_needs_no_quotes(run: Run, path: str) -> None:
    (config,) = run(f"data.root={path}")
    assert config.data.source.root == config.data.root == path


def test_home_is_found_behind_an_equals_sign(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    (config,) = run("data.root=~/photos", "ckpt_path='~/in quotes'")
    assert config.data.root == "/home/somebody/photos"
    assert config.ckpt_path == "~/in quotes"


@settings(deadline=None)
@given(path=st.text(st.characters(exclude_categories=("C",), exclude_characters="'\"\\"), min_size=1))
def test_any_path_is_read_as_it_is_or_as_a_plain_value(path: str) -> None:
    (typed,) = readable([f"ckpt_path={path}"], "train")
    value = OverridesParser.create().parse_override(typed).value()
    assert value in (path, path.strip()) or not isinstance(value, str)


def test_good_overrides_arrive(run: Run) -> None:
    (config,) = run(
        "experiment=[laptop,quickstart]",
        "++seed=7",
        "+optimizer.dampening=0",
        "~optimizer.nesterov",
        "schedule={lr_min: 1}",
    )
    assert (config.seed, config.model.width, config.data.batch_size) == (7, 16, 64)
    assert config.optimizer.dampening == 0
    assert "nesterov" not in config.optimizer
    assert (config.schedule.lr_min, config.schedule.lr_max) == (1, None)


def test_several_values_run_one_after_the_other(run: Run, tmp_path: Path) -> None:
    assert [config.seed for config in run("-m", "seed=3,4", "data=digits")] == [3, 4]
    assert [path.name for path in tmp_path.iterdir()] == ["lightning_logs"]


@pytest.mark.parametrize("experiment", sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml")))
def test_every_experiment_that_comes_with_the_project_is_good(run: Run, experiment: str) -> None:
    assert len(run(f"experiment={experiment}")) == 1


def test_help_names_every_choice(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("train", "lr_find"):
        with pytest.raises(SystemExit) as stopped:
            run("--help", name=name)
        assert not stopped.value.code
        text = capsys.readouterr().out
        assert text.count(f"python scripts/{name}.py") == 3
        for group in ("data", "model", "optimizer", "experiment"):
            choices = sorted(path.stem for path in (CONFIGS / group).glob("[!_]*.yaml"))
            assert f"{group}={'|'.join(choices)}" in text
        for key in ("peak_epoch: 5", "batch_size: 512", "width: 64"):
            assert key in text


def test_cfg_job_shows_what_would_run(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--cfg", "job", "seed=5") == []
    shown = OmegaConf.create(capsys.readouterr().out)
    assert shown.seed == 5
    check(shown)


def test_an_interrupt_ends_quietly(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def interrupted(config: DictConfig) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(SystemExit) as stopped:
        command("train")(interrupted)()
    assert stopped.value.code == 130
    assert capfd.readouterr() == ("", "")


def test_a_mistake_in_the_project_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(config: DictConfig) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(ZeroDivisionError):
        command("train")(broken)()


def test_a_failing_task_ends_in_one_line(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def refuses(config: DictConfig) -> None:
        raise InputError("photos/a.png is broken:\n repair it")

    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(SystemExit) as stopped:
        command("train")(refuses)()
    assert stopped.value.code == 2
    assert capfd.readouterr() == ("", "train.py: photos/a.png is broken: repair it\n")


def test_a_command_checks_its_own_keys_too(compose: Callable[..., DictConfig]) -> None:
    config = compose("train")
    check(config, {"seed": whole(0, 0)})
    with pytest.raises(InputError, match="seed=0: expected a number from 5 to 6"):
        check(config, {"seed": number(5, 6)})


def test_every_key_of_the_training_command_has_an_expectation(compose: Callable[..., DictConfig]) -> None:
    """A key that is added to a configuration file must say what it accepts."""

    def keys(node: object, prefix: str = "") -> list[str]:
        if not isinstance(node, dict):
            return [prefix]
        return [key for name, child in node.items() for key in keys(child, f"{prefix}.{name}" if prefix else name)]

    for overrides in ([], ["data=folder", "data.root=x", "optimizer=adamw", "model=resnet18"], ["data=digits"]):
        config = OmegaConf.to_container(compose("train", *overrides))
        unchecked = {key for key in keys(config) if key not in EXPECTED}
        assert {key for key in unchecked if not key.startswith("data.source.")} == set()


def test_the_gallery_methods_are_those_that_exist() -> None:
    assert EXPECTED["gallery.method"].phrase == f"one of {', '.join(METHODS)}"


@settings(deadline=None)
@given(low=st.integers(-1000, 1000), span=st.integers(0, 1000), value=st.integers(-3000, 3000))
def test_ranges_include_their_ends_and_nothing_beyond(low: int, span: int, value: int) -> None:
    inside = low <= value <= low + span
    assert whole(low, low + span).accepts(value) == inside
    assert number(low, low + span).accepts(value) == inside
    assert number(low, low + span).accepts(value + 0.5) == (low <= value + 0.5 <= low + span)
    assert not whole(low, low + span).accepts(float(value))


@settings(deadline=None)
@given(
    value=st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers(), max_size=3),
        st.dictionaries(st.text(), st.integers(), max_size=2),
    ),
    expected=st.sampled_from(sorted(EXPECTED.items())),
)  # fmt: skip
def test_every_expectation_answers_for_any_value(value: object, expected: tuple[str, Expected]) -> None:
    """A value of the wrong kind is refused, not a crash of the comparison."""
    key, wanted = expected
    accepted = wanted.accepts(value)
    assert isinstance(accepted, bool)
    if isinstance(value, dict) or value in (math.inf, -math.inf) or str(value) == "nan":
        assert not accepted, key
    if value is None:
        assert accepted == wanted.phrase.endswith("or null")


def test_the_process_is_left_as_it_was(run: Run) -> None:
    before = os.getcwd()
    run("seed=1")
    assert os.getcwd() == before


def test_the_assignment_is_the_default_spelled_out(run: Run) -> None:
    assert run("experiment=assignment") == run()
