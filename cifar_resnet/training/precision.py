"""Which precision trains fastest on a device without a loss of accuracy, and why."""

import math
import time
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F

BF16_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "sve_bf16", "bf16")  # as `torch.cpu.get_capabilities` calls them
LEAST_GAIN = 1.1  # by which bf16 has to be faster in the trial: below it is not worth the rounding
TRIAL_SECONDS = 0.6


@dataclass(frozen=True)
class Choice:
    """A precision by the name that Lightning's Trainer takes, and the reason for it in a few words."""

    precision: str
    reason: str


def fastest_precision(device: torch.device, alone: bool = True) -> Choice:
    """Choose 32-true or a mixed precision: by what the device can do and, on a CPU, by a trial of under a second.

    Without the trial where a process is not ``alone``: those that train together could each come to another result.
    """
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Choice("bf16-mixed", "this GPU computes in bf16")
        return Choice("16-mixed", "this GPU computes in fp16, not in bf16")
    if device.type != "cpu":
        return Choice("32-true", f"no other was tried on {device.type}")
    found = bf16_instructions()
    if not found:
        return Choice("32-true", "this processor has no bf16 instructions")
    if not alone:
        return Choice("bf16-mixed", f"with {', '.join(found)}; not tried, so that all processes agree")
    gain = bf16_gain()
    what = f"{gain:.1f} times as fast as 32-true in a trial, with {', '.join(found)}"
    return Choice("bf16-mixed", what) if gain >= LEAST_GAIN else Choice("32-true", f"bf16-mixed is {what}")


def mixed_precision(device: torch.device, alone: bool = True) -> Choice:
    """Choose among the mixed ones, as `fastest_precision` does: a CPU has no fp16 to train in."""
    if device.type != "cpu":
        return Choice("16-mixed", "as asked for")
    fastest, what = fastest_precision(device, alone), "in the place of 16-mixed, which needs a GPU"
    slower = "" if fastest.precision == "bf16-mixed" else f"; trainer.precision=32-true is faster: {fastest.reason}"
    return Choice("bf16-mixed", what + slower)


def bf16_instructions() -> list[str]:
    """Return which of the instruction sets that compute in bf16 this processor has."""
    known = getattr(torch.cpu, "get_capabilities", dict[str, Any])()  # the oldest torch that is supported cannot tell
    return [name for name in BF16_INSTRUCTIONS if known.get(name)]


@cache
def bf16_gain() -> float:
    """Return how many times as fast a convolution like the assignment's is in bf16, forward and backward.

    The two take turns, and the best turn of each counts: other work on the machine only makes turns slower. One thread
    computes, since several that wait for each other would measure that work instead.
    """
    weights, images = (  # ones, for random numbers belong to the run
        torch.ones(shape).to(memory_format=torch.channels_last).requires_grad_()
        for shape in ((64, 64, 3, 3), (32, 64, 16, 16))
    )
    best = dict.fromkeys((torch.float32, torch.bfloat16), math.inf)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    end = time.perf_counter() + TRIAL_SECONDS
    while time.perf_counter() < end:
        for dtype, before in best.items():
            started = time.perf_counter()
            with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
                F.conv2d(images, weights, padding=1).float().mean().backward()
            best[dtype] = min(before, time.perf_counter() - started)
    torch.set_num_threads(threads)
    return best[torch.float32] / best[torch.bfloat16]
