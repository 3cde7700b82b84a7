"""A command: what its options ask for, done; what ends it, in one line. Without torch until the job imports it."""

import argparse
import json
import os
import shlex
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from cifar_resnet import interruption
from cifar_resnet.cli import overrides, wording
from cifar_resnet.cli.compose import compose, compose_plain, resolve
from cifar_resnet.cli.jobs import NO_ROOM, Job, call
from cifar_resnet.cli.multirun import run_several
from cifar_resnet.cli.schema import COMMANDS
from cifar_resnet.cli.sweep import Score
from cifar_resnet.errors import InputError, RunError, one_line
from cifar_resnet.interruption import Answer, Interrupted

LONGEST_LINE = 400  # of an error, which may quote whatever was typed; the middle of a longer one is left out


def run(name: str, job: Job, afterwards: Callable[[list[Path]], object] = len, score: Score | None = None) -> None:
    """Call a job with the configuration of the command ``name`` as the command line changes it.

    With -m it is called several times, and ``afterwards`` and ``score`` are as `run_several` has them.

    What ends it is one line on standard error. Exit code 2: something that the user gave; 1: something that happened to
    a run that had begun; 128 + n: signal n. A traceback means a bug.
    """
    threading.excepthook = _report_thread
    if _is_further_device():
        interruption.end_with_parent(os.getppid(), "the process of the first device has ended, and this one with it\n")
    try:
        with interruption.answering(Answer.RAISE):
            _run(name, job, afterwards, score)
    except (InputError, HydraException, argparse.ArgumentError) as error:
        line = f"{name}.py: {one_line(error)}"
        fits = len(line) <= LONGEST_LINE
        print(line if fits else f"{line[: LONGEST_LINE // 2]} … {line[3 - LONGEST_LINE // 2 :]}", file=sys.stderr)
        sys.exit(2)
    except RunError as error:
        sys.exit(f"{name}.py: {error}")
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


def _run(name: str, job: Job, afterwards: Callable[[list[Path]], object], score: Score | None) -> None:
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
        _show_help(name, compose_plain(name, options.overrides))
    elif options.cfg:
        print(OmegaConf.to_yaml(compose_plain(name, options.overrides)))
    elif options.multirun:
        run_several(name, job, options.overrides, afterwards, score)
    else:
        call(job, compose(name, *options.overrides), sys.argv[1:])


def _show_help(name: str, config: DictConfig) -> None:
    """Print the head of the command's file, and each key with its value, its meaning and what it accepts."""
    config = OmegaConf.create(resolve(config))
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
