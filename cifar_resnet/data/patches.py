"""How the values of small patches of images vary together."""

from collections.abc import Sequence

import numpy as np

MOST_IMAGES = 5000  # from which a covariance is derived, 4.5 million patches
AT_ONCE = 250  # images whose patches are in memory


def patch_covariance(images: np.ndarray, std: Sequence[float], side: int = 3) -> list[list[float]]:
    """Return the covariance of all patches of normalized images, ``[3 * side², 3 * side²]``.

    Args:
        images: uint8 ``[N, H, W, 3]``; of many, some are taken, evenly spaced.
        std: deviation of each channel, in 0 to 1, by which they are normalized.
        side: of a patch, in pixels; its values are in the order of channel, row and column.
    """
    chosen = images[:: -(-len(images) // MOST_IMAGES)]
    total, products, count = np.zeros(3 * side**2), np.zeros((3 * side**2,) * 2), 0
    for start in range(0, len(chosen), AT_ONCE):
        pixels = (chosen[start : start + AT_ONCE] / np.float32(255) - np.float32(0.5)) / np.array(std, np.float32)
        patches = np.lib.stride_tricks.sliding_window_view(pixels, (side, side), axis=(1, 2)).reshape(-1, 3 * side**2)
        total += patches.sum(axis=0, dtype=np.float64)
        products += patches.T @ patches
        count += len(patches)
    mean = total / count
    covariance: list[list[float]] = (products / count - np.outer(mean, mean)).tolist()
    return covariance
