"""From a command line to a job: compose the configuration, check it, call; without torch until the job imports it."""

import argparse
import errno
import json
import os
import shlex
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from cifar_resnet import interruption, messages
from cifar_resnet.cli import overrides, wording
from cifar_resnet.cli.schema import COMMANDS
from cifar_resnet.errors import Finished, InputError, RunError, one_line
from cifar_resnet.interruption import Answer, Interrupted

Job = Callable[[Any], object]

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
LONGEST_LINE = 400  # of an error, which may quote whatever was typed; the middle of a longer one is left out


def compose(name: str, *typed: str) -> Any:
    """Return an object of the command's class in `COMMANDS`; raise `InputError` where it cannot be one."""
    try:
        return COMMANDS[name].model_validate(_resolve(_compose(name, typed), throw_on_missing=True))
    except ValidationError as error:
        raise InputError(wording.explain(error, name)) from error


def _resolve(config: DictConfig, throw_on_missing: bool = False) -> Any:
    """Return plain values; `InputError` where one is not set, or refers to what is not there."""
    try:
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=throw_on_missing)
    except MissingMandatoryValue as error:
        raise InputError(f"{error.full_key} is not set: give {error.full_key}=VALUE (--help says which)") from error
    except OmegaConfBaseException as error:
        raise InputError(f"{error.full_key}: {str(error).splitlines()[0]}") from error


def _compose(name: str, typed: Iterable[str]) -> DictConfig:
    readable = overrides.name_network([overrides.read_override(each, name) for each in typed])
    of_network = [each for each in readable if overrides.OF_NETWORK.match(each)]
    try:
        with hydra.initialize_config_dir(str(overrides.CONFIGS), version_base="1.3"):
            config = hydra.compose(name, readable)
            if any(each.startswith("model=") for each in of_network):  # an experiment's arguments may be of another one
                own = hydra.compose(name, of_network).model
                config.model = OmegaConf.masked_copy(config.model, list(own))
            return config
    except HydraException as error:
        key = getattr(error.__cause__, "full_key", None)
        raise InputError(overrides.no_such_key(key, name) if key else one_line(error)) from error


def run(name: str, job: Job, afterwards: Callable[[list[Any]], object] = len) -> None:
    """Call a job with the configuration of the command ``name`` as the command line changes it.

    With -m it is called once for each combination of values, and ``afterwards`` with what those returned that did not
    fail.

    What ends it is one line on standard error. Exit code 2: something that the user gave; 1: something that happened to
    a run that had begun; 128 + n: signal n. A traceback means a bug.
    """
    threading.excepthook = _report_thread
    if _is_further_device():
        interruption.end_with_parent(os.getppid(), "the process of the first device has ended, and this one with it\n")
    try:
        with interruption.answering(Answer.RAISE):
            _run(name, job, afterwards)
    except (InputError, HydraException, argparse.ArgumentError) as error:
        line = f"{name}.py: {one_line(error)}"
        fits = len(line) <= LONGEST_LINE
        print(line if fits else f"{line[: LONGEST_LINE // 2]} … {line[3 - LONGEST_LINE // 2 :]}", file=sys.stderr)
        sys.exit(2)
    except RunError as error:
        sys.exit(f"{name}.py: {error}")
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        sys.exit(f"{name}.py: {error.filename or 'the run folder'} cannot be written ({error.strerror}): make room")
    except Interrupted as stop:
        _say_how_to_go_on(name)
        sys.exit(stop.exit_code)


def _report_thread(failure: threading.ExceptHookArgs) -> None:
    """Leave a full disk to the main thread, which TensorBoard's writing thread tells of it."""
    if not (isinstance(failure.exc_value, OSError) and failure.exc_value.errno in NO_ROOM):
        threading.__excepthook__(failure)


def _is_further_device() -> bool:
    """Whether this process was started for another device than the first of this machine."""
    return os.environ.get("LOCAL_RANK", "0") != "0"


