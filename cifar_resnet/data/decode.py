"""Many image files into one array, by as many processes as there are cores, with a bar in a terminal."""

import contextlib
import mmap
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np

from cifar_resnet.data.files import printable
from cifar_resnet.data.images import read
from cifar_resnet.errors import InputError, RunError, one_line
from cifar_resnet.interruption import SIGNALS, end_with_parent
from cifar_resnet.messages import progress_bar

MOST_AT_A_TIME = 250  # files that a process decodes before it reports
FORKED_FROM = 1000  # files: for fewer of them threads are as fast


def decode(files: Sequence[Path], side: int, resize: bool) -> np.ndarray:
    """Return the pixels of images to train on or to be tested with, in their order: RGB, uint8 ``[N, side, side, 3]``.

    Small files keep the interpreter busy, so threads would wait for each other: on Linux forked processes decode them,
    straight into memory that they share. They read files and nothing else, so they need none of the threads that a fork
    leaves behind. Elsewhere, and for few files, it is threads.

    Raises:
        InputError: the first file that cannot be read, or that is of another size where ``resize`` does not allow it.
        RunError: the system ended a process, as it does where memory is short.
    """
    shape = (len(files), side, side, 3)
    shared = mmap.mmap(-1, max(1, int(np.prod(shape))))
    images = np.frombuffer(shared, np.uint8, int(np.prod(shape))).reshape(shape)

    size = min(MOST_AT_A_TIME, 1 + len(files) // 64)

    def decode_chunk(start: int) -> int:
        end = min(start + size, len(files))
        for index in range(start, end):
            images[index] = _pixels(files[index], side, resize)
        return end

    starts = range(0, len(files), size)
    if len(files) < FORKED_FROM or sys.platform != "linux":
        with ThreadPoolExecutor(os.cpu_count()) as threads, _ending(threads):
            _watch(threads.map(decode_chunk, starts), len(files))
        return images
    cores, fork = len(os.sched_getaffinity(0)), multiprocessing.get_context("fork")
    with (
        ProcessPoolExecutor(cores, fork, initializer=_begin, initargs=(decode_chunk, os.getpid())) as processes,
        _ending(processes),
    ):
        with _blocked_signals(), _allowed():  # until each process ignores them
            done = processes.map(_work, starts)
        _watch(done, len(files))
    return images


_inherited: list[Callable[[int], int]] = []  # what a forked process does; functions cannot be sent to it


def _begin(decode_chunk: Callable[[int], int], parent: int) -> None:
    """Prepare a process: the one that started it answers signals, and takes it along when it is killed."""
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    end_with_parent(parent)
    _inherited[:] = [decode_chunk]


def _work(start: int) -> int:
    return _inherited[0](start)


@contextlib.contextmanager
def _blocked_signals() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _allowed() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(f"the system starts no process to read images: {one_line(error)}: close others") from error


@contextlib.contextmanager
def _ending(pool: Executor) -> Iterator[None]:
    """Let what ends one chunk, or all, end what is waiting as well."""
    try:
        yield
    except BrokenProcessPool as error:
        raise RunError("the system ended a process that was reading images: is memory short?") from error
    except BaseException:
        pool.shutdown(cancel_futures=True)
        raise


def _watch(done: Iterable[int], total: int) -> None:
    """Wait for all chunks; a terminal shows how far they are."""
    with progress_bar() as progress:
        task = progress.add_task("", total=total)
        for count in done:
            progress.update(task, completed=count)


def _pixels(file: Path, side: int, resize: bool) -> np.ndarray:
    try:
        picture = read(file, side)
    except InputError as error:
        raise InputError(f"{error}: repair or remove it") from error
    width, height = picture.size
    if not resize and (width, height) != (side, side):
        raise InputError(
            f"{printable(file)} is {width}×{height} pixels, not {side}×{side}: "
            "scale the images, or set data.resize=true"
        )
    return picture.pixels
