"""SIGINT and SIGTERM: the first ends a run where nothing is lost, a second one at once."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """A signal asked for an end. Like KeyboardInterrupt it is no error, so that nobody takes it for one on its way."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum


class Answer(Enum):
    """What the first signal does."""

    LEAVE = auto()  # nothing has begun
    RAISE = auto()
    NOTE = auto()  # whoever asks `requested` ends where it is best


@dataclass
class _State:
    answer: Answer = Answer.LEAVE
    signum: int | None = None
    listening: bool = False


_state = _State()


def listen() -> None:
    """Take the signals over, again where a library has put its own handler in place of this one."""
    _state.listening = True
    sys.unraisablehook = _on_unraisable
    for signum in SIGNALS:
        signal.signal(signum, _on_signal)


def keep_listening() -> None:
    """Take the signals over again, if they were: Lightning's own handler would end a run with exit code 0."""
    if _state.listening:
        listen()


@contextmanager
def answering(answer: Answer) -> Iterator[None]:
    """Answer the first signal in this way from here on; after it, raise `Interrupted` if one was noted."""
    before, _state.answer = _state.answer, answer
    try:
        yield
    finally:
        _state.answer = before
    if answer is Answer.NOTE and _state.signum is not None:
        raise Interrupted(_state.signum)


def requested() -> int | None:
    """Return the signal that asked for an end, None as long as there was none."""
    return _state.signum


def forget() -> None:
    """Forget the signal: who asked has been heard, and this process goes on with something else."""
    _state.signum = None


def end_with_parent(parent: int, last_words: str = "") -> None:
    """End this process, with these words, within seconds after the one that started it, which may be killed.

    Who knows the parent's process number from before this process began, loses it in no case.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(2)
        os.write(2, last_words.encode())
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _on_signal(signum: int, _frame: FrameType | None) -> None:
    if _state.signum is not None or _state.answer is Answer.LEAVE:
        os._exit(128 + signum)
    _state.signum = signum
    if _state.answer is Answer.RAISE:
        raise Interrupted(signum)
    # Not by print: the signal may have come in the middle of one.
    os.write(2, f"\n{signal.Signals(signum).name}: saving after this step; once more to stop at once\n".encode())


def _on_unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    """Send a signal anew that came where Python lets nothing be raised, such as the callback of a weak reference."""
    if isinstance(unraisable.exc_value, Interrupted):
        forget()
        again = threading.Timer(0.01, os.kill, (os.getpid(), unraisable.exc_value.exit_code - 128))
        again.daemon = True
        again.start()
    else:
        sys.__unraisablehook__(unraisable)
