"""The schema: every key has a type, a range and a meaning; the values are in the YAML files alone."""

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from cifar_resnet.analysis.gradcam import METHODS
from cifar_resnet.cli.compose import compose
from cifar_resnet.cli.overrides import CONFIGS, choices
from cifar_resnet.cli.schema import COMMANDS
from cifar_resnet.cli.wording import describe, expected, explain
from cifar_resnet.errors import InputError
from cifar_resnet.inference.export import FORMATS

NEEDED = {
    "evaluate": ["ckpt=x"],
    "predict": ["ckpt=x", "images=x"],
    "export": ["ckpt=x"],
    "train": [],
    "lr_find": [],
    "compare": [],
}
REQUIRED = {
    "data=folder": ["data.root=x"],
    "data=csv": ["data.csv=x"],
    "data=torchvision": ["data.name=x"],
    "model=timm": ["model.name=x"],
    "model=torchvision": ["model.name=x"],
}

DEFAULTS = compose("train").model_dump(by_alias=True, exclude_unset=True)


def keys_of(values: Any, prefix: str = "") -> set[str]:
    if not isinstance(values, dict):
        return {prefix}
    return {key for name, value in values.items() for key in keys_of(value, f"{prefix}.{name}" if prefix else name)}


@pytest.mark.parametrize("command", COMMANDS)
def test_yaml_and_schema_have_the_same_keys(command: str) -> None:
    """Over the choices of all groups: no key without a value in some file, and none in a file that has no meaning."""
    found: set[str] = set()
    groups = [group for group in COMMANDS[command].groups if group != "experiment"]
    for group in groups or [""]:
        for choice in choices(group) if group else [""]:
            chosen = f"{group}={choice}" if group else ""
            config = compose(command, *NEEDED[command], *filter(None, [chosen]), *REQUIRED.get(chosen, ()))
            found |= keys_of(config.model_dump(by_alias=True, exclude_unset=True))
    arguments = {key for key in found if key.startswith("data.source.") and key != "data.source._target_"}
    assert found - arguments == set(describe(COMMANDS[command]))


def test_no_default_stands_in_the_schema() -> None:
    def check(section: type[BaseModel]) -> None:
        for name, field in section.model_fields.items():
            assert field.is_required() or field.default is None, name
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                check(field.annotation)

    for command in COMMANDS.values():
        check(command)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_key_has_a_meaning_and_says_what_it_accepts(command: str) -> None:
    for key, described in describe(COMMANDS[command]).items():
        assert len(described["description"]) > 5, key
        assert expected(described), key


@pytest.mark.parametrize(
    "typed",
    """
    data.batch_size=abc data.batch_size=0 data.batch_size=-1 data.batch_size=1e9 data.batch_size=2.5 data.batch_size=
    data.image_size=null data.image_size=30 data.test_share=0 data.test_share=1
    data.batch_size=true data.batch_size=[1,2] data.batch_size={a:1} data.batch_size=99999999999
    averaging.decay=1 averaging.decay=0 averaging.every=0 data.flip=sometimes
    seed=-1 seed=4294967296 seed=1.0 model.width=0 model.width=4096 trainer.max_epochs=0 data.num_workers=-1
    data.num_workers=10000 schedule.lr_max=high schedule.lr_max=nan schedule.lr_max=inf schedule.lr_max=0
    schedule.lr_end=-1 schedule.flat_epochs=-1 schedule.bias_factor=0
    schedule.lr_min=-0.1 data.flip=maybe data.flip=1 data.padding=zeros data.cutout=257 data.cutout=-8 data.val_size=-1
    data.train_size=0 data.test_statistics=val data.root= optimizer.momentum=2 optimizer.weight_decay=-1
    optimizer.nesterov=2 optimizer.fused=1 optimizer._target_=SGD model._target_=null lr_search.num_training=1
    lr_search.lowest=0 lr_search.repeats=0 classifier.temperature=0 classifier.label_smoothing=1.5
    classifier.class_weights=even classifier.temperature=nan classifier.compile=yes classifier.compile_mode=fast
    gallery.count=-1 gallery.order=worst
    gallery.method=nope ckpt_path= trainer.accelerator=foo trainer.devices=0 trainer.devices=[] trainer.devices=two
    trainer.devices=[a] trainer.devices=true trainer.precision=17 trainer.limit_train_batches=0
    trainer.limit_train_batches=1.5 trainer.limit_test_batches=-1 trainer.accumulate_grad_batches=0
    trainer.gradient_clip_val=-1 trainer.gradient_clip_algorithm=x trainer.log_every_n_steps=0
    trainer.deterministic=5 trainer.fast_dev_run=x
    """.split(),  # noqa: SIM905
)
def test_a_wrong_value_is_answered_with_what_is_expected(typed: str) -> None:
    key = typed.partition("=")[0]
    with pytest.raises(InputError) as error:
        compose("train", typed, *(["data=csv", "data.csv=x"] if key == "data.test_share" else []))
    phrase = expected(describe(COMMANDS["train"])[key])
    assert str(error.value).startswith(f"{key}=")
    assert str(error.value).endswith(f": expected {phrase}")


