"""A figure of a run: the file is what matplotlib itself would save, and TensorBoard shows the same on white."""

import io
from pathlib import Path

import numpy as np
import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cifar_resnet.callbacks.pictures import write_picture


def draw(background: str) -> Figure:
    figure = Figure(figsize=(3, 2), dpi=90, layout="constrained", facecolor=background)
    figure.subplots().set(title="losses", xlabel="step")
    return figure


def pixels(file: object) -> np.ndarray:
    with Image.open(file) as image:  # type: ignore[arg-type]
        return np.asarray(image)


@pytest.mark.parametrize("background", ["white", "none"])
def test_the_file_and_tensorboard_have_what_matplotlib_draws(background: str, tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name=None, version="run")
    write_picture(draw(background), tmp_path / "drawn.png", logger, "losses", step=7)
    draw(background).savefig(tmp_path / "saved.png")
    assert np.array_equal(pixels(tmp_path / "drawn.png"), pixels(tmp_path / "saved.png"))
    logger.experiment.flush()
    (event,) = EventAccumulator(logger.log_dir).Reload().Images("pictures/losses")
    draw("white").savefig(tmp_path / "opaque.png")
    shown, opaque = pixels(io.BytesIO(event.encoded_image_string)), pixels(tmp_path / "opaque.png")[..., :3]
    assert event.step == 7
    assert np.abs(shown.astype(int) - opaque).max() <= 1  # rounding of the letters' edges


def test_a_run_that_logs_nowhere_has_the_file(tmp_path: Path) -> None:
    write_picture(draw("white"), tmp_path / "drawn.png", None, "losses")
    assert pixels(tmp_path / "drawn.png").shape == (180, 270, 4)
