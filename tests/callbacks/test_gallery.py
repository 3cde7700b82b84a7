"""The gallery shows the errors that it should, and says so where there are few or none."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_classifier, make_data, make_trainer, read_data
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cifar_resnet.analysis.drawing import CARD_GAP, IMAGE_SIDE, LINE_HEIGHT, draw_cards
from cifar_resnet.analysis.gradcam import explain_images
from cifar_resnet.callbacks import gallery
from cifar_resnet.callbacks.gallery import MisclassifiedGallery
from cifar_resnet.callbacks.outputs import OutputCollector
from cifar_resnet.data.datamodule import ImageDataModule
from cifar_resnet.data.folder import Folder
from cifar_resnet.data.sources import ImageSet
from cifar_resnet.training.classifier import ImageClassifier


def run(
    folder: Path, data: ImageDataModule, classifier: ImageClassifier | None = None, **options: Any
) -> tuple[Path, ImageClassifier]:
    """Test a classifier with a gallery, and return the run's folder."""
    outputs = OutputCollector()
    gallery = MisclassifiedGallery(outputs, **options)
    logger = TensorBoardLogger(folder, "lightning_logs")
    classifier = classifier or make_classifier(data)
    trainer = make_trainer(folder, logger=logger, callbacks=[outputs, gallery])
    trainer.test(classifier, datamodule=data, verbose=False)
    return Path(logger.log_dir), classifier


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "gallery.json").read_text())


def test_the_gallerys_ten_are_the_most_confident_errors_of_a_plain_forward_pass(tmp_path: Path) -> None:
    data = make_data(test=60)
    folder, classifier = run(tmp_path, data, order="confident")
    with torch.no_grad():
        probabilities = classifier.eval()(torch.from_numpy(data.test.images)).softmax(1)
    confidence, predicted = probabilities.max(1)
    wrong = (predicted.numpy() != data.test.labels).nonzero()[0]
    expected = sorted(wrong, key=lambda index: -confidence[index].item())[:10]
    found = record(folder)
    assert found["errors"] == len(wrong) > 10
    assert [entry["index"] for entry in found["shown"]] == expected
    for entry in found["shown"]:
        index = entry["index"]
        assert entry["file"] is None
        assert entry["predicted"] == data.classes[predicted[index]]
        assert entry["true"] == data.classes[data.test.labels[index]]
        assert entry["predicted_probability"] == pytest.approx(confidence[index].item(), abs=1e-5)
        assert entry["true_probability"] == pytest.approx(
            probabilities[index, data.test.labels[index]].item(), abs=1e-5
        )


def test_each_confused_pair_is_shown_before_any_is_shown_twice(tmp_path: Path) -> None:
    pairs = [(entry["true"], entry["predicted"]) for entry in record(run(tmp_path, make_data(test=60))[0])["shown"]]
    assert len(set(pairs[: len(set(pairs))])) == len(set(pairs)) > 1


def test_the_files_of_the_images_are_named(tmp_path: Path) -> None:
    data = make_data(test=60)
    data.test = replace(data.test, files=tuple(f"test/{index}.png" for index in range(60)))
    for entry in record(run(tmp_path, data)[0])["shown"]:
        assert entry["file"] == f"test/{entry['index']}.png"


def test_the_picture_goes_to_a_file_and_to_tensorboard(tmp_path: Path) -> None:
    folder, _ = run(tmp_path, make_data(test=60), count=4)
    with Image.open(folder / "gallery.png") as picture:
        assert picture.width > picture.height > 300  # two errors to a row, two rows
    events = EventAccumulator(str(folder)).Reload()
    assert events.Tags()["images"] == [f"gallery/{number:02}" for number in range(1, 5)]


def all_right(data: ImageDataModule, errors: int) -> ImageDataModule:
    """The test images relabelled with what the untrained network says, but for a few."""
    with torch.no_grad():
        predicted = make_classifier(data).eval()(torch.from_numpy(data.test.images)).argmax(1).numpy()
    predicted[:errors] = (predicted[:errors] + 1) % 3
    data.test = ImageSet(data.test.images, predicted, data.test.classes)
    return data


