"""From a command's files and what a user typed to its configuration, checked; without torch."""

from collections.abc import Iterable
from typing import Any

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import ValidationError

from cifar_resnet.cli import overrides, wording
from cifar_resnet.cli.schema import COMMANDS
from cifar_resnet.errors import InputError, one_line


def compose(name: str, *typed: str) -> Any:
    """Return an object of the command's class in `COMMANDS`; raise `InputError` where it cannot be one."""
    try:
        return COMMANDS[name].model_validate(resolve(compose_plain(name, typed), throw_on_missing=True))
    except ValidationError as error:
        raise InputError(wording.explain(error, name)) from error


def resolve(config: DictConfig, throw_on_missing: bool = False) -> Any:
    """Return plain values; `InputError` where one is not set, or refers to what is not there."""
    try:
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=throw_on_missing)
    except MissingMandatoryValue as error:
        raise InputError(f"{error.full_key} is not set: give {error.full_key}=VALUE (--help says which)") from error
    except OmegaConfBaseException as error:
        raise InputError(f"{error.full_key}: {str(error).splitlines()[0]}") from error


def compose_plain(name: str, typed: Iterable[str]) -> DictConfig:
    """Return the command's configuration as its files and the words have it, unchecked."""
    readable = overrides.name_network([overrides.read_override(each, name) for each in typed])
    of_network = [each for each in readable if overrides.OF_NETWORK.match(each)]
    try:
        with hydra.initialize_config_dir(str(overrides.CONFIGS), version_base="1.3"):
            config = hydra.compose(name, readable)
            if any(each.startswith("model=") for each in of_network):  # an experiment's arguments may be of another one
                own = hydra.compose(name, of_network).model
                config.model = OmegaConf.masked_copy(config.model, list(own))
            return config
    except HydraException as error:
        key = getattr(error.__cause__, "full_key", None)
        raise InputError(overrides.no_such_key(key, name) if key else one_line(error)) from error
