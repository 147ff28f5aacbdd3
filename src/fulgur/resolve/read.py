"""The whole way from a call of the Trainer to checked settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fulgur.resolve.arguments import ARGUMENT_NAMES, Settings, apply_environment, build_arguments, name_positionals
from fulgur.resolve.check import check_arguments
from fulgur.resolve.legacy import LEGACY_NAMES, LegacySettings, translate_legacy


def read_arguments(positionals: tuple[Any, ...], given: Mapping[str, Any]) -> tuple[Settings, LegacySettings]:
    """Read the arguments of a Trainer, as the user wrote them.

    Args:
        positionals: Values given by position.
        given: Values given by name, those of 1.x among them; nothing that was not given.

    Returns:
        Checked settings, and what 1.x arguments ask for beyond them.

    Raises:
        UnknownArgumentError: A name that nobody knows.
        MisconfigurationException: A value is out of range, or contradicts another; sometimes also a ValueError or a
            TypeError, see `check_arguments`.
    """
    named = apply_environment(name_positionals(positionals, given), (*ARGUMENT_NAMES, *LEGACY_NAMES))
    today, legacy = translate_legacy(named)
    return check_arguments(build_arguments(today, LEGACY_NAMES)), legacy
