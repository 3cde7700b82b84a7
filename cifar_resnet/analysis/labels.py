"""Which labels to check first: what the network, and the training images that are most alike, say against them."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, pad

from cifar_resnet.analysis.gradcam import copy_for_explaining
from cifar_resnet.data.files import printable
from cifar_resnet.data.sources import ImageSet
from cifar_resnet.training.classifier import ImageClassifier

PIXELS_AT_ONCE = 500 * 32 * 32  # of the images that are looked at in one batch: it bounds the memory
NEIGHBOURS = 5  # training images that are named for each


@dataclass(frozen=True)
class LabelCheck:
    """What there is to say about the label of an image.

    Attributes:
        rank: how likely it is that the label is wrong, from 1, the likeliest.
        neighbours: the training images that are most alike in the eyes of the network, the nearest first, each as its
            class and its file; empty where they are not at hand.
    """

    rank: int
    neighbours: tuple[str, ...]


@dataclass(frozen=True)
class Outputs:
    """What a network says of images, float32, on its device.

    Attributes:
        logits: ``[N, classes]``.
        features: what its last linear layer gets, ``[N, features]``, of length 1; None where it has no such layer, or
            one that gets something else.
    """

    logits: Tensor
    features: Tensor | None


def check_labels(
    classifier: ImageClassifier, images: np.ndarray, labels: Sequence[int], training: ImageSet | None = None
) -> list[LabelCheck]:
    """Rank labels by how likely they are wrong, as docs/errors.md measures it, and name the nearest training images.

    Args:
        classifier: was not trained on the images.
        images: uint8 ``[N, S, S, 3]``, N at least 1.
        labels: their classes.
        training: what it was trained on.
    """
    outputs = describe_images(classifier, images, flip=classifier.hparams["flip"], move=True)
    doubts = doubt(outputs.logits, torch.tensor(labels, device=outputs.logits.device))
    ranks = doubts.argsort(descending=True, stable=True).argsort() + 1
    names: list[tuple[str, ...]] = [()] * len(images)
    known = describe_images(classifier, training.images).features if training and outputs.features is not None else None
    if training and known is not None and outputs.features is not None:
        near = find_neighbours(outputs.features, known)
        names = [tuple(_name(training, classifier.classes, place) for place in each) for each in near.tolist()]
    return [LabelCheck(*each) for each in zip(ranks.tolist(), names, strict=True)]


def _name(training: ImageSet, classes: Sequence[str], place: int) -> str:
    file = f"training image {place}" if training.files is None else training.files[place]
    return printable(f"{classes[training.labels[place]]} {file}")


@torch.inference_mode()
def describe_images(classifier: ImageClassifier, images: np.ndarray, flip: bool = False, move: bool = False) -> Outputs:
    """Return what the network says of images, on average over its views of each.

    Args:
        classifier: has the network.
        images: uint8 ``[N, S, S, 3]``.
        flip: look at the mirror images as well.
        move: look at each moved by a sixteenth of its side as well, up, down, left and right.
    """
    network, heard = copy_for_explaining(classifier), list[Tensor]()
    heads = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    if heads:
        heads[-1].register_forward_pre_hook(lambda _layer, arguments: heard.append(arguments[0].float()))
    logits, features = [], []
    size = max(1, PIXELS_AT_ONCE // math.prod(images.shape[1:3]))
    for start in range(0, len(images), size):
        part = torch.from_numpy(images[start : start + size]).to(classifier.device)
        heard.clear()
        said = [network(view).float() for view in _views(classifier.normalize(part).float(), flip, move)]
        logits.append(torch.stack(said).mean(dim=0) / classifier.hparams["temperature"])
        if len(heard) == len(said) and heard[0].shape[:-1] == (len(part),):
            features.append(normalize(torch.stack(heard).mean(dim=0)))
    whole = sum(map(len, features)) == len(images)
    return Outputs(torch.cat(logits), torch.cat(features) if whole else None)


def _views(pixels: Tensor, flip: bool, move: bool) -> Iterator[Tensor]:
    """Yield the images ``[N, 3, S, S]`` and what else is to be looked at; what moves in is a reflection."""
    side = pixels.shape[-1]
    step = max(1, side // 16)
    wider = pad(pixels, [step] * 4, mode="reflect")
    corners = ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2)) if move else ((1, 1),)
    for row, column in corners:
        view = wider[..., step * row : step * row + side, step * column : step * column + side]
        yield view
        if flip:
            yield view.flip(3)


def find_neighbours(features: Tensor, others: Tensor, count: int = NEIGHBOURS) -> Tensor:
    """Return the places of the ``count`` features among the others that are most alike, int64 ``[N, count]``.

    Alike is what has a large cosine; the most alike comes first. Both have length 1, ``[N, F]`` and ``[M, F]``.
    """
    count = min(count, len(others))
    return torch.cat([(part @ others.T).topk(count).indices for part in features.split(256)])


def doubt(logits: Tensor, labels: Tensor) -> Tensor:
    """Return how much speaks for another class than the label, ``[N]``: log-odds, above 0 where it is more likely.

    That is the logarithm of the probability of the most probable other class over that of the label. Unlike the loss it
    asks for one class that is likelier, and not only that the label is unlikely.

    Args:
        logits: ``[N, classes]``.
        labels: int64 ``[N]``.
    """
    others = logits.scatter(1, labels[:, None], -torch.inf).amax(dim=1)
    return others - logits.gather(1, labels[:, None]).squeeze(1)
