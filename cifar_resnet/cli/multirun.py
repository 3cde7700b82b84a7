"""One run for each combination of values, by Hydra: its sweeper chooses the values, its launcher where they run."""

import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from cifar_resnet import messages
from cifar_resnet.cli import overrides
from cifar_resnet.cli.compose import compose
from cifar_resnet.cli.jobs import Job
from cifar_resnet.cli.sweep import Outcome, Score, Sweep
from cifar_resnet.errors import InputError, RunError, one_line

BASIC = "basic"
PLUGINS = {
    "launcher": {
        BASIC: "hydra",
        "joblib": "hydra_plugins.hydra_joblib_launcher",
        "submitit_local": "hydra_plugins.hydra_submitit_launcher",
        "submitit_slurm": "hydra_plugins.hydra_submitit_launcher",
    },
    "sweeper": {BASIC: "hydra", "optuna": "hydra_plugins.hydra_optuna_sweeper"},
}
"""What Hydra offers, and which package has it."""
QUIET = ("hydra/job_logging=none", "hydra/hydra_logging=none", "hydra.output_subdir=null", "hydra.sweep.subdir=.")
"""Runs write folders of their own, and say themselves what they do."""
FULL_ERROR = "HYDRA_FULL_ERROR"
"""Environment variable that lets Hydra raise an error instead of printing it."""


def run_several(
    command: str, job: Job, typed: Sequence[str], afterwards: Callable[[list[Path]], object], score: Score | None
) -> None:
    """Call a job for each combination of values, or for those that a search chooses; one that fails stops no other.

    Args:
        command: whose words they are.
        job: what each run calls.
        typed: the words of the command line; those that are for Hydra begin with ``hydra``.
        afterwards: called with the folders of the runs that came to their end, if several did, unless a search chose
            them.
        score: what a search goes by, of what the job returned; None: there is nothing to search by.

    Raises:
        InputError: a combination cannot be used; found before the first runs.
        RunError: the runs that failed, a line each.
    """
    of_hydra = [word for word in typed if overrides.is_for_hydra(word)]
    own = [word for word in typed if word not in of_hydra]
    launcher, sweeper = (_choice(kind, of_hydra) for kind in PLUGINS)
    searches, is_apart = sweeper != BASIC, launcher != BASIC
    lines = tuple(overrides.ends(own, command) if searches else overrides.combinations(own, command))
    configs = [compose(command, *line) for line in lines]
    if is_apart:
        _check_devices(launcher, configs)
    if searches:
        _check_search(command, sweeper, score, configs)
    fixed = tuple(word for word in lines[0] if all(word in line for line in lines))
    with _folder(configs[0], is_kept=searches or is_apart) as folder:
        sweep = Sweep(command, job, fixed, () if searches else lines, score if searches else None, is_apart, folder)
        values = [overrides.readable(word, command) for word in own if overrides.is_swept(word, command)]
        chosen_by = ["hydra.sweeper.direction=maximize", *values] if searches else [f"run=range({len(lines)})"]
        stopped = _multirun(sweep, [*of_hydra, *chosen_by])
        _tell(sweep, sweep.outcomes(), stopped, afterwards)


def _choice(kind: str, of_hydra: Sequence[str]) -> str:
    """Return which launcher or sweeper the words choose; `InputError` where it is not known or not installed."""
    group = f"hydra/{kind}"
    name = next((word.partition("=")[2] for word in reversed(of_hydra) if word.startswith(f"{group}=")), BASIC)
    if name not in PLUGINS[kind]:
        raise InputError(f"{group}={name}: no such choice; choose {group}={' | '.join(PLUGINS[kind])}")
    if not _is_installed(PLUGINS[kind][name]):
        raise InputError(f"{group}={name} needs more packages: pip install 'cifar-resnet[sweep]'")
    return name


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it would be in
        return False


