"""From the losses of a learning-rate sweep to LRMIN and LRMAX, and whether to believe them.

Why the rule reads the middle of the descent, its sources, and how it was calibrated: docs/lr_rule.md.
"""

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from scipy.ndimage import gaussian_filter1d

from cifar_resnet.errors import InputError

DESCENT_ON_FLOOR = 0.9  # LRMAX is at most the last rate at which this share of the descent is done
DESCENT_AT_LR_MIN = 0.05  # LRMIN is the rate at which this share of it is done, as long as LEAST_RATIO allows it
LEAST_RATIO = 10  # LRMAX / LRMIN is at least this
SMOOTHING = 0.125  # standard deviation of the smoothing Gaussian, in decades of the rate
LEAST_DESCENT = 0.02  # a loss that falls by less than this share of its start has not fallen
LEAST_SIGNIFICANCE = 3  # a descent of fewer of its standard deviations cannot be told from noise: the search has failed
CLEAR_SIGNIFICANCE = 6  # `clear` above it: noise alone is so in < 1 sweep of 1,000 with 100 steps, of 100 with 20
MOST_DESCENT_AT_START = 0.2  # where more of it is done in the first half decade, its beginning was not seen
MOST_UNCERTAINTY = 2  # noise may move LRMAX by this factor, 5th to 95th percentile, before the verdict is `noisy`
BOOTSTRAP_DRAWS = 200  # how often LRMAX is derived again with other noise


class Doubt(StrEnum):
    """What is wrong with a sweep whose verdict is `noisy`."""

    NOISE = "noise leaves LRMAX uncertain"
    LOWEST = "the loss was falling from the lowest rate on"
    HIGHEST = "the loss was still falling at the highest rate"


@dataclass(frozen=True)
class Bounds:
    """The bounds, and the curve and places that they were derived from.

    Attributes:
        lr_min, lr_max: the bounds of the One Cycle schedule.
        doubt: why the verdict is `noisy`; None where it is `clear`.
        lr_max_interval: where LRMAX lies for all that noise does, from the 5th to the 95th percentile.
        most_over_middle: multiple of the middle that LRMAX is at most.
        significance: depth of the descent in units of its standard deviation.
        middle: rate at which half of the descent is done.
        floor_end: last rate at which nine tenths of the descent are done; LRMAX is not beyond it.
        start, floor: smoothed loss at the first step, and at its lowest.
        rates, losses: of each step, as far as the loss was finite.
        smoothed: the loss smoothed over the neighbouring steps, before and after alike.
    """

    lr_min: float
    lr_max: float
    doubt: Doubt | None
    lr_max_interval: tuple[float, float]
    most_over_middle: float
    significance: float
    middle: float
    floor_end: float
    start: float
    floor: float
    rates: list[float]
    losses: list[float]
    smoothed: list[float]

    @property
    def verdict(self) -> str:
        """Either ``clear`` or ``noisy``."""
        return "noisy" if self.doubt else "clear"


