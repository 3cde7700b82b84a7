"""From a command line to a job: compose the configuration, check it, call; without torch until the job imports it."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cifar_resnet.cli import overrides, schema
from cifar_resnet.errors import InputError, one_line

Job = Callable[[Any], object]

SWEEP_JOB = "CIFAR_RESNET_SWEEP_JOB"
"""Environment variable with the overrides of one job of a sweep: processes that it starts do this job alone."""


def compose(name: str, *typed: str) -> Any:
    """Return the configuration of a command, checked: an object of its class in `schema.COMMANDS`.

    Raises:
        InputError: a key or a value cannot be used.
    """
    return _check(name, _compose(name, typed))


def _compose(name: str, typed: Iterable[str]) -> DictConfig:
    readable = [overrides.read_override(each, name) for each in typed]
    try:
        with hydra.initialize_config_dir(str(overrides.CONFIGS), version_base="1.3"):
            return hydra.compose(name, readable)
    except HydraException as error:
        key = getattr(error.__cause__, "full_key", None)
        raise InputError(overrides.no_such_key(key, name) if key else one_line(error)) from error


def _check(name: str, config: DictConfig) -> Any:
    try:
        values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        return schema.COMMANDS[name].model_validate(values)
    except MissingMandatoryValue as error:
        raise InputError(f"{error.full_key} is not set: give {error.full_key}=VALUE (--help says which)") from error
    except OmegaConfBaseException as error:
        raise InputError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
    except ValidationError as error:
        raise InputError(schema.explain(error, name)) from error


def run(name: str, job: Job) -> None:
    """Call a job with the configuration of the command ``name`` as the command line changes it.

    Whatever the user can cause ends as one line on standard error and exit code 2; a traceback means a bug.
    """
    try:
        _run(name, job)
    except InputError as error:
        _refuse(name, error)
    except KeyboardInterrupt:
        sys.exit(130)
    except SystemExit as stop:  # Lightning ends an interrupted training with 1
        sys.exit(130 if isinstance(stop.__context__, KeyboardInterrupt) else stop.code)


def _refuse(name: str, error: InputError) -> NoReturn:
    print(f"{name}.py: {one_line(error)}", file=sys.stderr)
    sys.exit(2)


def _run(name: str, job: Job) -> None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("--cfg", choices=["job"])
    parser.add_argument("overrides", nargs="*")
    try:
        options, unknown = parser.parse_known_args()
    except argparse.ArgumentError as error:
        raise InputError(f"{one_line(error)} (--help shows what there is)") from error
    if SWEEP_JOB in os.environ:
        job(compose(name, *json.loads(os.environ[SWEEP_JOB])))
    elif unknown and unknown[0].startswith("-"):
        near = overrides.no_such_key(unknown[0].strip("-").partition("=")[0], name)
        raise InputError(f"{unknown[0]}: no such option; a key is set by KEY=VALUE, without dashes; {near}")
    elif unknown:
        raise InputError(f"{unknown[0]}: options such as -m come before all keys, or after them")
    elif options.help:
        _show_help(name, _compose(name, options.overrides))
    elif options.cfg:
        print(OmegaConf.to_yaml(_compose(name, options.overrides)))
    elif options.multirun:
        _sweep(name, job, options.overrides)
    else:
        job(compose(name, *options.overrides))


def _sweep(name: str, job: Job, typed: Iterable[str]) -> None:
    """Hand over to Hydra, which reads the command line by itself, and calls once for each combination of values."""
    for each in typed:
        overrides.read_override(each, name, sweep=True)

    def run_one(config: DictConfig) -> None:
        before = dict(os.environ)
        os.environ[SWEEP_JOB] = json.dumps(list(HydraConfig.get().overrides.task))
        try:
            job(_check(name, config))
        except InputError as error:  # Hydra announces every exception that reaches it
            _refuse(name, error)
        finally:  # the ranks that Lightning leaves there would be taken for those of the next job
            os.environ.clear()
            os.environ.update(before)

    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then hands exceptions over instead of printing them
    try:
        hydra.main(version_base="1.3", config_path=str(overrides.CONFIGS), config_name=name)(run_one)()
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(one_line(error)) from error


def _show_help(name: str, config: DictConfig) -> None:
    """Print the head of the command's file, and each key with its value, its meaning and what it accepts."""
    head = (overrides.CONFIGS / f"{name}.yaml").read_text().partition("defaults:")[0]
    print(head.replace("# ", ""))
    for group in schema.COMMANDS[name].groups:
        print(f"  {group}={' | '.join(overrides.choices(group))}")
    table = Table("key", "value", "meaning", box=None, pad_edge=False)
    section = None
    for key, described in schema.describe(schema.COMMANDS[name]).items():
        if section != (section := key.partition(".")[0] if "." in key else ""):
            table.add_row()
        value = "" if OmegaConf.is_missing(config, key) else json.dumps(OmegaConf.select(config, key))
        table.add_row(key, Text(value), Text(f"{described['description']} ({schema.expected(described)})"))
    Console(width=None if sys.stdout.isatty() else 160).print(table)
