"""From the command line to a checked configuration, in well under a second: nothing here imports torch."""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cifar_resnet.cli import overrides
from cifar_resnet.cli.overrides import CONFIGS
from cifar_resnet.cli.schema import EXPECTED, Expected, typed
from cifar_resnet.errors import InputError

MIXED = ("16-mixed", "bf16-mixed", "16", "bf16")
"""Values of `trainer.precision` under which Lightning refuses to clip for an optimizer that unscales by itself."""
ABSENT = object()
"""Stands for the value of a key that a configuration does not have."""


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
                sys.argv[1:] = overrides.readable(sys.argv[1:], name)
                hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=name)(checked)()
            except InputError as error:
                _fail(str(error))
            except (HydraException, OmegaConfBaseException) as error:
                _fail(overrides.explain(error, name))
            except KeyboardInterrupt:
                sys.exit(130)
            except SystemExit as stop:  # Lightning ends an interrupted training with 1
                sys.exit(130 if isinstance(stop.__context__, KeyboardInterrupt) else stop.code)

        return run

    return decorate


def _fail(message: str) -> None:
    script = Path(sys.argv[0]).name
    print(f"{script}: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def check(config: DictConfig, own: Mapping[str, Expected] = MappingProxyType({})) -> None:
    """Raise `InputError` for the first value that cannot work, before anything heavy is imported."""
    expected = {**EXPECTED, **own}
    given: Any = OmegaConf.to_container(config)
    for key, wanted in expected.items():
        if _look_up(given, key) == "???":
            raise InputError(f"{key} is not set: give {key}=VALUE ({wanted.phrase})")
    try:
        resolved: Any = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise InputError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
    for key, wanted in expected.items():
        value = _look_up(resolved, key)
        if value is not ABSENT and not wanted.accepts(value):
            raise InputError(f"{key}={typed(value)}: expected {wanted.phrase}")
    if "schedule" in config:
        _check_schedule(config)
    if "trainer" in config:
        _check_output(config.trainer.default_root_dir)


def _look_up(values: Mapping[str, Any], key: str) -> Any:
    *sections, leaf = key.split(".")
    for depth, section in enumerate(sections, start=1):
        values = values.get(section, {})
        if not isinstance(values, dict):
            raise InputError(
                f"{'.'.join(sections[:depth])}={typed(values)}: is a section; set its keys, for example {key}=VALUE"
            )
    return values.get(leaf, ABSENT)


def _check_output(root: str) -> None:
    existing = next(path for path in (Path(root), *Path(root).absolute().parents) if path.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        raise InputError(
            f"trainer.default_root_dir={root}: {existing.absolute()} is not a folder that can be written to"
        )


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
    trainer = config.trainer
    if trainer.gradient_clip_val and config.optimizer.get("fused") and str(trainer.precision) in MIXED:
        raise InputError(
            f"trainer.gradient_clip_val={trainer.gradient_clip_val}: a fused optimizer cannot clip under "
            f"trainer.precision={trainer.precision}; add optimizer.fused=false"
        )
    if config.lr_search.lowest >= config.lr_search.highest:
        raise InputError(
            f"lr_search.lowest={config.lr_search.lowest}: must be below lr_search.highest={config.lr_search.highest}"
        )