def derive(rates: list[float], losses: list[float], most_over_middle: float) -> Bounds:
    """Apply the rule to the rates of an exponential ladder and the raw losses.

    Args:
        rates, losses: of each step.
        most_over_middle: multiple of the middle of the descent that LRMAX is, unless the floor ends before it.

    Raises:
        InputError: the loss never fell.
    """
    end = next((step for step, loss in enumerate(losses) if not math.isfinite(loss)), len(losses))
    highest, rates, losses = rates[-1], rates[:end], losses[:end]
    if end < 2:
        raise InputError(_failed("was not finite at the lowest rate", "lower lr_search.lowest, check the data"))
    ladder, raw = np.array(rates), np.array(losses)
    smoothed = smooth(ladder, raw)
    lowest = int(smoothed.argmin())
    start, floor = float(smoothed[0]), float(smoothed[lowest])
    if start - floor < LEAST_DESCENT * start:
        remedy = "check the labels, try another lr_search.lowest and lr_search.highest, another classifier.temperature"
        raise InputError(_failed(f"never fell from its start of {start:.3f}", remedy))
    signs = np.random.default_rng(0).choice([-1, 1], (BOOTSTRAP_DRAWS, end))
    draws = smooth(ladder, smoothed + (raw - smoothed) * signs)
    deviation = float((draws[:, 0] - draws[:, lowest]).std())
    low, high = np.quantile([_lr_max(ladder, draw, most_over_middle) for draw in draws], [0.05, 0.95]).tolist()
    middle, lr_max = _rate_at(0.5, ladder, smoothed), _lr_max(ladder, smoothed, most_over_middle)
    significance = (start - floor) / max(deviation, 1e-12)

    doubt = None
    if significance < CLEAR_SIGNIFICANCE or high > MOST_UNCERTAINTY * low:
        doubt = Doubt.NOISE
    elif lr_max == highest:
        doubt = Doubt.HIGHEST
    elif _rate_at(MOST_DESCENT_AT_START, ladder, smoothed) < rates[0] * 10**0.5:
        doubt = Doubt.LOWEST
    return Bounds(
        lr_min=_four_digits(min(_rate_at(DESCENT_AT_LR_MIN, ladder, smoothed), lr_max / LEAST_RATIO)),
        lr_max=_four_digits(lr_max),
        doubt=doubt,
        lr_max_interval=(_four_digits(low), _four_digits(high)),
        most_over_middle=most_over_middle,
        significance=significance,
        middle=middle,
        floor_end=_floor_end(ladder, smoothed),
        start=start,
        floor=floor,
        rates=rates,
        losses=losses,
        smoothed=smoothed.tolist(),
    )


def diverged(rates: list[float], losses: list[float]) -> bool:
    """Say whether a sweep that is under way has nothing more to show.

    That is so once the loss is not finite, or once the smoothed loss, where the steps after it are known too, lies
    above its start by more than it had fallen below it, and by half of the start at least.
    """
    if not math.isfinite(losses[-1]):
        return True
    ladder = np.array(rates)
    settled = int(np.searchsorted(ladder, ladder[-1] / 10 ** (2 * SMOOTHING)))
    if settled < 2:
        return False
    smoothed = smooth(ladder, np.array(losses))[:settled]
    return bool(smoothed[-1] - smoothed[0] > max(smoothed[0] - smoothed.min(), smoothed[0] / 2))


def smooth(rates: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """Return the Gaussian mean over the neighbouring steps, its weights renormalized where the ladder ends.

    Args:
        rates: ``[steps]``, an exponential ladder of two steps at least.
        losses: ``[..., steps]``.
    """
    steps = SMOOTHING / math.log10(rates[-1] / rates[-2])  # Lightning skips the second step of its ladder
    weights = gaussian_filter1d(np.ones(len(rates)), steps, mode="constant")
    return gaussian_filter1d(losses, steps, mode="constant") / weights


def _lr_max(rates: np.ndarray, smoothed: np.ndarray, most_over_middle: float) -> float:
    return min(most_over_middle * _rate_at(0.5, rates, smoothed), _floor_end(rates, smoothed))


def _floor_end(rates: np.ndarray, smoothed: np.ndarray) -> float:
    """Return the last rate at which the loss is on the floor: unlike that of the lowest loss, noise hardly moves it."""
    level = smoothed[0] - DESCENT_ON_FLOOR * (smoothed[0] - smoothed.min())
    return float(rates[np.flatnonzero(smoothed <= level)[-1]])


def _rate_at(share: float, rates: np.ndarray, smoothed: np.ndarray) -> float:
    """Return the first rate at which this share of the descent is done, interpolated between the steps."""
    level = smoothed[0] - share * (smoothed[0] - smoothed.min())
    after = max(1, int(np.argmax(smoothed <= level)))  # 0 where nothing is below the start
    done = (smoothed[after - 1] - level) / (smoothed[after - 1] - smoothed[after])
    return float(rates[after - 1] * (rates[after] / rates[after - 1]) ** done)


def _four_digits(rate: float) -> float:
    """Return the rate to four digits, as one would write it down."""
    return float(f"{rate:.3e}")


def _failed(what: str, remedy: str) -> str:
    return f"the learning-rate search failed: the loss {what}; {remedy}, or give schedule.lr_min and schedule.lr_max"