def test_ranges_are_said_as_one_reads_them() -> None:
    described = describe(COMMANDS["train"])
    assert expected(described["data.batch_size"]) == "a whole number from 1 to 65,536, or null"
    assert expected(described["trainer.limit_train_batches"]).endswith("or a number above 0 to 1, or null")
    assert expected(described["data.test_share"]) == "a number above 0 and below 1"
    assert expected(described["data.padding"]) == "reflect | mean"


@settings(max_examples=200)
@given(
    value=st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers(), max_size=3),
        st.dictionaries(st.text(), st.integers(), max_size=2),
    ),
    key=st.sampled_from([key for key in describe(COMMANDS["train"]) if "_target_" not in key]),
)  # fmt: skip
def test_any_value_is_taken_or_refused_in_one_line(value: object, key: str) -> None:
    """A value of the wrong kind is no crash of a comparison."""
    config = copy.deepcopy(DEFAULTS)
    *sections, leaf = key.split(".")
    place = config
    for section in sections:
        place = place[section]
    place[leaf] = value
    try:
        COMMANDS["train"].model_validate(config)
    except ValidationError as error:
        assert key.partition(".")[0] in explain(error, "train")  # noqa: PT017  either may be right
        return
    assert str(value) != "nan"
    assert not isinstance(value, dict)


def test_the_choices_are_those_that_exist() -> None:
    described = describe(COMMANDS["train"]), describe(COMMANDS["export"])
    assert described[0]["gallery.method"]["enum"] == list(METHODS)
    assert described[1]["format"]["enum"] == list(FORMATS)


def test_what_travels_is_typed_and_does_not_change() -> None:
    config = compose("train", "seed=3", "+optimizer.dampening=0.5", "~optimizer.nesterov")
    assert (config.seed, config.data.batch_size, config.schedule.lr_min) == (3, 512, None)
    assert config.optimizer.call == {
        "_target_": "torch.optim.SGD", "momentum": 0.9, "weight_decay": 5e-4, "fused": True, "dampening": 0.5,
    }  # fmt: skip
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 4
    assert json.dumps(config.model_dump(by_alias=True, exclude_unset=True))


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
def test_values_that_exclude_each_other(typed: str, words: str) -> None:
    for command in ("train",) if "schedule.lr" in typed else ("train", "lr_find"):
        with pytest.raises(InputError) as error:
            compose(command, *typed.split())
        assert words in str(error.value)


@pytest.mark.parametrize(
    "typed", ["schedule.lr_min=0.1", "schedule.lr_max=0.1", "ckpt_path=x", "trainer.fast_dev_run=2"]
)
def test_a_search_refuses_what_answers_it_already(typed: str) -> None:
    with pytest.raises(InputError, match="leave it out"):
        compose("lr_find", typed)


@pytest.mark.parametrize("experiment", sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml")))
def test_every_experiment_that_comes_with_the_project_is_good(experiment: str) -> None:
    assert compose("train", f"experiment={experiment}")


def test_the_assignment_is_the_default_spelled_out() -> None:
    assert compose("train", "experiment=assignment") == compose("train")
