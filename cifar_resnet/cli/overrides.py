"""What a user types behind a command: read as it is meant, or refused with what would be right."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from difflib import get_close_matches
from itertools import product
from os.path import expanduser
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException

from cifar_resnet.cli.schema import COMMANDS
from cifar_resnet.cli.wording import describe
from cifar_resnet.errors import InputError, one_line

CONFIGS = next(folder / "configs" for folder in Path(__file__).parents if (folder / "configs").is_dir())
"""The YAML files: beside the package in the repository, inside it where it was installed."""
OF_NETWORK = re.compile(r"[+~]*model[.=]")
OF_HYDRA = re.compile(r"[+~]*hydra[./](launcher|sweeper)\b")
LONGEST_NAME = 100  # of a run's folder, in characters
MOST_BRACKETS = 50  # in a value that is no text: what reads lists in lists in lists goes no deeper than Python's stack


def read_override(typed: str, command: str) -> str:
    """Return a word as Hydra reads it, special characters quoted; raise `InputError` where there is no use for it."""
    parsed = _parse(typed, command)
    key, value, line = parsed.key_or_group, parsed.value(), str(parsed.input_line)
    if parsed.is_sweep_override():
        raise InputError(f"{key}: several values; give one, or put -m before it to run once for each")
    if key in COMMANDS[command].groups:
        names = value if key == "experiment" and isinstance(value, list) else [value]
        if not all(name in choices(key) for name in names):
            raise InputError(f"{line}: no such choice; choose {key}={' | '.join(choices(key))}")
        return line
    inner = next((other for other in describe(COMMANDS[command]) if other.startswith(f"{key}.")), None)
    if inner and not isinstance(value, dict):
        raise InputError(f"{line}: is a section; set its keys, such as {inner}=VALUE")
    return line


def name_positional(typed: Sequence[str], command: str) -> list[str]:
    """Return the words with those that name no key under the key that they are values of, where there is one."""
    key = COMMANDS[command].positional
    values = [word for word in typed if "=" not in word]
    if key is None or not values:
        return list(typed)
    return [*(word for word in typed if "=" in word), f"{key}={json.dumps(values, ensure_ascii=False)}"]


def name_network(readable: list[str]) -> list[str]:
    """Return the words with which a network that is named by its target alone takes over no argument of another."""
    if any(each.startswith("model=") for each in readable) or not any("model._target_=" in each for each in readable):
        return readable
    gone = {each[1:] for each in readable if each.startswith("~model.")}
    others = (each for each in readable if each.lstrip("+~").partition("=")[0] not in gone)
    return ["model=_own", *(re.sub(r"^\+*model\.", "++model.", each) for each in others)]


def is_for_hydra(typed: str) -> bool:
    """Whether a word is about what Hydra does with several runs, and none of a run's own."""
    return OF_HYDRA.match(typed) is not None


def is_swept(typed: str, command: str) -> bool:
    """Whether a word gives a key several values, or a range of them."""
    return _parse(typed, command).is_sweep_override()


def readable(typed: str, command: str) -> str:
    """Return a word as Hydra reads it, several values too."""
    return str(_parse(typed, command).input_line)


def ends(typed: Iterable[str], command: str) -> Iterator[tuple[str, ...]]:
    """Return two command lines: each key that has several values with the first of them, and with the last."""
    lines = []
    for each in (_parse(word, command) for word in typed):
        value = each.value()
        if isinstance(value, IntervalSweep):
            values = [str(value.start), str(value.end)]
        else:
            values = list(each.sweep_string_iterator()) if each.is_sweep_override() else []
        lines.append(
            [f"{each.get_key_element()}={end}" for end in values[:1] + values[-1:]] or [str(each.input_line)] * 2
        )
    return zip(*lines, strict=True)


def combinations(typed: Iterable[str], command: str) -> Iterator[tuple[str, ...]]:
    """Return a command line for each combination of the values, where a key may have several."""
    lines = []
    for each in (_parse(word, command) for word in typed):
        if isinstance(each.value(), IntervalSweep):
            raise InputError(f"{each.input_line}: a range, which needs hydra/sweeper=optuna; or give several values")
        several = each.sweep_string_iterator() if each.is_sweep_override() else ()
        lines.append([f"{each.get_key_element()}={value}" for value in several] or [str(each.input_line)])
    return product(*lines)


