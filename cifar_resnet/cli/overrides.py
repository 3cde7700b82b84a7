"""What a user types behind a command: read as it is meant, or refused with what would be right."""

import re
from difflib import SequenceMatcher
from os.path import expanduser
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf

from cifar_resnet.cli.schema import COMMANDS, describe
from cifar_resnet.errors import InputError

CONFIGS = next(folder / "configs" for folder in Path(__file__).parents if (folder / "configs").is_dir())
"""The YAML files: beside the package in the repository, inside it where it was installed."""
OPEN_SECTIONS = ("model.", "optimizer.", "data.source.")
"""Sections whose keys are the arguments of a callable, so that ``+section.key=value`` can give it another one."""


def read_override(typed: str, command: str, sweep: bool = False) -> str:
    """Return a word of the command line as Hydra reads it: special characters quoted, ``~/`` expanded.

    A ``sweep`` may give several values, and Hydra's own keys.

    Raises:
        InputError: it is no ``key=value``, or the command has no use for it.
    """
    keys, groups = describe(COMMANDS[command]), COMMANDS[command].groups
    parts = re.fullmatch(r"(\+{0,2}|~)([\w./]+)(?:=(.*))?", typed, re.DOTALL | re.ASCII)
    if parts is None:
        raise InputError(f"cannot read {typed!r}: write KEY=VALUE")
    sign, key, value = parts.groups()
    if sweep and key.startswith("hydra"):
        return typed
    is_argument = key.startswith(tuple(each for each in OPEN_SECTIONS if f"{each}_target_" in keys))
    inner = next((other for other in keys if other.startswith(f"{key}.")), None)
    if key not in (*keys, *groups) and inner is None and not is_argument:  # Hydra knows a file's own arguments
        raise InputError(no_such_key(key, command))
    if sign == "~" and is_argument and not key.endswith("_target_"):
        return typed
    if value is None or sign == "~":
        raise InputError(f"{typed}: write {key}=VALUE")
    value = expanduser(value) if value.startswith("~/") else value  # a shell leaves it as it is behind a =
    parsed = _parse(f"{sign}{key}" if is_argument else key, value)
    several = parsed.is_sweep_override()
    if several and not sweep:
        raise InputError(f"{key}: several values; give one, or put -m before it to run once for each")
    if key in groups:
        chosen = list(parsed.sweep_string_iterator()) if several else parsed.value()
        names = chosen if chosen and isinstance(chosen, list) and (several or key == "experiment") else [chosen]
        if not all(name in choices(key) for name in names):
            raise InputError(f"{key}={value}: no such choice; choose {key}={' | '.join(choices(key))}")
    elif inner and not isinstance(parsed.value(), dict):
        raise InputError(f"{key}={value}: is a section; set its keys, such as {inner}=VALUE")
    return str(parsed.input_line)


def _parse(key: str, value: str) -> Override:
    """Read a value as Hydra's grammar has it, or else as the text that it is."""
    try:
        return OverridesParser.create().parse_override(f"{key}={value}")
    except HydraException:
        quoted = value.replace("'", r"\'")
        return OverridesParser.create().parse_override(f"{key}='{quoted}'")


def choices(group: str) -> list[str]:
    """Return what can be chosen for a group: the files in its folder."""
    return sorted(file.stem for file in (CONFIGS / group).glob("[!_]*.yaml"))


def no_such_key(key: str, command: str) -> str:
    """Say that a key does not exist, and with which choice it would, or which of the command's is most like it.

    Mostly the last parts are compared: a section is more often left out or misnamed than a key taken for another.
    """

    def likeness(other: str) -> float:
        leaf, other_leaf = key.rpartition(".")[2], other.rpartition(".")[2]
        last = max(SequenceMatcher(None, leaf, other_leaf).ratio(), 0.8 * (leaf in other_leaf.split("_")))
        return 0.7 * last + 0.3 * SequenceMatcher(None, key, other).ratio()

    keys = describe(COMMANDS[command])
    group, _, name = key.partition(".")
    files: dict[str, Any] = {choice: OmegaConf.load(CONFIGS / group / f"{choice}.yaml") for choice in choices(group)}
    homes = [f"{group}={choice}" for choice, content in files.items() if name in content.get(group, content).keys()]  # noqa: SIM118 ``in`` hides what is not set
    if homes and key in keys:
        return f"{key}: no such key here; it belongs to {' and '.join(homes)}"
    likest = sorted(((likeness(other), other) for other in keys), reverse=True)[:3]
    meant = " or ".join(other for value, other in likest if value > max(0.6, likest[0][0] - 0.02))
    return f"{key}: no such key{f'; did you mean {meant}?' if meant else ''} (--help shows all keys)"
