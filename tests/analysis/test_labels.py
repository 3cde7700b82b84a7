"""Labels that are wrong are ranked first, and all that the ranking is made of is as by hand."""

import numpy as np
import pytest
import torch
from conftest import make_classifier, make_data, make_image_set, make_trainer
from hypothesis import given
from hypothesis import strategies as st

from cifar_resnet.analysis.labels import NEIGHBOURS, check_labels, describe_images, doubt, find_neighbours
from cifar_resnet.training.classifier import ImageClassifier


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> ImageClassifier:
    data = make_data(train=96)
    classifier = make_classifier(data, model={"_target_": "cifar_resnet.models.CustomResNet", "width": 4})
    make_trainer(tmp_path_factory.mktemp("run")).fit(classifier, datamodule=data)
    return classifier.eval()


def test_wrong_labels_come_first(trained: ImageClassifier) -> None:
    images = make_image_set(90, seed=5)
    labels, wrong = images.labels.copy(), [4, 31, 77]
    labels[wrong] = (labels[wrong] + 1) % 3
    with torch.no_grad():
        predicted = trained(torch.from_numpy(images.images)).argmax(1).numpy()
    assert (predicted == images.labels).mean() > 0.9
    ranks = [check.rank for check in check_labels(trained, images.images, labels.tolist())]
    assert sorted(ranks) == list(range(1, 91))
    assert max(ranks[place] for place in wrong) <= 3 + (predicted != images.labels).sum()


@given(st.integers(0, 1000), st.integers(2, 6))
def test_doubt_is_the_log_odds_of_the_likeliest_other_class(seed: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(0, 3, (20, classes)), rng.integers(0, classes, 20)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = []
    for row, label in zip(probabilities, labels, strict=True):
        expected.append(np.log(max(np.delete(row, label)) / row[label]))
    found = doubt(torch.from_numpy(logits), torch.from_numpy(labels))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


def test_neighbours_are_those_with_the_largest_cosine() -> None:
    rng = np.random.default_rng(0)
    one, other = (rng.normal(size=(count, 5)) for count in (300, 40))
    one, other = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (one, other))
    found = find_neighbours(torch.from_numpy(one), torch.from_numpy(other), 3)
    expected = [sorted(range(40), key=lambda place: -(row @ other[place]))[:3] for row in one]
    assert found.tolist() == expected
    assert find_neighbours(torch.from_numpy(one), torch.from_numpy(other[:2]), 3).shape == (300, 2)


@pytest.mark.parametrize("flip", [False, True])
def test_all_views_of_an_image_have_a_say(trained: ImageClassifier, flip: bool) -> None:
    images = make_image_set(7, seed=3).images
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect")
    views = [
        padded[:, row : row + 32, column : column + 32] for row, column in ((2, 2), (0, 2), (4, 2), (2, 0), (2, 4))
    ]
    views += [view[:, :, ::-1] for view in views] if flip else []
    heard = []
    with torch.no_grad(), trained.network.fc.register_forward_pre_hook(lambda _, given: heard.append(given[0])):
        logits = torch.stack([trained(torch.from_numpy(np.ascontiguousarray(view))) for view in views]).mean(0)
    features = torch.stack(heard).mean(0)
    found = describe_images(trained, images, flip=flip, move=True)
    torch.testing.assert_close(found.logits, logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.features, features / features.norm(dim=1, keepdim=True), atol=1e-4, rtol=1e-4)


def test_the_nearest_training_images_are_named_with_their_classes(trained: ImageClassifier) -> None:
    training = make_image_set(30, seed=5)
    (check,) = check_labels(trained, training.images[[11]], [0], training)
    assert check.neighbours[0] == "class2 training image 11"
    assert len(check.neighbours) == NEIGHBOURS


def test_a_network_without_a_linear_layer_has_no_neighbours() -> None:
    data = make_data()
    classifier = make_classifier(data, model={"_target_": f"{__name__}.Convolution"})
    (check, _) = check_labels(classifier, data.test.images[:2], [0, 1], data.train)
    assert check.neighbours == ()


class Convolution(torch.nn.Sequential):
    """A network whose last layer is a convolution."""

    def __init__(self, num_classes: int):
        super().__init__(torch.nn.Conv2d(3, num_classes, 32), torch.nn.Flatten())
