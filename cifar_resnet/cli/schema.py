"""What each key of a configuration accepts, and how to say so."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


def typed(value: Any) -> str:
    """Write a value as one types it."""
    return value if isinstance(value, str) else json.dumps(value)


@dataclass(frozen=True)
class Expected:
    """What a key accepts: the phrase that an error message shows, and the test."""

    phrase: str
    accepts: Callable[[Any], bool]


def whole(low: int, high: int) -> Expected:
    """Accept the integers from ``low`` to ``high``."""
    return Expected(
        f"a whole number from {low:,} to {high:,}", lambda value: type(value) is int and low <= value <= high
    )


def number(low: float, high: float) -> Expected:
    """Accept the finite numbers from ``low`` to ``high``."""
    return Expected(
        f"a number from {low:g} to {high:g}",
        lambda value: isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high,
    )


def one_of(*choices: Any) -> Expected:
    """Accept the listed values only."""
    return Expected(f"one of {', '.join(map(typed, choices))}", lambda value: value in choices)


def either(first: Expected, second: Expected) -> Expected:
    """Accept what one or the other accepts."""
    return Expected(f"{first.phrase}, or {second.phrase}", lambda value: first.accepts(value) or second.accepts(value))


def optional(expected: Expected) -> Expected:
    """Accept null as well."""
    return either(expected, Expected("null", lambda value: value is None))


def _is_devices(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(type(index) is int and index >= 0 for index in value)
    return value in (-1, "auto") or (type(value) is int and 1 <= value <= 1024)


FLAG = Expected("true or false", lambda value: isinstance(value, bool))
TEXT = Expected("a text", lambda value: isinstance(value, str) and bool(value.strip()))
RATE = number(1e-12, 1e6)
TARGET = Expected(
    "the dotted name of a callable, such as torch.optim.SGD",
    lambda value: isinstance(value, str) and bool(re.fullmatch(r"\w+(\.\w+)+", value)),
)
SHARE = Expected("a share above 0 and up to 1.0", lambda value: isinstance(value, float) and 0 < value <= 1)

EXPECTED: dict[str, Expected] = {
    "seed": whole(0, 2**32 - 1),
    "ckpt_path": optional(TEXT),
    "ckpt": TEXT,
    "data.source._target_": TARGET,
    "data.root": TEXT,
    "data.batch_size": whole(1, 65_536),
    "data.num_workers": optional(whole(0, 256)),
    "data.padding": one_of("reflect", "mean"),
    "data.flip": FLAG,
    "data.cutout": whole(0, 32),
    "data.val_size": whole(0, 10_000_000),
    "data.train_size": optional(whole(1, 10_000_000)),
    "data.test_statistics": one_of("train", "test"),
    "data.resize": FLAG,
    "model._target_": TARGET,
    "model.width": whole(1, 1024),
    "optimizer._target_": TARGET,
    "optimizer.momentum": number(0, 1),
    "optimizer.nesterov": FLAG,
    "optimizer.fused": FLAG,
    "optimizer.weight_decay": number(0, 1),
    "schedule.peak_epoch": number(0, 10_000),
    "schedule.lr_min": optional(RATE),
    "schedule.lr_max": optional(RATE),
    "lr_search.num_training": whole(20, 100_000),
    "lr_search.repeats": whole(1, 100),
    "lr_search.lowest": RATE,
    "lr_search.highest": RATE,
    "classifier.temperature": number(1e-3, 1e3),
    "classifier.label_smoothing": number(0, 1),
    "classifier.compile": FLAG,
    "classifier.compile_mode": one_of("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
    "gallery.count": whole(1, 100),
    "gallery.order": one_of("confident", "first", "random"),
    "gallery.layer": optional(TEXT),
    "gallery.method": one_of(
        "gradcam",
        "gradcam++",
        "gradcam_elementwise",
        "hirescam",
        "layercam",
        "xgradcam",
        "eigencam",
        "eigengradcam",
    ),
    "trainer.accelerator": one_of("auto", "cpu", "gpu", "cuda", "mps"),
    "trainer.devices": Expected("a whole number from 1, a list of devices such as [0,1], auto or -1", _is_devices),
    "trainer.strategy": TEXT,
    "trainer.precision": one_of(
        "32-true", "16-mixed", "bf16-mixed", "64-true", "bf16-true", "16-true", 16, 32, 64, "bf16"
    ),
    "trainer.max_epochs": whole(1, 10_000),
    "trainer.max_steps": whole(1, 1_000_000_000),
    "trainer.accumulate_grad_batches": whole(1, 10_000),
    "trainer.gradient_clip_val": optional(number(0, 1e6)),
    "trainer.limit_train_batches": optional(either(whole(1, 1_000_000), SHARE)),
    "trainer.limit_val_batches": optional(either(whole(0, 1_000_000), SHARE)),
    "trainer.limit_test_batches": optional(either(whole(1, 1_000_000), SHARE)),
    "trainer.check_val_every_n_epoch": whole(1, 10_000),
    "trainer.log_every_n_steps": whole(1, 1_000_000),
    "trainer.deterministic": optional(one_of(True, False, "warn")),
    "trainer.fast_dev_run": either(FLAG, whole(1, 1_000)),
    "trainer.enable_progress_bar": FLAG,
    "trainer.default_root_dir": TEXT,
}