def name_run(line: Sequence[str], own: Sequence[str], command: str) -> list[str]:
    """Return a run's command line with the name of its folder: what is its own among several, behind a given name."""
    if "name" not in COMMANDS[command].model_fields or not own or any(word.startswith("name=") for word in own):
        return list(line)
    parts = (re.sub(r"^[+~]*(?:.*\.)?(?=[^.]+=)", "", word) for word in own)
    name = re.sub(r"[^\w=,.+@-]+", "_", ",".join(parts))[:LONGEST_NAME].strip(".")
    given = next((word.partition("=")[2] for word in line if word.startswith("name=")), None)
    others = [word for word in line if not word.startswith("name=")]
    return [*others, f"name={name if given in (None, 'null') else f'{given}/{name}'}"]


def _parse(typed: str, command: str) -> Override:
    """Read ``key=value`` as Hydra's grammar has it, or else the value as the text that it is."""
    if is_for_hydra(typed):
        raise InputError(f"{typed}: is about several runs; put -m before it")
    parts = re.fullmatch(r"(\+{0,2}|~)([\w./]+)(?:=(.*))?", typed, re.DOTALL | re.ASCII)
    if "=" not in typed and (meant := _key_of_file(typed, command)):
        raise InputError(f"{typed}: write {meant}={typed}")
    if parts is None:
        raise InputError(f"cannot read {typed!r}: write KEY=VALUE")
    sign, key, value = parts.groups()
    keys = describe(COMMANDS[command])
    calls = tuple(other.removesuffix("_target_") for other in keys if other.endswith("_target_"))
    is_argument = key.startswith(calls) and not key.endswith("_target_")  # Hydra knows those of a file
    known = (*keys, *COMMANDS[command].groups)
    if not is_argument and not any(f"{other}.".startswith(f"{key}.") for other in known):
        raise InputError(no_such_key(key, command))
    if sign == "~" and is_argument:
        return _read(typed)
    if sign == "~" or value is None:
        raise InputError(f"{typed}: write {key}=VALUE")
    start = f"{sign if is_argument else ''}{key}="
    value = expanduser(value) if value.startswith("~/") else value  # a shell leaves it as it is behind a =
    if sum(map(value.count, "[{(")) <= MOST_BRACKETS:
        with suppress(InputError):
            return _read(start + value)
    quoted = re.sub(r"(\\*)('|\Z)", lambda end: 2 * end[1] + end[2].replace("'", r"\'"), value)
    return _read(f"{start}'{quoted}'")


def _key_of_file(typed: str, command: str) -> str | None:
    """Return which key a word would be the value of, if it is the name of a checkpoint or of images."""
    keys = describe(COMMANDS[command])
    if typed.endswith(".ckpt"):
        return next((key for key in ("ckpt", "ckpt_path") if key in keys), None)
    return "images" if "images" in keys and Path(typed).exists() else None


def _read(line: str) -> Override:
    try:
        return OverridesParser.create().parse_override(line)
    except (HydraException, ValueError) as error:  # Python reads no number of more than 4,300 digits
        raise InputError(f"cannot read {line!r}: {one_line(error)}") from error


def choices(group: str) -> list[str]:
    """Return what can be chosen for a group: the files in its folder."""
    return sorted(file.stem for file in (CONFIGS / group).glob("[!_]*.yaml"))


def no_such_key(key: str, command: str) -> str:
    """Say that a key does not exist, and with which choice it would, or which have a last part like its own."""
    (group, _, name), leaf = key.partition("."), key.rpartition(".")[2]
    leaves = {other: other.rpartition(".")[2] for other in describe(COMMANDS[command])}
    if key in leaves:
        files = {f"{group}={choice}": CONFIGS / group / f"{choice}.yaml" for choice in choices(group)}
        homes = [chosen for chosen, file in files.items() if re.search(rf"^ *{name}:", file.read_text(), re.MULTILINE)]
        return f"{key}: no such key here; it belongs to {' and '.join(homes)}"
    near = get_close_matches(leaf, leaves.values(), n=1)
    meant = [other for other, last in leaves.items() if last in near or leaf in last.split("_")]
    likest = get_close_matches(key, meant, cutoff=0)
    hint = f"; did you mean {' or '.join(likest)}?" if likest else ""
    return f"{key}: no such key{hint} (--help shows all keys)"
