"""What long benchmarks measure, in a file: they can be stopped, go on, and be shared by several processes."""

import fcntl
import json
from pathlib import Path
from typing import Any

Line = dict[str, Any]


class Record:
    """Measurements in a file of JSON lines, which several processes read and add to."""

    def __init__(self, path: Path):
        # Closing any other handle on the file would give up this process's claims, so this is the only one.
        self._file = path.open("a+")

    def claim(self, place: int) -> bool:
        """Say whether no other living process has this place; it is this one's from now on."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
        except BlockingIOError:
            return False
        return True

    def add(self, line: Line) -> None:
        """Write down a measurement."""
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()

    def find(self, facts: Line) -> list[Line]:
        """Return the measurements of which all this is true."""
        self._file.seek(0)
        return [line for line in map(json.loads, self._file) if facts.items() <= line.items()]
