"""From the command line to a checked configuration, in well under a second: nothing here imports torch."""

import difflib
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from cifar_resnet.errors import InputError

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


@dataclass(frozen=True)
class Expected:
    """What a key accepts: the phrase that an error message shows, and the test."""

    phrase: str
    accepts: Callable[[Any], bool]


def whole(low: int, high: int) -> Expected:
    """Accept the integers from ``low`` to ``high``."""
    return Expected(
        f"a whole number from {low:,} to {high:,}", lambda value: type(value) is int and low <= value <= high
    )


def number(low: float, high: float) -> Expected:
    """Accept the finite numbers from ``low`` to ``high``."""
    return Expected(
        f"a number from {low:g} to {high:g}",
        lambda value: isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high,
    )


def one_of(*choices: Any) -> Expected:
    """Accept the listed values only."""
    return Expected(f"one of {', '.join(map(str, choices))}", lambda value: value in choices)


def optional(expected: Expected) -> Expected:
    """Accept null as well."""
    return Expected(f"{expected.phrase}, or null", lambda value: value is None or expected.accepts(value))


FLAG = Expected("true or false", lambda value: isinstance(value, bool))
TEXT = Expected("a text", lambda value: isinstance(value, str) and bool(value))
RATE = number(1e-12, 1e6)

EXPECTED: dict[str, Expected] = {
    "seed": whole(0, 2**32 - 1),
    "ckpt_path": optional(TEXT),
    "ckpt": TEXT,
    "data.root": TEXT,
    "data.batch_size": whole(1, 65_536),
    "data.num_workers": optional(whole(0, 256)),
    "data.padding": one_of("reflect", "mean"),
    "data.flip": FLAG,
    "data.cutout": whole(0, 32),
    "data.val_size": whole(0, 10_000_000),
    "data.train_size": optional(whole(1, 10_000_000)),
    "data.test_statistics": one_of("train", "test"),
    "data.resize": FLAG,
    "model.width": whole(1, 1024),
    "optimizer.momentum": number(0, 1),
    "optimizer.weight_decay": number(0, 1),
    "schedule.peak_epoch": number(0, 10_000),
    "schedule.lr_min": optional(RATE),
    "schedule.lr_max": optional(RATE),
    "lr_search.num_training": whole(20, 100_000),
    "lr_search.lowest": RATE,
    "lr_search.highest": RATE,
    "classifier.temperature": number(1e-3, 1e3),
    "classifier.label_smoothing": number(0, 1),
    "classifier.compile": FLAG,
    "gallery.count": whole(1, 100),
    "gallery.order": one_of("confident", "first", "random"),
    "gallery.layer": optional(TEXT),
    "trainer.max_epochs": whole(1, 10_000),
    "trainer.accumulate_grad_batches": whole(1, 10_000),
    "trainer.log_every_n_steps": whole(1, 1_000_000),
    "trainer.precision": one_of(
        "32-true", "16-mixed", "bf16-mixed", "64-true", "bf16-true", "16-true", 16, 32, 64, "bf16"
    ),
}


def command(name: str, **own: Expected) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """Make a command line of a function: compose ``configs/NAME.yaml`` with the overrides, check it, call.

    ``own`` is what the command's own keys accept, beside `EXPECTED`.

    Whatever the user can cause ends as one line on standard error and exit code 2; a traceback means a bug.
    """

    def decorate(task: Callable[[DictConfig], None]) -> Callable[[], None]:
        def checked(config: DictConfig) -> None:
            try:
                check(config, own)
                task(config)
            except InputError as error:
                _fail(str(error))  # here, because Hydra announces every exception that reaches it

        def run() -> None:
            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then hands its exceptions over instead of printing them
            try:
                hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=name)(checked)()
            except (HydraException, OmegaConfBaseException) as error:
                _fail(_explain(error, name))
            except KeyboardInterrupt:
                sys.exit(130)

        return run

    return decorate


def check(config: DictConfig, own: Mapping[str, Expected] = MappingProxyType({})) -> None:
    """Raise `InputError` for the first value that cannot work, before anything heavy is imported."""
    for key, expected in {**EXPECTED, **own}.items():
        if not _has(config, key):
            continue
        try:
            value = OmegaConf.select(config, key, throw_on_missing=True)
        except MissingMandatoryValue:
            raise InputError(f"{key} is not set: give {key}=VALUE ({expected.phrase})") from None
        if not expected.accepts(value):
            raise InputError(f"{key}={value}: expected {expected.phrase}")
    if "schedule" in config:
        _check_schedule(config)


