"""A training in a process of its own, which can be watched and disturbed."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

TRAIN = Path(__file__).resolve().parents[1] / "scripts" / "train.py"
PATIENCE = 300  # seconds that it may take


class Child:
    """A process that trains in a folder; its output goes to a file beside that.

    Args:
        folder: the working directory, made where there is none.
        temporary: its TMPDIR, likewise.
        words: of the command line.
    """

    def __init__(self, folder: Path, temporary: Path, words: str):
        for path in (folder, temporary):
            path.mkdir(exist_ok=True)
        self.folder, self.started = folder, time.monotonic()
        self.log = folder.with_name(f"{folder.name}.{time.monotonic_ns()}.log")
        command = [sys.executable, str(TRAIN), *words.split()]
        variables = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "TMPDIR": str(temporary)}
        with self.log.open("w") as log:  # in a process group of its own
            self.process = subprocess.Popen(
                command, cwd=folder, env=variables, stdout=log, stderr=log, start_new_session=True
            )

    def shows(self, sign: str) -> bool:
        """Tell whether words are in the output, or a file is there."""
        return any(self.folder.glob(sign)) if "*" in sign else sign in self.log.read_text()

    def lives(self) -> bool:
        """Tell whether it runs; it is ended when it takes too long."""
        if time.monotonic() - self.started > PATIENCE:
            self.process.kill()
        return self.process.poll() is None

    def wait(self, sign: str | None = None) -> int | None:
        """Wait for a sign of life, or the end; return the exit code."""
        while self.lives() and (sign is None or not self.shows(sign)):
            time.sleep(0.002)
        return self.process.poll()

    def leaves_processes(self) -> bool:
        """Tell whether workers live on, which notice within seconds that they are alone."""
        with suppress(ProcessLookupError):
            for _ in range(100):
                os.killpg(self.process.pid, 0)
                time.sleep(0.2)
            os.killpg(self.process.pid, signal.SIGKILL)
            return True
        return False
