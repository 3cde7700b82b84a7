"""From a command line to a job: compose the configuration, check it, call; without torch until the job imports it."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from cifar_resnet.cli import overrides, schema
from cifar_resnet.errors import InputError, one_line

Job = Callable[[Any], object]

LONGEST_LINE = 400  # of an error, which may quote whatever was typed; the middle of a longer one is left out


def compose(name: str, *typed: str) -> Any:
    """Return an object of the command's class in `schema.COMMANDS`; raise `InputError` where it cannot be one."""
    try:
        return schema.COMMANDS[name].model_validate(_resolve(_compose(name, typed), throw_on_missing=True))
    except ValidationError as error:
        raise InputError(schema.explain(error, name)) from error


def _resolve(config: DictConfig, throw_on_missing: bool = False) -> Any:
    """Return plain values; `InputError` where one is not set, or refers to what is not there."""
    try:
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=throw_on_missing)
    except MissingMandatoryValue as error:
        raise InputError(f"{error.full_key} is not set: give {error.full_key}=VALUE (--help says which)") from error
    except OmegaConfBaseException as error:
        raise InputError(f"{error.full_key}: {str(error).splitlines()[0]}") from error


def _compose(name: str, typed: Iterable[str]) -> DictConfig:
    readable = [overrides.read_override(each, name) for each in typed]
    try:
        with hydra.initialize_config_dir(str(overrides.CONFIGS), version_base="1.3"):
            return hydra.compose(name, readable)
    except HydraException as error:
        key = getattr(error.__cause__, "full_key", None)
        raise InputError(overrides.no_such_key(key, name) if key else one_line(error)) from error


def run(name: str, job: Job) -> None:
    """Call a job with the configuration of the command ``name`` as the command line changes it.

    Whatever the user can cause ends as one line on standard error and exit code 2; a traceback means a bug.
    """
    try:
        _run(name, job)
    except (InputError, HydraException, argparse.ArgumentError) as error:
        line = f"{name}.py: {one_line(error)}"
        fits = len(line) <= LONGEST_LINE
        print(line if fits else f"{line[: LONGEST_LINE // 2]} … {line[3 - LONGEST_LINE // 2 :]}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except SystemExit as stop:  # Lightning ends an interrupted training with 1
        sys.exit(130 if isinstance(stop.__context__, KeyboardInterrupt) else stop.code)


def _run(name: str, job: Job) -> None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("--cfg", choices=["job"])
    parser.add_argument("overrides", nargs="*")
    options, unknown = parser.parse_known_intermixed_args()
    if unknown:
        near = overrides.no_such_key(unknown[0].strip("-").partition("=")[0], name)
        raise InputError(f"{unknown[0]}: no such option; a key is set by KEY=VALUE, without dashes; {near}")
    if options.help:
        _show_help(name, _compose(name, options.overrides))
    elif options.cfg:
        print(OmegaConf.to_yaml(_compose(name, options.overrides)))
    elif options.multirun:
        lines = list(overrides.combinations(options.overrides, name))
        for config, line in [(compose(name, *line), line) for line in lines]:  # all are checked before the first runs
            _call(job, config, line)
    else:
        job(compose(name, *options.overrides))


def _call(job: Job, config: Any, line: Sequence[str]) -> None:
    """Do one of several jobs, and leave the process as it was: a process that it starts is to do this job alone."""
    arguments, environment = sys.argv, dict(os.environ)
    sys.argv = [arguments[0], *line]
    try:
        job(config)
    finally:  # the ranks that Lightning leaves there would be taken for those of the next job
        sys.argv = arguments
        os.environ.clear()
        os.environ.update(environment)


def _show_help(name: str, config: DictConfig) -> None:
    """Print the head of the command's file, and each key with its value, its meaning and what it accepts."""
    config = OmegaConf.create(_resolve(config))
    head = (overrides.CONFIGS / f"{name}.yaml").read_text().partition("\n\n")[0]
    print(head.replace("# ", ""), end="\n\n")
    for group in schema.COMMANDS[name].groups:
        print(f"  {group}={' | '.join(overrides.choices(group))}")
    table = Table("key", "value", "meaning", box=None, pad_edge=False)
    before = ""
    for key, described in schema.describe(schema.COMMANDS[name]).items():
        if key.partition(".")[0] != before.partition(".")[0] and "." in key + before:
            table.add_row()
        before = key
        value = "" if OmegaConf.is_missing(config, key) else json.dumps(OmegaConf.select(config, key), default=str)
        table.add_row(key, value, f"{described['description']} ({schema.expected(described)})")
    Console(width=None if sys.stdout.isatty() else 160, markup=False, emoji=False).print(table)