def output_file(name: str, suffix: str) -> Path:
    """Return the path of a file that can be written.

    Raises:
        InputError: the name does not end in ``suffix``, or there is no such folder, or one that cannot be written to.
    """
    path = Path(name)
    if path.suffix != suffix or path.is_dir():
        raise InputError(f"output={name}: give the name of a file that ends in {suffix}")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"output={name}: the folder {path.parent} does not exist or cannot be written to")
    return path


def _check_schedule(config: DictConfig) -> None:
    schedule, epochs = config.schedule, config.trainer.max_epochs
    if schedule.peak_epoch >= epochs:
        raise InputError(
            f"schedule.peak_epoch={schedule.peak_epoch}: the peak must come before the end of training, "
            f"trainer.max_epochs={epochs}"
        )
    bounds = (schedule.lr_min, schedule.lr_max)
    if None not in bounds and schedule.lr_min >= schedule.lr_max:
        raise InputError(f"schedule.lr_min={bounds[0]}: must be below schedule.lr_max={bounds[1]}")
    if config.lr_search.lowest >= config.lr_search.highest:
        raise InputError(
            f"lr_search.lowest={config.lr_search.lowest}: must be below lr_search.highest={config.lr_search.highest}"
        )


def _has(config: DictConfig, key: str) -> bool:
    *parents, leaf = key.split(".")
    node: Any = config
    for parent in parents:
        node = node.get(parent) if isinstance(node, DictConfig) else None
    return isinstance(node, DictConfig) and leaf in node


def _fail(message: str) -> None:
    script = Path(sys.argv[0]).name
    print(f"{script}: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def _explain(error: Exception, name: str) -> str:
    """Put what Hydra says about a refused override into one line that names the nearest right one."""
    if isinstance(error, OverrideParseException):
        return f"cannot read the override {error.override!r}: write key=value, with quotes around special characters"
    if isinstance(error, MissingConfigException) and error.options is not None and error.missing_cfg_file:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        choices = [option for option in error.options if not option.startswith("_")]
        return f"{group}={choice}: no such choice; choose {group}={' | '.join(choices)}"
    refused = re.search(r"Could not (?:override|append to config|delete from config)[^']*'([^']+)'", str(error))
    if refused and "merge" not in str(error):
        return f"{refused[1]}: no such key{_nearest(refused[1], name)}"
    group_refused = re.search(r"override '?([\w/@.]+)'?\.? No match in the defaults list", str(error))
    if group_refused:
        return f"{group_refused[1]}: no such key{_nearest(group_refused[1], name)}"
    return f"{error} {error.__cause__ or ''}"


def _nearest(key: str, name: str) -> str:
    keys = _all_keys(name)
    leaf = key.rpartition(".")[2]
    same_leaf = [other for other in keys if difflib.get_close_matches(leaf, [other.rpartition(".")[2]], cutoff=0.75)]
    close = difflib.get_close_matches(key, keys, n=1, cutoff=0.6) or difflib.get_close_matches(key, same_leaf, cutoff=0)
    suggestion = f"; did you mean {close[0]}?" if close else ""
    return f"{suggestion} (python scripts/{name}.py --cfg job shows them all)"


def _all_keys(name: str) -> list[str]:
    """Every key of the defaults, and of each choice of each group, as a user would type it."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        keys = dict.fromkeys(_leaves(hydra.compose(name)))
    for file in CONFIGS.glob("*/*.yaml"):
        group = file.parent.name
        keys[group] = None
        if group != "experiment":
            content = OmegaConf.load(file)
            prefix = "" if group in content else f"{group}."
            keys.update(dict.fromkeys(prefix + key for key in _leaves(content)))
    return list(keys)


def _leaves(config: Any, prefix: str = "") -> Iterator[str]:
    for key in config:
        node = config._get_node(key)
        if isinstance(node, DictConfig) and not node._is_none() and not node._is_interpolation():
            yield from _leaves(node, f"{prefix}{key}.")
        elif key != "defaults":
            yield f"{prefix}{key}"