def _say_how_to_go_on(name: str) -> None:
    if _is_further_device():
        sys.exit()  # the first device speaks for all, and Lightning would kill it if another one failed
    if name == "train":
        typed = [word for word in sys.argv[1:] if not word.startswith("ckpt_path=")]
        line = shlex.join(["python", sys.argv[0], *typed, "ckpt_path=last"])
        print(f"interrupted; it goes on with: {line}", file=sys.stderr)


def _run(name: str, job: Job, afterwards: Callable[[list[Any]], object]) -> None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("--cfg", choices=["job"])
    parser.add_argument("overrides", nargs="*")
    options, unknown = parser.parse_known_intermixed_args()
    if unknown:
        near = overrides.no_such_key(unknown[0].strip("-").partition("=")[0], name)
        raise InputError(f"{unknown[0]}: no such option; a key is set by KEY=VALUE, without dashes; {near}")
    options.overrides = overrides.name_positional(options.overrides, name)
    if options.help:
        _show_help(name, _compose(name, options.overrides))
    elif options.cfg:
        print(OmegaConf.to_yaml(_compose(name, options.overrides)))
    elif options.multirun:
        _run_several(name, job, options.overrides, afterwards)
    else:
        _call(job, compose(name, *options.overrides), sys.argv[1:])


def _run_several(name: str, job: Job, typed: Sequence[str], afterwards: Callable[[list[Any]], object]) -> None:
    """Call a job for each combination of values; one that fails does not stop the others."""
    lines = list(overrides.combinations(typed, name))
    common = set.intersection(*map(set, lines))
    own = [[word for word in line if word not in common] for line in lines]
    named = [overrides.name_run(*each, name) for each in zip(lines, own, strict=True)]
    configs = [compose(name, *line) for line in named]  # all are checked before the first runs
    results, failed = [], []
    for number, (config, line, words) in enumerate(zip(configs, named, own, strict=True), 1):
        title = f"run {number} of {len(lines)}" + (f": {shlex.join(words)}" if words else "")
        messages.say(title)
        try:
            results.append(_call(job, config, line))
        except (InputError, RunError) as error:
            failed.append(f"{title}: {one_line(error)}")
            messages.say(f"failed: {one_line(error)}")
    if len(results) > 1:
        afterwards(results)
    if failed:
        raise RunError("\n".join([f"{len(failed)} of {len(lines)} runs failed", *failed]))


def _call(job: Job, config: Any, line: Sequence[str]) -> object:
    """Do one job, perhaps of several, and leave the process as it was: one that it starts is to do this job alone."""
    if config.needs_torch:
        messages.say_loading()  # within a second of Enter, for a mistake would have been answered by now
    arguments, environment = sys.argv, dict(os.environ)
    sys.argv = [arguments[0], *line]
    try:
        return job(config)
    except Finished as done:
        print(done)
        return None
    finally:  # the ranks that Lightning leaves there would be taken for those of the next job
        sys.argv = arguments
        os.environ.clear()
        os.environ.update(environment)


def _show_help(name: str, config: DictConfig) -> None:
    """Print the head of the command's file, and each key with its value, its meaning and what it accepts."""
    config = OmegaConf.create(_resolve(config))
    head = (overrides.CONFIGS / f"{name}.yaml").read_text().partition("\n\n")[0]
    print(head.replace("# ", ""), end="\n\n")
    for group in COMMANDS[name].groups:
        print(f"  {group}={' | '.join(overrides.choices(group))}")
    table = Table("key", "value", "meaning", box=None, pad_edge=False)
    before = ""
    for key, described in wording.describe(COMMANDS[name]).items():
        if key.partition(".")[0] != before.partition(".")[0] and "." in key + before:
            table.add_row()
        before = key
        value = "" if OmegaConf.is_missing(config, key) else json.dumps(OmegaConf.select(config, key), default=str)
        table.add_row(key, value, f"{described['description']} ({wording.expected(described)})")
    Console(width=None if sys.stdout.isatty() else 160, markup=False, emoji=False).print(table)
