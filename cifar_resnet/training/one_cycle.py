"""The schedule: one linear rise to LRMAX and one linear fall, back to LRMIN unless another last rate is asked for."""

import math
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR


class OneCycle(OneCycleLR):
    """PyTorch's one cycle, with steps behind it that all have its last rate (`one_cycle` makes it).

    Args:
        optimizer: see `one_cycle`.
        flat_steps: how many.
        cycle: arguments of `OneCycleLR`; its ``total_steps`` are those of the cycle alone.
    """

    def __init__(self, optimizer: Optimizer, flat_steps: int, **cycle: Any):
        self.flat_steps = flat_steps
        super().__init__(optimizer, **cycle)

    def get_lr(self) -> list[float | Tensor]:
        """Return the rate of each parameter group in the next step."""
        behind = self.last_epoch - self.total_steps
        if self.flat_steps and 0 <= behind <= self.flat_steps:
            return [group["min_lr"] for group in self.optimizer.param_groups]
        return super().get_lr()


def one_cycle(
    optimizer: Optimizer,
    lr_min: float,
    lr_max: float,
    peak: float,
    total_steps: int,
    lr_end: float | None = None,
    flat: float = 0.0,
) -> OneCycle:
    """Return the One Cycle policy (Smith & Topin 2017, arXiv 1708.07120) that is stepped after each optimizer step.

    With ``P = peak * total_steps``, step ``t``, counted from 1, has the rate ``lr_min`` at 1, ``lr_max`` at ``P`` and
    ``lr_end`` at ``(1 - flat) * total_steps``, linear in between, and ``lr_end`` from there on. Momentum stays as it
    is.

    Args:
        optimizer: its parameter groups keep the ratios that their rates have now.
        lr_min: rate of the first step.
        lr_max: rate of the peak.
        peak: share of the steps that lead to the peak, 0 to 1.
        total_steps: optimizer steps of the whole training.
        lr_end: rate of the last step, 0 or more; None: ``lr_min``, so that there is no annihilation.
        flat: share of the steps, behind the fall, that keep the last rate; with ``peak`` less than 1.
    """
    reference = optimizer.param_groups[0]["lr"]
    flat_steps = min(round(flat * total_steps), total_steps - 1)
    cycle_steps = total_steps - flat_steps
    peak *= total_steps / cycle_steps
    if peak * cycle_steps == 1:
        peak *= 1 - 1e-9  # OneCycleLR divides by the length of the rise, here zero; the first step is the peak then
    annihilation = 1.0 if lr_end is None else lr_min / lr_end if lr_end else math.inf
    return OneCycle(
        optimizer,
        flat_steps,
        max_lr=[lr_max * group["lr"] / reference for group in optimizer.param_groups],
        total_steps=cycle_steps,
        pct_start=float(peak),
        anneal_strategy="linear",
        cycle_momentum=False,
        div_factor=lr_max / lr_min,
        final_div_factor=annihilation,
    )
