"""The schema in words: which keys a command has, what each accepts, and what is wrong with a configuration."""

import json
from functools import cache
from typing import Any, get_type_hints

from pydantic import BaseModel, ValidationError

from cifar_resnet.cli.schema import COMMANDS

KINDS = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "string": "a text"}


@cache
def describe(section: type[BaseModel], prefix: str = "") -> dict[str, dict[str, Any]]:
    """Return each key of a section, and of the sections in it, with its JSON schema."""
    keys: dict[str, dict[str, Any]] = {}
    for name, described in section.model_json_schema()["properties"].items():
        if "$ref" in described:
            keys |= describe(get_type_hints(section)[name], f"{prefix}{name}.")
        else:
            keys[f"{prefix}{name}"] = described
    return keys


def expected(described: dict[str, Any]) -> str:
    """Say what a key with this JSON schema accepts."""
    if "anyOf" in described:
        return ", or ".join(map(expected, described["anyOf"]))
    if "enum" in described or "const" in described:
        return " | ".join(map(str, described.get("enum", [described.get("const")])))
    if "enum" in described.get("items", {}):
        return f"a list of {expected(described['items'])}"
    kind = KINDS.get(described["type"], described["type"].replace("array", "a list"))
    low = f"from {described['minimum']:,}" if "minimum" in described else "above 0"
    step = f", a multiple of {described['multipleOf']}" if "multipleOf" in described else ""
    if "exclusiveMaximum" in described:
        return f"{kind} {low} and below {described['exclusiveMaximum']:,}{step}"
    return f"{kind} {low} to {described['maximum']:,}{step}" if "maximum" in described else kind


def explain(error: ValidationError, command: str) -> str:
    """Put the first thing that is wrong with a configuration into a line: the key, its value, what it accepts."""
    first, keys = error.errors()[0], describe(COMMANDS[command])
    place = ".".join(map(str, first["loc"]))
    key = next((other for other in keys if f"{place}.".startswith(f"{other}.")), None)  # a place may be in a list
    if key is None or first["type"] in {"value_error", "missing"}:
        return f"{place}: {first['msg'].removeprefix('Value error, ')}".removeprefix(": ")
    value = first["input"]
    return f"{key}={value if isinstance(value, str) else json.dumps(value)}: expected {expected(keys[key])}"
