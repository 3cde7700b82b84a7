"""The picture of what goes in: what training gets, to the pixel, and nothing of the run is changed by it."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_classifier, make_data, make_trainer
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cifar_resnet.analysis.inputs import draw_inputs
from cifar_resnet.callbacks.inputs import InputPreview


class Seen(Callback):
    """Keeps the batches that training gets."""

    def __init__(self) -> None:
        self.images: list[np.ndarray] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch, batch_idx: int) -> None:  # type: ignore[no-untyped-def]
        self.images += list(batch[0].numpy())


def fit(folder: Path, *callbacks: Callback) -> tuple[Seen, dict[str, torch.Tensor]]:
    data, seen = make_data(train=60), Seen()
    classifier = make_classifier(data)
    logger = TensorBoardLogger(folder, name="", version="")
    make_trainer(folder, callbacks=[*callbacks, seen], logger=logger, max_epochs=2).fit(classifier, datamodule=data)
    logger.finalize("success")
    return seen, classifier.state_dict()


def cells(picture: np.ndarray, count: int, top: int, scale: int = 4) -> list[np.ndarray]:
    """The images of a group, reduced to their own pixels again."""
    side, corners = 32 * scale, [(top + 166 * (place // 8), 16 + 144 * (place % 8)) for place in range(count)]
    return [picture[y : y + side, x : x + side][scale // 2 :: scale, scale // 2 :: scale] for y, x in corners]


def test_it_shows_the_pixels_that_training_gets(tmp_path: Path) -> None:
    seen, _ = fit(tmp_path, InputPreview())
    picture = np.asarray(Image.open(tmp_path / "batch.png").convert("RGB"))
    shown = cells(picture, 32, top=16 + 52 + 22)
    assert all(np.array_equal(one, other) for one, other in zip(shown, seen.images[:32], strict=True))
    test = make_data(train=60).test.images
    rows = [0, 2, 3, 5, 6, 8, 9, 11]
    shown = cells(picture, 8, top=16 + 52 + 4 * 166 + 20 + 52 + 22)
    assert all(np.array_equal(one, test[row]) for one, row in zip(shown, rows, strict=True))
    assert EventAccumulator(str(tmp_path)).Reload().Tags()["images"] == ["pictures/batch"]


def test_training_is_the_same_with_and_without_it(tmp_path: Path) -> None:
    with_picture, without = fit(tmp_path / "with", InputPreview())[1], fit(tmp_path / "without")[1]
    assert all(torch.equal(with_picture[name], without[name]) for name in without)
    assert not (tmp_path / "without" / "batch.png").exists()


def test_a_run_that_goes_on_keeps_its_picture(tmp_path: Path) -> None:
    (tmp_path / "batch.png").write_bytes(b"the first")
    fit(tmp_path, InputPreview())
    assert (tmp_path / "batch.png").read_bytes() == b"the first"


@pytest.mark.parametrize(("side", "shown"), [(16, 128), (32, 128), (48, 144), (96, 96), (192, 192), (256, 128)])
def test_images_of_any_size_are_readable_and_names_stay_within_their_column(side: int, shown: int) -> None:
    images, labels = np.zeros((3, side, side, 3), np.uint8), np.array([0, 1, 0])
    figure = draw_inputs([("few", "of them", images, labels)], ["$x_1$ " * 20, "short"])
    FigureCanvasAgg(figure).draw()
    width, height = figure.get_size_inches() * 100
    assert (round(width), round(height)) == (16 + 4 * (shown + 16), 16 + 52 + 22 + shown + 16)
    boxes = sorted((box.x0, box.x1) for box in (text.get_window_extent() for text in figure.texts[2:]))
    assert all(end < start for (_, end), (start, _) in pairwise(boxes))
