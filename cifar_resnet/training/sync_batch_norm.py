"""Batch norm over the images of all processes on a CPU, which PyTorch's own SyncBatchNorm refuses."""

from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.plugins.layer_sync import LayerSync
from torch import Tensor, nn


class _SumOfAll(torch.autograd.Function):
    """The sum of a tensor over all processes. Each of them depends on it, so its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        total = own.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _SumOfAll.apply(*gradients)


class _Synchronized(nn.Module):
    """In training, normalizes by mean and variance of the images of all processes, however these share them.

    Everything else, evaluation too, is that of the layer beside it among the bases.
    """

    eps: float
    momentum: float | None
    weight: nn.Parameter  # this and the next None where the layer has none, whatever PyTorch's annotations say
    bias: nn.Parameter
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, C, ...]`` to the same shape and dtype; computes in float32 at least, as PyTorch's own do."""
        if not self.training or dist.get_world_size() == 1:
            return super().forward(x)
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        others = [dim for dim in range(x.dim()) if dim != 1]
        shape = [-1 if dim == 1 else 1 for dim in range(x.dim())]
        own_count = values.new_tensor([x.numel() / x.shape[1]])
        total, count = _SumOfAll.apply(torch.cat([values.sum(others), own_count])).split([x.shape[1], 1])
        mean = total / count
        centred = values - mean.view(shape)  # a difference of squares would lose the digits of a small variance
        variance = _SumOfAll.apply(centred.square().sum(others)) / count
        self._keep(mean.detach(), (variance * count / (count - 1)).detach())
        scale = (variance + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight
        normalized = centred * scale.view(shape)
        if self.bias is not None:
            normalized = normalized + self.bias.view(shape)
        return normalized.to(x.dtype)

    def _keep(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics towards a batch's mean and unbiased variance, both ``[C]``."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)


class _BatchNorm1d(_Synchronized, nn.BatchNorm1d):
    pass


class _BatchNorm2d(_Synchronized, nn.BatchNorm2d):
    pass


class _BatchNorm3d(_Synchronized, nn.BatchNorm3d):
    pass


SYNCHRONIZED: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: _BatchNorm1d,
    nn.BatchNorm2d: _BatchNorm2d,
    nn.BatchNorm3d: _BatchNorm3d,
}
PLAIN = {synchronized: plain for plain, synchronized in SYNCHRONIZED.items()}


class CPUSyncBatchNorm(LayerSync):
    """Lightning's way to a network whose batch norms see all processes as long as it is fitted.

    A layer stays the object that it is and changes its class alone, so parameters, statistics, hooks and the keys of a
    ``state_dict`` are untouched. Subclasses of PyTorch's batch norms are left as they are: see `unsynchronized`.
    """

    def apply(self, model: nn.Module) -> nn.Module:
        """Return the network with synchronized batch norms in the place of PyTorch's."""
        return _with_classes(model, SYNCHRONIZED)

    def revert(self, model: nn.Module) -> nn.Module:
        """Return the network as it was before `apply`."""
        return _with_classes(model, PLAIN)


def unsynchronized(model: nn.Module) -> str | None:
    """Return the class of a batch norm that does more than PyTorch's, if there is one.

    PyTorch's own way would put a plain one in its place, and so drop an activation that timm's batch norms may have.
    """
    kinds = (type(layer) for layer in model.modules() if isinstance(layer, tuple(SYNCHRONIZED)))
    return next((kind.__name__ for kind in kinds if kind not in SYNCHRONIZED), None)


def _with_classes(model: nn.Module, classes: dict[type[nn.Module], type[nn.Module]]) -> nn.Module:
    for layer in model.modules():
        layer.__class__ = classes.get(type(layer), type(layer))
    return model
