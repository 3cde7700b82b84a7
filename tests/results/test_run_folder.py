"""The folder of a run: its own, whoever begins at the same moment."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import pytest

from cifar_resnet.cli.compose import compose
from cifar_resnet.errors import InputError
from cifar_resnet.results.run_folder import RunFolder


def test_runs_that_begin_at_once_have_folders_of_their_own(tmp_path: Path) -> None:
    config = compose("train", "data=digits", f"trainer.default_root_dir={tmp_path}")
    count = 16
    together = Barrier(count)

    def begin(_: int) -> Path | None:
        trainer = SimpleNamespace(is_global_zero=True, fast_dev_run=False, logger=None)
        together.wait()
        return RunFolder(config, trainer).path  # type: ignore[arg-type]

    with ThreadPoolExecutor(count) as pool:
        paths = set(pool.map(begin, range(count)))
    assert paths == {tmp_path / "lightning_logs" / f"version_{number}" for number in range(count)}


def test_of_two_that_go_on_with_one_run_the_second_is_refused(tmp_path: Path) -> None:
    config = compose("train", "data=digits", f"trainer.default_root_dir={tmp_path}")
    trainer: Any = SimpleNamespace(is_global_zero=True, fast_dev_run=False, logger=None)
    with RunFolder(config, trainer) as run, pytest.raises(InputError, match="is being run by another process"):
        RunFolder(config, trainer, unfinished=run.path)
