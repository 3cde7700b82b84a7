"""A figure of a run, in a file and in TensorBoard."""

from pathlib import Path

import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image


def write_picture(figure: Figure, file: Path, logger: Logger | None, name: str, step: int = 0) -> None:
    """Write a figure as a PNG file, and show it in TensorBoard as ``pictures/NAME``, where that is the logger.

    It is drawn once for both, for drawing takes most of the end of a short run. Where it is transparent, TensorBoard,
    whose page may be dark, gets it on white.
    """
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    drawn = Image.fromarray(np.asarray(canvas.buffer_rgba()))
    drawn.save(file, dpi=(figure.dpi, figure.dpi))
    if isinstance(logger, TensorBoardLogger):
        opaque = Image.alpha_composite(Image.new("RGBA", drawn.size, "white"), drawn).convert("RGB")
        logger.experiment.add_image(f"pictures/{name}", np.asarray(opaque), step, dataformats="HWC")