def test_fewer_than_ten_errors(tmp_path: Path) -> None:
    folder, _ = run(tmp_path, all_right(make_data(), errors=1))
    assert record(folder)["errors"] == len(record(folder)["shown"]) == 1
    assert (folder / "gallery.png").exists()


def test_no_errors(tmp_path: Path) -> None:
    folder, _ = run(tmp_path, all_right(make_data(), errors=0))
    assert (record(folder)["errors"], record(folder)["shown"]) == (0, [])
    assert not (folder / "gallery.png").exists()


def test_a_count_of_zero_writes_nothing(tmp_path: Path) -> None:
    folder, _ = run(tmp_path, make_data(), count=0)
    assert {path.name.split(".")[0] for path in folder.iterdir()} <= {"events", "hparams"}


def test_the_explained_layer_and_maps_that_are_zero_are_recorded(tmp_path: Path) -> None:
    data = make_data()
    classifier = make_classifier(data)
    torch.nn.init.zeros_(classifier.network.fc.weight)  # every class is as probable wherever one looks
    folder, _ = run(tmp_path, data, classifier, count=2)
    found = record(folder)
    assert (found["maps"], found["reason"]) == ({"method": "gradcam", "layer": "layer2"}, None)
    assert [entry["zero_maps"] for entry in found["shown"]] == [["predicted", "true"]] * 2


def test_a_map_is_called_zero_where_it_is(tmp_path: Path) -> None:
    data = make_data()
    classifier = make_classifier(data)
    make_trainer(tmp_path).fit(classifier, datamodule=data)
    folder, _ = run(tmp_path, data, classifier)
    for entry in record(folder)["shown"]:
        image = data.test.images[[entry["index"]]]
        targets = [[data.classes.index(entry[part])] for part in ("predicted", "true")]
        maps = explain_images(classifier, image, targets).maps
        assert maps is not None
        assert [bool(heat.any()) for heat in maps] == [part not in entry["zero_maps"] for part in ("predicted", "true")]


def test_photos_are_shown_as_they_are_and_not_as_the_network_gets_them(tmp_path: Path) -> None:
    for part, count in (("train", 4), ("test", 2)):
        for kind in ("cat", "dog", "cow"):
            (tmp_path / part / kind).mkdir(parents=True)
            for number in range(count):
                photo = Image.radial_gradient("L").resize((300, 150)).convert("RGB")
                photo.save(tmp_path / part / kind / f"{number}.png")
    data = read_data(Folder(str(tmp_path)))
    whole = data.test.whole(0, 100)
    assert whole.shape == (50, 100, 3)
    shown, _ = run(tmp_path / "run", data)
    sheet = np.asarray(Image.open(shown / "gallery.png").convert("RGB"))
    top = CARD_GAP + 16 + 12 + 3 * LINE_HEIGHT
    panel, overlay = sheet[top:, CARD_GAP:][:IMAGE_SIDE, :IMAGE_SIDE], sheet[top:, CARD_GAP + IMAGE_SIDE :][:IMAGE_SIDE]
    assert (panel[: IMAGE_SIDE // 5] == 255).all()  # it is wider than it is high, so there is paper above it
    assert (panel[IMAGE_SIDE // 2] < 255).any(axis=1).sum() > 0.9 * IMAGE_SIDE
    assert len(np.unique(overlay[IMAGE_SIDE // 2, :IMAGE_SIDE], axis=0)) > 2 * 32  # 32 pixels would be squares
    (tmp_path / "test").rename(tmp_path / "elsewhere")
    assert np.array_equal(data.test.whole(0, 100), data.test.images[0])


def test_a_map_that_is_no_better_than_chance_is_labelled_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr(gallery, "draw_cards", lambda cards, title: drawn.append(cards) or draw_cards(cards, title))
    folder, _ = run(tmp_path, make_data(test=60))
    verdicts = []
    for entry, card in zip(record(folder)["shown"], drawn[0], strict=True):
        falls = [entry["faithfulness"].get(part) for part in ("predicted", "true")]
        better = [fall is None or fall["marked"] > fall["chance"] for fall in falls]
        assert [not remark for remark in card.remarks] == better
        verdicts += better
    assert 0 < sum(verdicts) < len(verdicts)
