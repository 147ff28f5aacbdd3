"""Precision: the number formats that weights, inputs and the steps of a module use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fulgur.precision.build import build_precision
from fulgur.precision.full import FullPrecision
from fulgur.precision.precision import Precision

if TYPE_CHECKING:
    from fulgur.precision.double import DoublePrecision
    from fulgur.precision.fsdp import FSDPPrecision
    from fulgur.precision.half import HalfPrecision
    from fulgur.precision.mixed import MixedPrecision

_HOMES = {"DoublePrecision": "double", "FSDPPrecision": "fsdp", "HalfPrecision": "half", "MixedPrecision": "mixed"}

__all__ = [
    "DoublePrecision",
    "FSDPPrecision",
    "FullPrecision",
    "HalfPrecision",
    "MixedPrecision",
    "Precision",
    "build_precision",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