def _check_devices(launcher: str, configs: Sequence[Any]) -> None:
    several = {config.trainer.devices for config in configs if hasattr(config, "trainer")} - {1}
    if several and launcher != "submitit_slurm":  # which starts a process for each device itself
        raise InputError(
            f"trainer.devices={several.pop()}: hydra/launcher={launcher} gives each run one device; leave it out, and "
            "the runs have them in turn"
        )


def _check_search(command: str, sweeper: str, score: Score | None, configs: Sequence[Any]) -> None:
    if score is None:
        raise InputError(f"hydra/sweeper={sweeper}: {command}.py has nothing to search by")
    if not all(config.data.val_size for config in configs):
        raise InputError(
            f"hydra/sweeper={sweeper} goes by images held out of training, never by the test's: "
            "set data.val_size, such as data.val_size=5000"
        )


@contextmanager
def _folder(config: Any, is_kept: bool) -> Iterator[Path]:
    """Give a folder for what the runs came to, which stays where there is more in it to be read."""
    if not is_kept:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
        return
    root = config.trainer.default_root_dir if hasattr(config, "trainer") else "."
    kept = Path(root, "lightning_logs", "sweeps", time.strftime("%Y-%m-%d_%H-%M-%S"))
    messages.say(f"what each run says and comes to is in {kept}")
    yield kept.absolute()


def _multirun(sweep: Sweep, words: Sequence[str]) -> Exception | None:
    """Let Hydra do the runs; return what stopped it, which may be the failures of the runs themselves.

    It sees nothing but the values, so that all words mean the same in several runs as in one.
    """

    def task(config: DictConfig) -> float | None:
        return sweep.run_one(config)

    node = OmegaConf.create()
    for word in words:
        if not overrides.is_for_hydra(word):
            OmegaConf.update(node, word.lstrip("+").partition("=")[0], None)
    ConfigStore.instance().store(name="sweep", node=node)
    arguments, before = sys.argv, os.environ.get(FULL_ERROR)
    sys.argv = [arguments[0], "-m", *QUIET, f"hydra.sweep.dir={json.dumps(str(sweep.folder))}", *words]
    os.environ[FULL_ERROR] = "1"
    try:
        hydra.main(config_path=None, config_name="sweep", version_base="1.3")(task)()
    except HydraException as error:
        raise InputError(f"hydra: {one_line(error)}") from error
    except Exception as error:
        return error
    finally:
        sys.argv = arguments
        os.environ.pop(FULL_ERROR) if before is None else os.environ.update({FULL_ERROR: before})
    return None


def _tell(
    sweep: Sweep, outcomes: Sequence[Outcome], stopped: Exception | None, afterwards: Callable[[list[Path]], object]
) -> None:
    """Show what the runs came to, side by side; `RunError` with those that failed."""
    failed = [f"{each.title}: {each.error}" for each in outcomes if each.error]
    runs = max(len(sweep.lines), len(outcomes))
    if len(outcomes) < runs:
        failed.append(f"{runs - len(outcomes)} ended without a word: is memory short?")
    if stopped and not failed:
        raise stopped
    done = [each for each in outcomes if not each.error]
    if sweep.score is not None:
        _show_search(sweep, sorted(done, key=lambda each: -(each.score or 0)))
    elif len(folders := [Path(each.folder) for each in done if each.folder]) > 1:
        afterwards(folders)
    if failed:
        raise RunError("\n".join([f"{len(failed)} of {runs} runs failed", *failed]))


def _show_search(sweep: Sweep, outcomes: Sequence[Outcome]) -> None:
    """Print what was tried, the best first, and the command line of that one."""
    table = Table("val/accuracy", "run", box=None, pad_edge=False)
    for each in outcomes:
        table.add_row(f"{each.score:.2%}", each.title)
    Console(width=None if sys.stdout.isatty() else 160, markup=False, emoji=False).print(table)
    if outcomes:
        print("best:", shlex.join(["python", sys.argv[0], *sweep.fixed, *outcomes[0].words]))
