"""Whether a map is to be believed: what becomes of a class when what its map marks is removed from the image."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pytorch_grad_cam.metrics.road import ROADMostRelevantFirst
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget

from cifar_resnet.analysis.gradcam import copy_for_explaining
from cifar_resnet.training.classifier import ImageClassifier

PERCENTAGES = (10, 20, 30)  # of the image that are removed, in turn
DRAWS = 5  # of a map that marks by chance, for each percentage


@dataclass(frozen=True)
class Faithfulness:
    """How much the probability of a class falls, 0 to 1, when a part of the image is removed; below 0, it rises.

    Attributes:
        marked: where the part is the one that the map marks most.
        chance: where as much is removed, in pieces of the same shape, elsewhere.
    """

    marked: float
    chance: float

    @property
    def better_than_chance(self) -> bool:
        """Whether what the map marks matters more than what it does not."""
        return self.marked > self.chance


def measure_faithfulness(
    classifier: ImageClassifier, images: np.ndarray, maps: np.ndarray, targets: Sequence[int], seed: int = 0
) -> list[Faithfulness]:
    """Remove what maps mark, and as much at random, and return how much the probability of each image's class falls.

    Removed pixels are filled in from their surroundings, so that the hole itself tells the network nothing (Remove and
    Debias, "ROAD": Rong et al. 2022, arXiv 2202.00449, section 4). The mean of `PERCENTAGES` is taken. What is random
    is the place: the same map, mirrored or not, and moved around the image's borders, `DRAWS` times. Single random
    pixels would be filled in almost as they were, and any map that marks larger pieces would beat them.

    Args:
        classifier: what was explained.
        images: uint8 ``[N, S, S, 3]``.
        maps: of one class for each image, ``[N, S, S]`` in 0 to 1.
        targets: these classes, N.
        seed: of the random places, and of the faint noise over what is filled in.
    """
    rng = np.random.default_rng(seed)
    moved = [np.stack([_move(heat, rng) for heat in maps]) for _ in range(DRAWS)]
    scores = [ClassifierOutputSoftmaxTarget(int(target)) for target in targets]
    falls = []
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = copy_for_explaining(classifier)
        pixels = classifier.normalize(torch.from_numpy(images).to(classifier.device)).float().clone()
        for marks in [maps, *moved]:
            ranks = np.stack([_ranks(heat, rng) for heat in marks])
            falls.append([-ROADMostRelevantFirst(100 - part)(pixels, ranks, scores, network) for part in PERCENTAGES])
    marked, *chance = np.mean(falls, axis=1)
    return [Faithfulness(*map(float, pair)) for pair in zip(marked, np.mean(chance, axis=0), strict=True)]


def _move(heat: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    turned = heat[:: rng.choice([-1, 1]), :: rng.choice([-1, 1])]
    return np.roll(turned, rng.integers(0, heat.shape), axis=(0, 1))


def _ranks(heat: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the places of a map's values in their order, ties at random, so that a share of it is that share."""
    order = np.lexsort((rng.random(heat.size), heat.ravel()))
    ranks = np.empty(heat.size, np.float32)
    ranks[order] = np.arange(heat.size)
    return ranks.reshape(heat.shape)
