"""Which method's maps are to be believed: what a class loses when what they mark is removed, and by chance.

Of the errors of a trained network on the test images, every n-th by confidence is explained by every method of
``gallery.method``, for the class that was predicted and for the true one.
"""

import time
from typing import Any

import measure
import numpy as np
import torch

from cifar_resnet.analysis.gradcam import METHODS, explain_images
from cifar_resnet.analysis.misclassified import Misclassified, find_misclassified
from cifar_resnet.analysis.road import DRAWS, PERCENTAGES, measure_faithfulness
from cifar_resnet.data.folder import Folder
from cifar_resnet.data.sources import ImageSet
from cifar_resnet.training.checkpoint import load_classifier
from cifar_resnet.training.classifier import ImageClassifier


def find_errors(classifier: ImageClassifier, test: ImageSet, count: int) -> list[Misclassified]:
    """Return ``count`` errors, or all where there are fewer, evenly spaced by their confidence."""
    with torch.inference_mode():
        parts = [classifier(pixels).softmax(dim=1) for pixels in torch.from_numpy(test.images).split(500)]
    probabilities = torch.cat(parts).numpy()
    losses = -np.log(probabilities[np.arange(len(test)), test.labels])
    errors = find_misclassified(probabilities, losses, test.labels)
    return [errors[place] for place in np.linspace(0, len(errors) - 1, min(count, len(errors))).round().astype(int)]


def measure_method(
    classifier: ImageClassifier, images: np.ndarray, targets: list[list[int]], method: str | None
) -> dict[str, Any]:
    """Return the seconds of the maps, and of both classes every image's falls; None: maps of random pixels."""
    started = time.perf_counter()
    if method is None:
        maps = np.random.default_rng(1).random((2, *images.shape[:3]), np.float32)
    else:
        maps = explain_images(classifier, images, targets, method=method).maps
    seconds = time.perf_counter() - started
    falls = [measure_faithfulness(classifier, images, *pair) for pair in zip(maps, targets, strict=True)]
    return {"seconds": seconds, "falls": [[(one.marked, one.chance) for one in each] for each in falls]}


def main() -> None:
    parser = measure.arguments(__doc__, repeats=1)
    parser.add_argument("--ckpt", required=True, help="of a trained network")
    parser.add_argument("--root", required=True, help="folder of test/CLASS")
    parser.add_argument("--errors", type=int, default=200)
    options = parser.parse_args()
    classifier = load_classifier(options.ckpt)
    test = Folder(options.root).test().read(classifier.hparams["image_size"])
    errors = find_errors(classifier, test, options.errors)
    images = test.images[[error.index for error in errors]]
    targets = [[error.predicted for error in errors], [error.true for error in errors]]
    rows, figures = [], {}
    for method in [*METHODS, None]:
        figures[str(method)] = measured = measure_method(classifier, images, targets, method)
        row: dict[str, Any] = {"method": method or "(random pixels)"}
        for name, falls in zip(("predicted", "true"), np.array(measured["falls"]), strict=True):
            gains = falls[:, 0] - falls[:, 1]
            error = gains.std(ddof=1) / len(gains) ** 0.5
            row |= {
                f"{name}: marked": f"{falls[:, 0].mean():.3f}",
                f"{name}: elsewhere": f"{falls[:, 1].mean():.3f}",
                f"{name}: difference": f"{gains.mean():.3f} ± {error:.3f}",
                f"{name}: better": f"{(gains > 0).mean():.1%}",
            }
        rows.append(row | {"maps, s": f"{measured['seconds']:.1f}"})
    parts = ", ".join(map(str, PERCENTAGES))
    title = f"{options.ckpt}: {len(errors)} errors, {parts} % removed, {DRAWS} places by chance; ± standard error"
    measure.report("faithfulness", title, rows, figures, options)


if __name__ == "__main__":
    main()
