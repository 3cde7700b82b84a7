"""The assignment's network with the tricks that Page's ResNet-9 learned later, each by itself."""

from collections.abc import Sequence

from torch import nn

from cifar_resnet.models.custom_resnet import CustomResNet
from cifar_resnet.models.ghost import GhostBatchNorm
from cifar_resnet.models.whitening import VALUES, PatchWhitening


class ResNet9(CustomResNet):
    """`CustomResNet`, of as many parameters, with what github.com/davidcpage/cifar10-fast has in bag_of_tricks.ipynb.

    With the defaults it is `CustomResNet` itself.

    Args:
        width: see `CustomResNet`.
        num_classes: see `CustomResNet`.
        image_size: see `CustomResNet`.
        celu: alpha of the CELU (Barron 2017, arXiv 1704.07483) that takes the place of each ReLU; None: ReLU.
        ghost: images that are normalized together, see `GhostBatchNorm`; None: those of a batch.
        norm_scale: learn the scale of each batch norm; False: it stays 1, and the biases alone are learned.
        whiten: begin with `PatchWhitening` and a 1×1 convolution, in the place of the first 3×3 convolution.
        patch_covariance: see `PatchWhitening`.
    """

    def __init__(
        self,
        width: int = 64,
        num_classes: int = 10,
        image_size: int = 32,
        celu: float | None = None,
        ghost: int | None = None,
        norm_scale: bool = True,
        whiten: bool = False,
        patch_covariance: Sequence[Sequence[float]] | None = None,
    ):
        super().__init__(width, num_classes, image_size)
        if whiten:
            pointwise = nn.Conv2d(VALUES, width, 1, bias=False)
            self.prep = nn.Sequential(PatchWhitening(patch_covariance), pointwise, *self.prep[1:])
        for block in list(self.modules()):
            for name, layer in block.named_children():
                if isinstance(layer, nn.ReLU) and celu is not None:
                    setattr(block, name, nn.CELU(celu))
                if isinstance(layer, nn.BatchNorm2d):
                    norm = layer if ghost is None else GhostBatchNorm(layer.num_features, ghost)
                    norm.weight.requires_grad_(norm_scale)
                    setattr(block, name, norm)
