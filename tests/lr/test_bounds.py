"""The rule finds the bounds of a known curve, moves with it, and says when it should not be believed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cifar_resnet.errors import InputError
from cifar_resnet.lr.bounds import (
    CLEAR_SIGNIFICANCE,
    LEAST_RATIO,
    Doubt,
    derive,
    diverged,
)

LADDER = np.geomspace(1e-3, 10, 100)
MOST = 6.0


def valley(onset: float, floor: float, start: float = 2.3, low: float = 1.6) -> np.ndarray:
    """A straight descent in log rate from ``start``, begun at the rate ``onset`` and ended at the rate ``floor``."""
    done = (np.log(LADDER) - np.log(onset)) / (np.log(floor) - np.log(onset))
    return start - (start - low) * np.clip(done, 0, 1)


def noise(deviation: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, deviation, len(LADDER))


@given(onset=st.floats(5e-3, 3e-2), length=st.floats(3, 40), deviation=st.floats(0, 0.03), seed=st.integers(0, 1000))
def test_bounds_follow_the_middle_of_the_descent(onset: float, length: float, deviation: float, seed: int) -> None:
    middle = onset * length**0.5
    found = derive(LADDER.tolist(), (valley(onset, onset * length) + noise(deviation, seed)).tolist(), MOST)
    assert middle / 1.4 < found.middle < middle * 1.4
    assert found.lr_max == pytest.approx(min(MOST * found.middle, found.floor_end), rel=1e-3)
    assert LADDER[0] / LEAST_RATIO <= found.lr_min <= found.lr_max / LEAST_RATIO * 1.001


@given(shift=st.floats(1e-6, 1e3), scale=st.floats(0.01, 100), seed=st.integers(0, 1000))
def test_units_of_rate_and_loss_do_not_matter(shift: float, scale: float, seed: int) -> None:
    losses = valley(1e-2, 0.2) + noise(0.02, seed)
    before = derive(LADDER.tolist(), losses.tolist(), MOST)
    after = derive((LADDER * shift).tolist(), (losses * scale).tolist(), MOST)
    assert after.lr_min == pytest.approx(before.lr_min * shift, rel=2e-3)
    assert after.lr_max == pytest.approx(before.lr_max * shift, rel=2e-3)
    assert after.verdict == before.verdict


def test_lr_max_is_not_beyond_a_floor_that_ends_in_divergence() -> None:
    losses = np.where(LADDER < 0.2, valley(0.1, 0.2), 1.6 + 5 * np.log10(LADDER / 0.2))
    found = derive(LADDER.tolist(), losses.tolist(), MOST)
    assert found.lr_max == pytest.approx(found.floor_end, rel=1e-3)
    assert 0.1 < found.lr_max < 0.2


def test_noise_of_a_floor_does_not_move_its_end() -> None:
    losses = np.where(LADDER < 2, valley(1e-2, 0.1), 1.6 + 5 * np.log10(LADDER / 2))
    ends = [derive(LADDER.tolist(), (losses + noise(0.05, seed)).tolist(), 50).lr_max for seed in range(20)]
    assert max(ends) < 1.5 * min(ends)
    assert min(ends) > 1


def test_what_follows_the_floor_does_not_matter() -> None:
    losses = valley(5e-3, 0.2)
    before = derive(LADDER.tolist(), losses.tolist(), MOST)
    diverging = losses.copy()
    diverging[85:] = np.linspace(3, 300, 15)
    assert derive(LADDER.tolist(), diverging.tolist(), MOST).lr_max == pytest.approx(before.lr_max, rel=0.05)
    cut = [*losses[:85].tolist(), float("nan"), 5.0]
    assert derive(LADDER[:87].tolist(), cut, MOST).lr_max == pytest.approx(before.lr_max, rel=0.05)


@pytest.mark.parametrize("losses", [[2.3] * 100, np.linspace(2.3, 9, 100).tolist(), [float("nan")] * 100, [2.3]])
def test_a_loss_that_never_falls_is_an_error(losses: list[float]) -> None:
    with pytest.raises(InputError, match=r"the loss (never fell|was not finite)"):
        derive(LADDER[: len(losses)].tolist(), losses, MOST)


@given(deviation=st.floats(0.01, 0.5), seed=st.integers(0, 100_000))
@settings(derandomize=True)
def test_noise_alone_is_no_descent(deviation: float, seed: int) -> None:
    try:
        found = derive(LADDER.tolist(), (2.3 + noise(deviation, seed)).tolist(), MOST)
    except InputError:
        return
    assert found.significance < CLEAR_SIGNIFICANCE
    assert found.verdict == "noisy"


@pytest.mark.parametrize(
    ("losses", "doubt"),
    [
        (valley(1e-2, 0.2) + noise(0.02, 0), None),
        (valley(1e-2, 0.2) + noise(0.7, 0), Doubt.NOISE),
        (valley(1.0, 100.0) + noise(0.005, 0), Doubt.HIGHEST),
        (valley(1e-4, 1e-2) + noise(0.005, 0), Doubt.LOWEST),
    ],
)
def test_verdict(losses: np.ndarray, doubt: Doubt | None) -> None:
    found = derive(LADDER.tolist(), losses.tolist(), MOST)
    assert found.doubt == doubt
    assert found.verdict == ("noisy" if doubt else "clear")
    low, high = found.lr_max_interval
    assert low <= high


def test_a_sweep_that_breaks_off_on_the_floor_has_seen_its_end() -> None:
    losses = [*valley(1e-2, 0.2)[:60].tolist(), float("nan")]
    found = derive(LADDER[:61].tolist(), losses, 50)
    assert found.lr_max == pytest.approx(LADDER[59], rel=1e-3)
    assert found.doubt is None


def test_interval_grows_with_the_noise() -> None:
    def width(deviation: float) -> float:
        losses = valley(1e-2, 0.2) + noise(deviation, 1)
        low, high = derive(LADDER.tolist(), losses.tolist(), MOST).lr_max_interval
        return high / low

    assert 1 <= width(0) < width(0.02) < width(0.2)


def test_a_ragged_floor_is_no_divergence_but_a_rise_above_the_start_is() -> None:
    rates = LADDER.tolist()
    ragged = (valley(1e-2, 0.2) + np.where(LADDER > 0.2, noise(0.3, 0), 0)).tolist()
    ragged[70] = 8.0  # one bad batch
    assert not any(diverged(rates[:step], ragged[:step]) for step in range(1, 70))
    rising = [*ragged[:70], *np.linspace(2, 30, 30)]
    stopped = next(step for step in range(1, 101) if diverged(rates[:step], rising[:step]))
    assert 70 < stopped < 100
    assert diverged(rates[:3], [2.3, 2.2, float("inf")])
