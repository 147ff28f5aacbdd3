"""File names of checkpoints, filled in from metrics."""

from __future__ import annotations

import re
from collections.abc import Mapping
from string import Formatter
from typing import Any

from torch import Tensor

from fulgur.errors import MisconfigurationException


def format_name(template: str, metrics: Mapping[str, Any], *, equals: str = "=", insert_names: bool = True) -> str:
    """Fill the fields of `template` with metric values.

    A metric nobody logged counts as 0. Waits for the device where a value is a tensor on one.

    Args:
        template: For example ``"{epoch:02d}-{val_loss:.2f}"``. A field may be any metric name, with ``/`` and ``.``.
        metrics: Values by name: numbers or tensors of one element.
        equals: What stands between a name and its value.
        insert_names: Write ``name=value`` for a field rather than the value alone.

    Raises:
        MisconfigurationException: A value cannot be written in the format its field asks for.

    Example:
        >>> format_name("{epoch:02d}-{val/loss:.2f}", {"epoch": 3, "val/loss": 0.123})
        'epoch=03-val/loss=0.12'
    """
    parts: list[str] = []
    for literal, name, spec, conversion in Formatter().parse(template):
        parts.append(literal)
        if name is None:
            continue
        value = _plain_number(metrics.get(name, 0))
        try:
            text = format(Formatter().convert_field(value, conversion), spec or "")
        except ValueError as error:
            raise MisconfigurationException(
                f"The checkpoint name {template!r} writes {name}={value!r} with the format {spec!r}: {error}."
            ) from error
        parts.append(f"{name}{equals}{text}" if insert_names else text)
    return "".join(parts)


def name_pattern(template: str, *, equals: str = "=", join: str = "-") -> re.Pattern[str]:
    """A pattern that a name made from `template` matches in full, with or without a version at its end."""
    pattern = ""
    for literal, name, _, _ in Formatter().parse(template):
        pattern += re.escape(literal)
        if name is not None:
            pattern += f"(?:{re.escape(name + equals)})?.+"
    return re.compile(rf"{pattern}(?:{re.escape(join)}v\d+)?")


def _plain_number(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) else value  # waits for the device
