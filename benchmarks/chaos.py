"""Trainings killed at seeded random moments, gone on with until they are finished, and compared with undisturbed ones.

Each trial is a small training in a folder of its own, with TMPDIR on --temporary. A SIGKILL or SIGTERM comes at a
random time after a sign of life, half of the trials are hit again when they go on (`ckpt_path=last`), and then they run
to their end. What is left has to be what the same command leaves undisturbed, to the bit: the contents of `last.ckpt`,
the figures of `summary.json`, TensorBoard's scalars and the names of the files; one run folder, no process, no
traceback, and the exit codes that are promised. The table counts signals by what they hit, as output and files tell.
"""

import argparse
import itertools
import json
import logging
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import measure
from child import TRAIN, Child

sys.path.append(str(TRAIN.parents[1] / "tests"))
from test_resume import contents, figures, same, scalars

ALWAYS = (
    "data=digits data.train_size=200 model.width=2 trainer.accelerator=cpu trainer.max_epochs=3 "
    "trainer.log_every_n_steps=2 schedule.peak_epoch=1 lr_search.num_training=30"
)
COMMANDS = (  # the first three save after every step, the last after every epoch
    "data.batch_size=32 checkpoint.minutes=1e-9",
    "data.batch_size=32 checkpoint.minutes=1e-9 data.num_workers=2",
    "data.batch_size=16 checkpoint.minutes=1e-9 data.num_workers=2 trainer.accumulate_grad_batches=3",
    "data.batch_size=16 checkpoint.minutes=1e-3 trainer.accumulate_grad_batches=2 data.val_size=40",
    "data.batch_size=32",
)
RUNS, DRAFT, LAST_EPOCH = "lightning_logs/version_*", "/checkpoints/.*.tmp", "epoch   3/3"
MOMENTS = {  # the words, or the file, from which a random delay counts, and the words, or seconds, that it reaches to
    "start": ("", "network:"),
    "claim": (RUNS, 0.02),
    "search": ("run folder:", "LR search:"),
    "epochs": ("LR search:", LAST_EPOCH),
    "save": (RUNS + DRAFT, 0.01),
    "test": (LAST_EPOCH, "test accuracy"),
    "gallery": (RUNS + "/evaluation.json", "test accuracy"),
    "report": ("test accuracy", "look at it:"),
    "end": ("look at it:", 0.3),
    "any": ("", "look at it:"),
}
AGAIN = ("start", "save", "any")  # where a process is hit that goes on
PHASES = ("start-up", "search", "epoch", "save", "after the last epoch", "finished", "all")
SIGNALS = {"SIGKILL": (3, -9), "SIGTERM": (1, 143)}  # how often of 4, and the exit code
ERRORS = ("Traceback", "Exception ignored")


@dataclass
class Hit:
    """A signal: where it was aimed, what it hit, and how the process ended."""

    signal: str
    group: bool  # sent to the workers too, as a terminal and many schedulers do
    aim: str
    phase: str
    exit_code: int | None


@dataclass
class Trial:
    """One training, with all that was wrong with it."""

    number: int
    command: str
    hits: list[Hit] = field(default_factory=list)
    finished: bool = False
    wrong: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)  # in TMPDIR; after a SIGKILL nobody finds it again


class Reference:
    """The same command, undisturbed: what it left, and when its signs of life came."""

    def __init__(self, command: str, folder: Path, temporary: Path):
        self.command, self.seconds = command, {"": 0.0}
        child = Child(folder, temporary, f"{ALWAYS} {command}")
        signs = {sign for pair in MOMENTS.values() for sign in pair if isinstance(sign, str)}
        while child.lives():
            seen = {sign for sign in signs - self.seconds.keys() if child.shows(sign)}
            self.seconds |= dict.fromkeys(seen, time.monotonic() - child.started)
            time.sleep(0.01)
        if child.wait():
            raise RuntimeError(child.log.read_text())
        self.left = what_it_left(folder / "lightning_logs" / "version_0")
        self.last_step = self.left["last.ckpt"]["global_step"]

    def delay(self, moment: str, rng: random.Random) -> float:
        """Draw the seconds from a moment's sign to the signal."""
        sign, until = MOMENTS[moment]
        return rng.uniform(0, until if isinstance(until, float) else self.seconds[until] - self.seconds[sign])


def what_it_left(run: Path) -> dict[str, Any]:
    names = {re.sub("tfevents.*", "tfevents", path.name) for path in run.rglob("*")}
    return {"last.ckpt": contents(run), "summary.json": figures(run), "scalars": scalars(run), "file names": names}


def phase(child: Child, last_step: int) -> str:
    """Tell what a training was doing when it ended, from its own output and the files."""
    output = child.log.read_text()
    kinds = {
        "finished": child.shows(RUNS + "/summary.json"),
        "save": child.shows(f"{RUNS}/checkpoints/.*.{child.process.pid}.tmp"),
        "start-up": "run folder:" not in output,
        "after the last epoch": LAST_EPOCH in output or f"goes on after step {last_step}\n" in output,
        "epoch": re.search("LR search:|goes on after step [1-9]", output),
    }
    return next((kind for kind, is_it in kinds.items() if is_it), "search")


def interrupt(child: Child, trial: Trial, reference: Reference, rng: random.Random) -> None:
    """Send a signal at a random moment, and look at how the process ends."""
    name, group = rng.choices(list(SIGNALS), [often for often, _ in SIGNALS.values()])[0], rng.random() < 0.5
    aim = rng.choice(AGAIN) if trial.hits else list(MOMENTS)[trial.number % len(MOMENTS)]
    if aim == "save" and rng.random() < 0.8:  # not always the first
        child.wait("LR search:")
        time.sleep(reference.delay("epochs", rng))
    child.wait(MOMENTS[aim][0])
    time.sleep(reference.delay(aim, rng))
    before = phase(child, reference.last_step)
    if child.lives():
        (os.killpg if group else os.kill)(child.process.pid, getattr(signal, name))
        code = child.wait()
        hit = Hit(name, group, aim, phase(child, reference.last_step), code)
        if before != "finished" or code != 0:  # else it had all but ended
            trial.hits.append(hit)
            trial.wrong += judge_exit(hit, child.log.read_text())


