"""Patch whitening: a first layer whose outputs are uncorrelated."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE = 3
VALUES = 3 * SIDE**2  # of a patch, by channel, row and column
LEAST_VARIANCE = 1e-2  # added to each, so that what is all but constant is not blown up; Page's


class PatchWhitening(nn.Module):
    """A fixed 3×3 convolution that turns patches into their principal components, each of variance 1.

    So is the first layer of Page's ResNet-9 (github.com/davidcpage/cifar10-fast, bag_of_tricks.ipynb): filter ``i`` is
    the eigenvector of the patches' covariance with the i-th largest eigenvalue ``v``, divided by ``sqrt(v + 0.01)``.

    Args:
        covariance: of the patches of normalized training images, ``[27, 27]``, by channel, row and column. None: of
            white noise.
    """

    filters: Tensor

    def __init__(self, covariance: Sequence[Sequence[float]] | None = None):
        super().__init__()
        variances, vectors = np.linalg.eigh(np.eye(VALUES) if covariance is None else np.array(covariance))
        filters = vectors / np.sqrt(variances.clip(min=0) + LEAST_VARIANCE)
        filters = filters.T[::-1].reshape(VALUES, 3, SIDE, SIDE)
        self.register_buffer("filters", torch.tensor(filters.copy(), dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """Map normalized images ``[N, 3, H, W]`` to ``[N, 27, H, W]``."""
        return F.conv2d(x, self.filters, padding=SIDE // 2)
