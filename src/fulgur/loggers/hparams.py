"""Hyperparameters as loggers need them: a dict, plain data for YAML, or one flat level of scalars."""

from __future__ import annotations

import dataclasses
import enum
import numbers
import os
from collections.abc import Mapping, Sequence, Set
from typing import Any

import torch

from fulgur.loggers.run_dir import write_text

HPARAMS_FILE = "hparams.yaml"

Scalar = bool | int | float | str


def to_dict(params: Any) -> dict[str, Any]:
    """A new dict of a mapping, an ``argparse.Namespace``, a dataclass or None.

    Raises:
        TypeError: `params` is something else.
    """
    fields = {} if params is None else _find_fields(params)
    if fields is None:
        raise TypeError(
            f"log_hyperparams got a {type(params).__name__}. Pass a dict, an argparse.Namespace or a dataclass."
        )
    return fields


def to_plain(value: Any) -> Any:
    """`value` as dicts, lists, strings, numbers, booleans and None, which every YAML reader takes.

    Enums become their names; paths, dtypes, tensors and all other objects become strings.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, str):
        return str(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return _plain_container(value)


def flatten(params: Mapping[str, Any], separator: str = "/") -> dict[str, Scalar]:
    """One level of scalars: nested names joined with `separator`, what is no scalar as a string.

    Example:
        >>> flatten({"optimizer": {"lr": 0.1, "betas": (0.9, 0.99)}})
        {'optimizer/lr': 0.1, 'optimizer/betas': '(0.9, 0.99)'}
    """
    flat: dict[str, Scalar] = {}
    for name, value in params.items():
        fields = _find_fields(value)
        if fields is None:
            flat[str(name)] = _to_scalar(value)
        else:
            inner = flatten(fields, separator)
            flat |= {f"{name}{separator}{inner_name}": inner_value for inner_name, inner_value in inner.items()}
    return flat


def write_hparams(path: str, params: Mapping[str, Any]) -> None:
    """Write hyperparameters as YAML that a safe loader reads: plain data, no tags."""
    import yaml

    write_text(path, yaml.safe_dump(to_plain(params), sort_keys=False, allow_unicode=True))


def _find_fields(value: Any) -> dict[str, Any] | None:
    """Names and values of a mapping, a namespace or a dataclass; None for anything else."""
    from argparse import Namespace

    if isinstance(value, Mapping):
        return dict(value.items())
    if isinstance(value, Namespace):
        return dict(vars(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return None


def _plain_container(value: Any) -> Any:
    fields = _find_fields(value)
    if fields is not None:
        return {_plain_key(key): to_plain(item) for key, item in fields.items()}
    if isinstance(value, Set):
        return sorted((to_plain(item) for item in value), key=str)
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray, memoryview)):
        return [to_plain(item) for item in value]
    return str(value)


def _plain_key(key: Any) -> Any:
    plain = to_plain(key)
    return str(plain) if isinstance(plain, (list, dict)) else plain


def _to_scalar(value: Any) -> Scalar:
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, (bool, str)) or type(value) in (int, float):
        return value  # type: ignore[no-any-return]  # narrowed by the exact types
    if isinstance(value, enum.Enum):
        return str(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else str(value)
