"""From the dotted name and the arguments that a configuration holds to the object that they make."""

import inspect
from collections.abc import Mapping
from pkgutil import resolve_name
from typing import Any, TypeVar

from cifar_resnet.errors import InputError, one_line

Made = TypeVar("Made")


def locate(name: str) -> Any:
    """Return what a dotted name means: the last part of it in the module of the others; raise as an import does."""
    return resolve_name(":".join(name.rsplit(".", 1)))  # the function resnet18 rather than its module


def make(
    kind: type[Made],
    call: Mapping[str, Any],
    key: str,
    *positional: Any,
    offered: Mapping[str, Any] | None = None,
    **given: Any,
) -> Made:
    """Call what a configuration names.

    A failure inside the callable, a user's network perhaps, stays what it is and keeps its traceback.

    Args:
        kind: the class that the result has to be of.
        call: ``{"_target_": dotted name of the callable, ...}``; the rest are its keyword arguments.
        key: where the configuration holds it, for messages.
        positional: arguments that are not in the configuration.
        offered: keyword arguments that it gets if it names them among its own and the configuration does not.
        given: keyword arguments that are not in the configuration.

    Raises:
        InputError: there is no such callable, it does not take the arguments, or it makes something else.
    """
    arguments = {**call, **given}
    name = arguments.pop("_target_")
    try:
        target = locate(name)
        signature = inspect.signature(target)
        arguments = {name: value for name, value in (offered or {}).items() if name in signature.parameters} | arguments
        signature.bind(*positional, **arguments)
    except (ImportError, AttributeError) as error:
        nothing = f"there is nothing by that name ({one_line(error)}); correct it, or install its package"
        raise InputError(f"{key}._target_={name}: {nothing}") from error
    except TypeError as error:
        takes = f"; it takes {', '.join(signature.parameters) or 'none'}" if callable(target) else ""
        raise InputError(f"{key}: {name} {one_line(error)}{takes}") from error
    except ValueError:  # some built-in ones do not tell what they take
        pass
    made = target(*positional, **arguments)
    if not isinstance(made, kind):
        raise InputError(f"{key}._target_={name}: it makes a {type(made).__name__}, not a {kind.__name__}")
    return made