def judge_exit(hit: Hit, output: str) -> list[str]:
    """Return what is wrong with the end of a process that a signal hit."""
    allowed = {SIGNALS[hit.signal][1]} | ({-15} if hit.phase == "finished" else set())
    if hit.phase == "start-up" and hit.signal == "SIGTERM" and not output:
        allowed.add(-15)  # Python had not come to the program yet, which a shell calls 143 as well
    wrong = [] if hit.exit_code in allowed else [f"{hit.signal}: exit code {hit.exit_code}"]
    if hit.exit_code == 143 and hit.phase not in ("start-up", "finished") and "ckpt_path=last" not in output:
        wrong.append("SIGTERM: no line with the command that goes on")
    return wrong


def run_trial(number: int, seed: int, references: list[Reference], folder: Path, temporary: Path) -> Trial:
    """Start a training, interrupt it once or twice, let it run to its end, and judge what it left."""
    rng, reference = random.Random(f"{seed}/{number}"), references[(number + number // len(MOMENTS)) % len(references)]
    trial, children, times = Trial(number, reference.command), [], rng.choice((1, 2))
    for turn in range(times + 1):
        words = f"{ALWAYS} {reference.command}" + " ckpt_path=last" * (turn > 0)
        children.append(Child(folder / str(number), temporary / str(number), words))
        if turn < times:
            interrupt(children[-1], trial, reference, rng)
    code = children[-1].wait()
    trial.finished = code == 0 and children[-1].shows(RUNS + "/summary.json")
    trial.left = [path.name for path in (temporary / str(number)).iterdir()]
    trial.wrong += judge_rest(trial, children, reference)
    print(json.dumps(asdict(trial)), flush=True)
    return trial


def judge_rest(trial: Trial, children: list[Child], reference: Reference) -> list[str]:
    """Return what is wrong with the end, the outputs, the processes and the files."""
    wrong = [] if trial.finished else [f"it ends with exit code {children[-1].process.returncode}"]
    wrong += [f"{child.log}: a process is left" for child in children if child.leaves_processes()]
    wrong += [f"{child.log}: {word}" for child in children for word in ERRORS if child.shows(word)]
    if trial.left and all(hit.signal != "SIGKILL" for hit in trial.hits):
        wrong.append("files are left in TMPDIR")
    folder = children[0].folder
    found = [str(path.relative_to(folder)) for path in (*folder.iterdir(), *folder.glob("*/*"))]
    if found != ["lightning_logs", "lightning_logs/version_0"] or not trial.finished:
        return [*wrong, f"not one run folder: {found}"]
    left = what_it_left(folder / "lightning_logs" / "version_0")
    return wrong + [f"{name} differs" for name in left if not same(left[name], reference.left[name])]


def run_trials(options: argparse.Namespace, run: Callable[[int], Trial]) -> list[Trial]:
    """Run trials side by side until there were enough signals, or the time is over."""
    end, trials, numbers = time.monotonic() + 60 * options.minutes, [], itertools.count()

    def is_enough() -> bool:
        counts = Counter(hit.signal for trial in list(trials) for hit in trial.hits)
        return counts["SIGKILL"] >= options.kills and counts["SIGTERM"] >= options.terms

    def work(_job: int) -> None:
        while time.monotonic() < end and not is_enough():
            trials.append(run(next(numbers)))

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(work, range(options.jobs)))
    return trials


def row(trials: list[Trial], what: str, name: str) -> dict[str, Any]:
    """Count the signals of a name that hit something."""
    hit = [trial for trial in trials for each in trial.hits if each.signal == name and what in (each.phase, "all")]
    resumed, identical = sum(trial.finished for trial in hit), sum(not trial.wrong for trial in hit)
    return {"hit": what, "signal": name, "tried": len(hit), "resumed": resumed, "identical": identical}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    option = parser.add_argument
    option("--kills", type=int, default=60, help="SIGKILLs to send at least")
    option("--terms", type=int, default=20, help="SIGTERMs to send at least")
    option("--minutes", type=float, default=60, help="after which no new trial begins")
    option("--jobs", type=int, default=2, help="trainings side by side, of one thread each")
    option("--seed", type=int, default=0, help="of the moments")
    option("--temporary", default="/dev/shm", help="parent of TMPDIR, best on another file system")
    option("--record", dest="output", type=Path, help="write table and trials to this JSON file")
    options = parser.parse_args()
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    with tempfile.TemporaryDirectory(dir=options.temporary) as name, ThreadPoolExecutor(options.jobs) as pool:
        work = [(command, folder / f"r{n}", Path(name, f"r{n}")) for n, command in enumerate(COMMANDS)]
        references = list(pool.map(lambda arguments: Reference(*arguments), work))
        trials = run_trials(options, lambda number: run_trial(number, options.seed, references, folder, Path(name)))
    wrong = any(trial.wrong for trial in trials)
    print(f"outputs and run folders are kept: {folder}") if wrong else shutil.rmtree(folder)
    rows = [row(trials, what, name) for what in PHASES for name in SIGNALS]
    measure.report("chaos", f"{len(trials)} trainings", rows, [asdict(trial) for trial in trials], options)
    sys.exit(wrong)


if __name__ == "__main__":
    main()
