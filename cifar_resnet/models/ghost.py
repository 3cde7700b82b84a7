"""Ghost batch norm: as if a large batch were several small ones."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GhostBatchNorm(nn.BatchNorm2d):
    """Normalizes each part of a batch by itself while it trains (Hoffer et al. 2017, arXiv 1705.08741, section 4).

    The noise of small batches regularizes, at the speed of a large one. Statistics for the evaluation are moved by the
    mean of those of the parts, once a batch, as in Page's (github.com/davidcpage/cifar10-fast, bag_of_tricks.ipynb).

    Args:
        channels: of the images.
        images: of a part. A batch that this does not divide has fewer parts, all of one size and none of fewer images.
    """

    running_mean: Tensor
    running_var: Tensor
    momentum: float

    def __init__(self, channels: int, images: int):
        super().__init__(channels)
        self.images = images

    def extra_repr(self) -> str:
        """Return the arguments, as `print` shows them."""
        return f"{super().extra_repr()}, images={self.images}"

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, channels, H, W]`` to the same shape."""
        if not self.training:
            return super().forward(x)
        parts = x.chunk(parts_of(len(x), self.images))
        means, variances = (self.running_mean.new_zeros(len(parts), self.num_features) for _ in range(2))
        normalized = [
            F.batch_norm(part, mean, variance, self.weight, self.bias, training=True, momentum=1.0, eps=self.eps)
            for part, mean, variance in zip(parts, means, variances, strict=True)
        ]
        with torch.no_grad():
            self.running_mean.lerp_(means.mean(dim=0), self.momentum)
            self.running_var.lerp_(variances.mean(dim=0), self.momentum)
        return torch.cat(normalized)


def parts_of(batch: int, images: int) -> int:
    """Return into how many parts of one size a batch can be divided, of so many images or a few more."""
    return next(parts for parts in range(max(1, batch // images), 0, -1) if batch % parts == 0)
