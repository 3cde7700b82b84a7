"""What a user types after a command: put as Hydra can read it, or refused in one line that names what is right."""

import re
from collections.abc import Iterator
from difflib import SequenceMatcher
from functools import cache, partial
from os.path import expanduser
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf

from cifar_resnet.errors import InputError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"

OPEN_SECTIONS = ("trainer.", "model.", "optimizer.", "data.source.", "hydra.")
"""What stands in them goes to a callable, so ``+section.key=value`` can give it arguments that no file lists."""

ENOUGH_LIKENESS = 0.6
"""Of a key to the one that was typed, 0 to 1, for it to be suggested."""


def readable(arguments: list[str], name: str) -> list[str]:
    """Return a command line that Hydra can read: values with special characters quoted, ``~/`` expanded.

    Args:
        arguments: what stands after the script's name.
        name: the command's file in ``configs/``.

    Raises:
        InputError: an option that does not exist, a key without value, or ``+`` or ``~`` where they have no use.
    """
    parser = get_args_parser()
    parser.error = partial(_refuse_option, name)  # type: ignore[method-assign]
    overrides = parser.parse_args(arguments).overrides
    return [_readable(argument, name) if argument in overrides else argument for argument in arguments]


def _refuse_option(name: str, message: str) -> NoReturn:
    unknown = re.search(r"unrecognized arguments: (\S+)", message)
    if unknown is None:
        raise InputError(f"{message} (--help shows what there is)")
    if not unknown[1].startswith("-"):
        raise InputError(f"{unknown[1]}: options such as -m come before all overrides, or after them")
    key = unknown[1].lstrip("-").partition("=")[0]
    raise InputError(f"{unknown[1]}: no such option; a key is set by key=value, without dashes{_nearest(key, name)}")


def _readable(override: str, name: str) -> str:
    parts = re.fullmatch(r"(\+{0,2}|~)([\w./@:-]+)(?:=(.*))?", override, re.DOTALL | re.ASCII)
    if parts is None:
        raise InputError(f"cannot read {override!r}: write key=value")
    sign, key, value = parts.groups()
    if sign == "~":
        if not key.startswith(("model.", "optimizer.")) or key.endswith("._target_"):
            raise InputError(f"{override}: this key cannot be removed; give it another value, {key}=VALUE")
        return override
    if value is None:
        _refuse_bare(key, name)
    if sign and not key.startswith(OPEN_SECTIONS):
        _check_added(sign, key, name)
    if value.startswith("~/"):  # the shell leaves a ~ behind a = as it is
        value = expanduser(value)
    parser, plain = OverridesParser.create(), f"{sign}{key}={value}"
    try:
        parsed = parser.parse_override(plain)
    except HydraException:
        quoted = value.replace("'", r"\'")
        plain = f"{sign}{key}='{quoted}'"
        parsed = parser.parse_override(plain)
    if key in _groups() and not (parsed.is_sweep_override() or _is_choice(parsed.value(), key)):
        raise InputError(f"{override}: not a choice; choose {key}={' | '.join(_choices(key))}")
    return plain


def _is_choice(value: Any, group: str) -> bool:
    return isinstance(value, str | list if group == "experiment" else str) and bool(value)


def _refuse_bare(key: str, name: str) -> NoReturn:
    if key in _defaults(name):
        raise InputError(f"{key} has no value: write {key}=VALUE")
    raise InputError(f"cannot read {key!r}: write key=value{_nearest(key, name)}")


def _check_added(sign: str, key: str, name: str) -> None:
    if key not in _defaults(name):
        raise InputError(no_such_key(key, name))
    if sign == "+":
        raise InputError(f"+{key}: the key is there already; leave out the +")


def explain(error: Exception, name: str) -> str:
    """Put what Hydra says about a refused override into one line that names the nearest right one."""
    message = str(error).partition("Config search path:")[0]
    if isinstance(error, MissingConfigException) and error.options is not None and error.missing_cfg_file:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        choices = [option for option in error.options if not option.startswith("_")]
        return f"{group}={choice}: no such choice; choose {group}={' | '.join(choices)}"
    if present := re.search(r"An item is already at '([^']+)'", message):
        return f"+{present[1]}: the key is there already; leave out the +"
    if several := re.search(r"Ambiguous value for argument '([^']+)'", message):
        return f"{several[1]}: several values; give one, or put -m before it to run once for each"
    if refused := re.search(r"Could not override '([^']+)'", message):
        return no_such_key(refused[1], name)
    return f"{message} {error.__cause__ or ''}"


def no_such_key(key: str, name: str) -> str:
    """Say that a key does not exist, and where it does or which one is like it."""
    group, _, leaf = key.partition(".")
    homes = [choice for choice in _choices(group) if leaf in _keys_of(group, choice)]
    if homes and group in _defaults(name):
        return f"{key}: no such key here; it belongs to {' and '.join(f'{group}={choice}' for choice in homes)}"
    return f"{key}: no such key{_nearest(key, name)}"


def _nearest(key: str, name: str) -> str:
    likeness = {other: _likeness(key, other) for other in _defaults(name)}
    best = max(likeness.values())
    nearest = [other for other, value in likeness.items() if value > best - 0.02] if best > ENOUGH_LIKENESS else []
    suggestion = f"; did you mean {' or '.join(nearest[:3])}?" if nearest else ""
    return f"{suggestion} (python scripts/{name}.py --help shows all keys)"


def _likeness(key: str, other: str) -> float:
    """Compare mostly the last parts: a section is more often left out or misnamed than a key confused with another."""
    leaf, other_leaf = key.rpartition(".")[2], other.rpartition(".")[2]
    last = max(_ratio(leaf, other_leaf), 0.8 if leaf in other_leaf.split("_") else 0)
    return 0.7 * last + 0.3 * _ratio(key, other)


def _ratio(text: str, other: str) -> float:
    return SequenceMatcher(None, text, other).ratio()


@cache
def _defaults(name: str) -> list[str]:
    """Return every key of the defaults, and the groups, as a user would type them."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = hydra.compose(name)
    groups = [group for group in _groups() if group in config] + ["experiment"] * ("data" in config)
    return [*_leaves(config), *groups]


def _groups() -> list[str]:
    return sorted(path.name for path in CONFIGS.iterdir() if path.is_dir())


def _choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml") if not path.stem.startswith("_"))


def _keys_of(group: str, choice: str) -> list[str]:
    content: Any = OmegaConf.load(CONFIGS / group / f"{choice}.yaml")
    return list(_leaves(content.get(group, content)))


def _leaves(config: Any, prefix: str = "") -> Iterator[str]:
    for key in config:
        node = config._get_node(key)
        if isinstance(node, DictConfig) and not node._is_none() and not node._is_interpolation():
            yield from _leaves(node, f"{prefix}{key}.")
        elif key != "defaults":
            yield f"{prefix}{key}"
