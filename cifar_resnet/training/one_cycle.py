"""The schedule: one linear rise to LRMAX and one linear fall back to LRMIN, with no annihilation after it."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR


def one_cycle(optimizer: Optimizer, lr_min: float, lr_max: float, peak: float, total_steps: int) -> OneCycleLR:
    """Return the One Cycle policy (Smith & Topin 2017, arXiv 1708.07120) that is stepped after each optimizer step.

    With ``P = peak * total_steps``, step ``t``, counted from 1, has the rate ``lr_min`` at 1, ``lr_max`` at ``P`` and
    ``lr_min`` again at ``total_steps``, linear in between. Momentum stays as it is.

    Args:
        optimizer: its parameter groups keep the ratios that their rates have now.
        lr_min: rate of the first and of the last step.
        lr_max: rate of the peak.
        peak: share of the steps that lead to the peak, 0 to 1.
        total_steps: optimizer steps of the whole training.
    """
    reference = optimizer.param_groups[0]["lr"]
    if peak * total_steps == 1:
        peak *= 1 - 1e-9  # OneCycleLR divides by the length of the rise, here zero; the first step is the peak then
    return OneCycleLR(
        optimizer,
        max_lr=[lr_max * group["lr"] / reference for group in optimizer.param_groups],
        total_steps=total_steps,
        pct_start=float(peak),
        anneal_strategy="linear",
        cycle_momentum=False,
        div_factor=lr_max / lr_min,
        final_div_factor=1,
    )
