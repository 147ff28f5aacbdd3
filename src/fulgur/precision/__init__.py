"""Precision: the number formats that weights, inputs and the steps of a module use."""

from fulgur.precision.build import build_precision
from fulgur.precision.double import DoublePrecision
from fulgur.precision.full import FullPrecision
from fulgur.precision.half import HalfPrecision
from fulgur.precision.mixed import MixedPrecision
from fulgur.precision.precision import Precision

__all__ = [
    "DoublePrecision",
    "FullPrecision",
    "HalfPrecision",
    "MixedPrecision",
    "Precision",
    "build_precision",
]
