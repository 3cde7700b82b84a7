"""The learning-rate trace is the closed form of the assignment's One Cycle policy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cifar_resnet.training.one_cycle import one_cycle


def closed_form(step: int, lr_min: float, lr_max: float, peak_steps: float, total_steps: int) -> float:
    """Rate of a step counted from 1: up to the peak step in one line, down to the last step in another."""
    if step <= peak_steps:
        return lr_min + (lr_max - lr_min) * (step - 1) / (peak_steps - 1)
    return lr_max + (lr_min - lr_max) * (step - peak_steps) / (total_steps - peak_steps)


def trace(
    lr_min: float, lr_max: float, peak: float, total_steps: int, rates: tuple[float, ...] = (1.0,), **end: float
) -> list[list[float]]:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates]
    optimizer = torch.optim.SGD(groups, lr=1.0, momentum=0.9)
    scheduler = one_cycle(optimizer, lr_min, lr_max, peak, total_steps, **end)
    seen = []
    for _ in range(total_steps):
        seen.append([group["lr"] for group in optimizer.param_groups])
        assert all(group["momentum"] == 0.9 for group in optimizer.param_groups)
        optimizer.step()
        scheduler.step()
    return seen


@given(
    steps_per_epoch=st.integers(1, 40),
    max_epochs=st.integers(2, 30),
    data=st.data(),
    lr_min=st.floats(1e-6, 1.0),
    ratio=st.floats(1.001, 1e4),
)
def test_trace_is_the_closed_form(
    steps_per_epoch: int, max_epochs: int, data: st.DataObject, lr_min: float, ratio: float
) -> None:
    peak_epoch = data.draw(st.integers(1, max_epochs - 1))
    lr_max, total, peak_steps = lr_min * ratio, steps_per_epoch * max_epochs, steps_per_epoch * peak_epoch
    seen = [rates[0] for rates in trace(lr_min, lr_max, peak_epoch / max_epochs, total)]
    if peak_steps == 1:  # the first step is the peak
        assert seen[0] == pytest.approx(lr_max, rel=1e-6)
    else:
        expected = [closed_form(step, lr_min, lr_max, peak_steps, total) for step in range(1, total + 1)]
        assert seen == pytest.approx(expected, rel=1e-7)
    assert max(seen) == pytest.approx(lr_max, rel=1e-6)
    assert seen[-1] == pytest.approx(lr_min, rel=1e-7)  # no annihilation: the last step is at LRMIN, not below
    assert min(seen) >= lr_min * (1 - 1e-7)


def test_the_assignments_schedule() -> None:
    seen = [rates[0] for rates in trace(0.004, 0.4, 5 / 24, 24 * 97)]
    assert seen[0] == pytest.approx(0.004)
    assert seen.index(max(seen)) == 5 * 97 - 1  # the last step of epoch 5
    assert max(seen) == pytest.approx(0.4)
    assert seen[-1] == pytest.approx(0.004)


def test_parameter_groups_keep_their_ratios() -> None:
    assert [second / first for first, second in trace(0.01, 1.0, 0.3, 20, rates=(0.5, 0.05))] == pytest.approx(
        [0.1] * 20
    )


def test_a_single_step() -> None:
    assert trace(0.01, 1.0, 0.2, 1)[0][0] == pytest.approx(0.01)


@pytest.mark.parametrize("lr_end", [0.0, 0.004, 0.04])
def test_another_last_rate(lr_end: float) -> None:
    seen = [rates[0] for rates in trace(0.004, 0.4, 0.2, 50, lr_end=lr_end)]
    expected = np.interp(range(1, 51), [1, 10, 50], [0.004, 0.4, lr_end])
    assert seen == pytest.approx(expected.tolist(), abs=1e-12)
    assert seen[-1] == pytest.approx(lr_end, abs=1e-15)


def test_pages_schedule() -> None:
    """It rises from 0 and falls to it, of which his first step has its share: 0.4 / 485 (dawn.py)."""
    seen = [rates[0] for rates in trace(0.4 / 485, 0.4, 5 / 24, 24 * 97, lr_end=0.0)]
    assert seen == pytest.approx(np.interp(range(1, 24 * 97 + 1), [0, 5 * 97, 24 * 97], [0, 0.4, 0]).tolist())


def test_steps_at_the_end_keep_the_last_rate() -> None:
    seen = trace(0.01, 1.0, 0.2, 50, rates=(1.0, 64.0), lr_end=0.1, flat=0.2)
    expected = np.interp(range(1, 51), [1, 10, 40, 50], [0.01, 1.0, 0.1, 0.1])
    assert [rate for rate, _ in seen] == pytest.approx(expected.tolist())
    assert [rate for _, rate in seen] == pytest.approx((64 * expected).tolist())
