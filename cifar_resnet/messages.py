"""What is being done at the moment: lines and bars on standard error, of the first device alone."""

import os
import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
"""Environment variables in which launchers say which of several devices a process is for; the first that is set."""


def say(line: str) -> None:
    """Write a line to standard error, which leaves standard output to results."""
    if _is_first_device():
        print(line, file=sys.stderr, flush=True)


def say_loading() -> None:
    """Say what the first seconds go to, where they do."""
    if "torch" not in sys.modules:
        say("loading PyTorch and Lightning")


def progress_bar(console: Console | None = None) -> Progress:
    """Return a bar, in a terminal: on standard error, or on a console that is there; it leaves nothing behind."""
    console = console or Console(stderr=True)
    return Progress(
        *(BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()),
        console=console,
        transient=True,
        disable=not (console.is_terminal and _is_first_device()),
        redirect_stdout=False,  # what is piped on would end in the terminal
    )


def _is_first_device() -> bool:
    return next((os.environ[name] for name in RANKS if name in os.environ), "0") == "0"
