"""One run of several, perhaps in a process of its own: what it is to do, and what it came to."""

import json
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from cifar_resnet import interruption, messages
from cifar_resnet.cli import overrides
from cifar_resnet.cli.compose import compose
from cifar_resnet.cli.jobs import Job, call
from cifar_resnet.errors import InputError, RunError, one_line
from cifar_resnet.interruption import Answer

Score = Callable[[Any], float | None]


@dataclass(frozen=True)
class Outcome:
    """What one run of several came to.

    Attributes:
        title: which it is, and its words.
        words: those that are its own, as they are typed.
        folder: of the run, if it has one.
        score: what a search goes by, where there is one.
        error: the line that ended it; None where it came to its end.
    """

    title: str
    words: list[str]
    folder: str | None = None
    score: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class Sweep:
    """Several runs of a command.

    Args:
        command: its name.
        job: what a run calls.
        fixed: the words that all runs share.
        lines: the words of each run; none where a search chooses them while it runs.
        score: what a search makes as large as it can, of what a job returned; None where nothing is searched for.
        is_apart: whether each run has a process of its own, with a file for its output.
        folder: where that file is, and what each run came to.
    """

    command: str
    job: Job
    fixed: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    score: Score | None
    is_apart: bool
    folder: Path

    def run_one(self, config: DictConfig) -> float | None:
        """Do the run that Hydra asks for, write down what it came to, and return its score."""
        number, chosen = HydraConfig.get().job.num + 1, HydraConfig.get().overrides.task
        GlobalHydra.instance().clear()  # or nothing could be composed
        HydraConfig.instance().cfg = None  # or Lightning would start further devices with words that are Hydra's
        line = self.lines[config.run] if self.lines else (*self.fixed, *chosen)
        words = [word for word in line if word not in self.fixed]
        title = f"run {number}" + (f" of {len(self.lines)}" if self.lines else "")
        title += f": {shlex.join(words)}" if words else ""
        with self._own_process(number, title) if self.is_apart else nullcontext():
            messages.say(title)
            outcome = self._outcome(title, words, overrides.name_run(line, words, self.command))
        (self.folder / f"run_{number}.json").write_text(json.dumps(asdict(outcome), indent=1) + "\n")
        return outcome.score

    def outcomes(self) -> list[Outcome]:
        """Return what was written down, in the order of the runs."""
        files = sorted(self.folder.glob("run_*.json"), key=lambda file: int(file.stem.removeprefix("run_")))
        return [Outcome(**json.loads(file.read_text())) for file in files]

    def _outcome(self, title: str, words: list[str], line: Sequence[str]) -> Outcome:
        try:
            result = call(self.job, compose(self.command, *line), line)
        except (InputError, RunError) as error:
            messages.say(f"failed: {one_line(error)}")
            return Outcome(title, words, error=one_line(error))
        except Exception as error:  # a bug, perhaps in the user's own network, ends no other run
            traceback.print_exc()
            return Outcome(title, words, error=f"{type(error).__name__}: {one_line(error)}")
        folder = getattr(result, "folder", None)
        score = self.score(result) if self.score and result is not None else None
        return Outcome(title, words, folder and str(folder), score)

    @contextmanager
    def _own_process(self, number: int, title: str) -> Iterator[None]:
        interruption.listen()
        log = self.folder / f"run_{number}.log"
        messages.say(f"{title}: begins; what it says is in {log.name}")
        with interruption.answering(Answer.RAISE), _output_to(log):
            yield
        messages.say(f"{title}: ended")


@contextmanager
def _output_to(file: Path) -> Iterator[None]:
    """Send what this process and those that it starts write to a file."""
    streams = (sys.stdout, sys.stderr)
    kept = [os.dup(descriptor) for descriptor in (1, 2)]
    with file.open("wb") as log:
        for stream, descriptor in zip(streams, (1, 2), strict=True):
            stream.flush()
            os.dup2(log.fileno(), descriptor)
    try:
        yield
    finally:
        for stream, descriptor, before in zip(streams, (1, 2), kept, strict=True):
            stream.flush()
            os.dup2(before, descriptor)
            os.close(before)
