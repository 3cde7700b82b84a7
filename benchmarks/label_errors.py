"""Which ranking finds wrong labels: 2 % of the labels of images held out of training are made wrong, and looked for.

Half of them become another class at random, half the class that theirs is confused with most. Each checkpoint is of a
training with ``data.val_size``; its held-out images are those that are ranked, by all candidates in turn.
"""

import measure
import numpy as np
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor

from cifar_resnet.analysis.labels import describe_images, doubt, find_neighbours
from cifar_resnet.build import build_data
from cifar_resnet.cli.compose import compose
from cifar_resnet.training.checkpoint import load_classifier

SHARE = 0.02
NEIGHBOURS = 100  # that have a say; five, as the page names, say less


def candidates(once: Tensor, twice: Tensor, moved: Tensor, labels: Tensor, near: Tensor) -> dict[str, Tensor]:
    """Return by name how doubtful each label is, ``[N]``.

    ``once`` are the logits of the images, ``twice`` with those of their mirror images, ``moved`` of both and of both
    moved by two pixels; ``near`` has the labels of the nearest training images.
    """
    place = torch.arange(len(labels))
    plain = once.softmax(dim=1)
    votes = torch.nn.functional.one_hot(near, once.shape[1]).sum(dim=1) + 0.5
    shares = votes / votes.sum(dim=1, keepdim=True)
    return {
        "loss": -plain[place, labels].log(),
        "normalized margin": margin(plain, labels),
        "confident learning": confident_learning(plain, labels),
        "neighbours": -shares[place, labels].log(),
        "log-odds": doubt(once, labels),
        "loss, with mirror image": -twice.softmax(dim=1)[place, labels].log(),
        "log-odds, with mirror image": doubt(twice, labels),
        "log-odds, with mirror image, times neighbours": doubt(twice.log_softmax(dim=1) + shares.log(), labels),
        "log-odds, with mirror image, moved": doubt(moved, labels),
        "log-odds, with mirror image, moved, times neighbours": doubt(moved.log_softmax(dim=1) + shares.log(), labels),
    }


def margin(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return the greatest probability of another class less that of the label (Northcutt et al. 2021, section 3.3)."""
    others = probabilities.scatter(1, labels[:, None], -1)
    return others.amax(dim=1) - probabilities.gather(1, labels[:, None]).squeeze(1)


def confident_learning(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Rank first what the confident joint counts off its diagonal, then the rest, each by its margin.

    An image counts for a class whose probability reaches the mean of those that have its label (Northcutt, Jiang &
    Chuang 2021, arXiv 1911.00068, eq. 1).
    """
    means = torch.stack([probabilities[labels == label, label].mean() for label in range(probabilities.shape[1])])
    confident = probabilities.where(probabilities >= means, -1)
    counted = (confident.amax(dim=1) >= 0) & (confident.argmax(dim=1) != labels)
    return margin(probabilities, labels) + 10 * counted


def make_wrong(labels: Tensor, predicted: Tensor, classes: int, seed: int) -> Tensor:
    """Return labels of which `SHARE` are wrong."""
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(labels))[: round(SHARE * len(labels))]
    confusion = np.zeros((classes, classes), int)
    np.add.at(confusion, (labels, predicted), 1)
    np.fill_diagonal(confusion, 0)
    wrong, half = labels.clone(), len(chosen) // 2
    wrong[chosen[:half]] = (wrong[chosen[:half]] + torch.from_numpy(rng.integers(1, classes, half))) % classes
    wrong[chosen[half:]] = torch.from_numpy(confusion.argmax(axis=1))[labels[chosen[half:]]]
    return wrong


def measure_checkpoint(path: str, overrides: list[str], draws: int) -> dict[str, np.ndarray]:
    """Return by candidate the mean average precision, and precision at the number that is wrong, of all draws."""
    data = build_data(compose("train", *overrides), 1)
    data.setup()
    assert data.train is not None
    assert data.val is not None
    classifier = load_classifier(path)
    labels = torch.from_numpy(data.val.labels)
    once = describe_images(classifier, data.val.images)
    twice = describe_images(classifier, data.val.images, flip=True)
    moved = describe_images(classifier, data.val.images, flip=True, move=True)
    training = describe_images(classifier, data.train.images)
    assert moved.features is not None
    assert training.features is not None
    near = torch.from_numpy(data.train.labels)[find_neighbours(moved.features, training.features, NEIGHBOURS)]
    found: dict[str, list[tuple[float, float]]] = {}
    for draw in range(draws):
        wrong = make_wrong(labels, once.logits.argmax(dim=1), len(data.classes), draw)
        is_wrong = (wrong != labels).numpy()
        for name, scores in candidates(once.logits, twice.logits, moved.logits, wrong, near).items():
            first = scores.argsort(descending=True, stable=True)[: is_wrong.sum()]
            found.setdefault(name, []).append((average_precision_score(is_wrong, scores), is_wrong[first].mean()))
    return {name: np.mean(values, axis=0) for name, values in found.items()}


def main() -> None:
    parser = measure.arguments(__doc__, repeats=20)
    parser.add_argument("--ckpt", nargs="+", required=True, help="of trainings with seed=0, 1, ...")
    parser.add_argument("--overrides", nargs="+", required=True, help="those of the trainings, but for the seed")
    options = parser.parse_args()
    each = [
        measure_checkpoint(path, [*options.overrides, f"seed={seed}"], options.repeats)
        for seed, path in enumerate(options.ckpt)
    ]
    rows, figures = [], {}
    for name in each[0]:
        values = np.array([one[name] for one in each])
        figures[name] = values.tolist()
        cells = [f"{mean:.3f} ± {sd:.3f}" for mean, sd in zip(values.mean(0), values.std(0, ddof=1), strict=True)]
        rows.append({"ranking": name, "average precision": cells[0], "precision at the number of wrong ones": cells[1]})
    title = f"{SHARE:.0%} wrong, {NEIGHBOURS} neighbours, {len(each)} trainings, {options.repeats} draws of each"
    measure.report("label_errors", title, rows, figures, options)


if __name__ == "__main__":
    main()
