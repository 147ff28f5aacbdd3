"""From Fabric's arguments, and those of ``fulgur fabric run``, to the parts of a run."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from fulgur import resolve
from fulgur.resolve.arguments import Arguments

CLI_VARIABLE = "LT_CLI_USED"
_VARIABLES = {
    "accelerator": "LT_ACCELERATOR",
    "strategy": "LT_STRATEGY",
    "devices": "LT_DEVICES",
    "num_nodes": "LT_NUM_NODES",
    "precision": "LT_PRECISION",
}
_DEFAULTS = {"accelerator": "auto", "strategy": "auto", "devices": "auto", "num_nodes": 1, "precision": None}


def is_started_by_command() -> bool:
    """Whether ``fulgur fabric run`` runs this program, and says how many processes there are."""
    return os.environ.get(CLI_VARIABLE, "") == "1"


def command_variables(given: dict[str, Any]) -> dict[str, str]:
    """What a command that got the options `given` puts into the environment, for `read_settings` to find."""
    chosen = {_VARIABLES[name]: str(value) for name, value in given.items() if value is not None and name in _VARIABLES}
    return {CLI_VARIABLE: "1", **chosen}


def read_settings(given: dict[str, Any], plugins: Any) -> resolve.Settings:
    """The arguments, checked, with what the command line says in the place of defaults.

    Raises:
        ValueError: Program and command line contradict each other.
        MisconfigurationException: A value is out of range.
    """
    values = {name: _merged(name, value) for name, value in given.items()}
    return resolve.check_arguments(Arguments(**values, plugins=plugins, logger=False, enable_checkpointing=False))


def _merged(name: str, value: Any) -> Any:
    told = os.environ.get(_VARIABLES[name], "") if is_started_by_command() else ""
    if not told:
        return value
    if value != _DEFAULTS[name] and str(value) != told:
        raise ValueError(
            f"Fabric({name}={value!r}) contradicts --{name.replace('_', '-')}={told} of the command that runs this "
            "program. Leave out one of them."
        )
    return int(told) if told.isdecimal() and name in ("devices", "num_nodes") else told


def read_callbacks(callbacks: Any) -> list[Any]:
    """Callbacks as a list of their own."""
    if callbacks is None:
        return []
    return list(callbacks) if isinstance(callbacks, Iterable) else [callbacks]
