"""Profilers: where the time of a run goes."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fulgur.errors import MisconfigurationException, nearest_name
from fulgur.profilers.profiler import PassThroughProfiler, Profiler

if TYPE_CHECKING:
    from fulgur.profilers.advanced import AdvancedProfiler
    from fulgur.profilers.pytorch import PyTorchProfiler
    from fulgur.profilers.simple import SimpleProfiler

_HOMES = {"AdvancedProfiler": "advanced", "PyTorchProfiler": "pytorch", "SimpleProfiler": "simple"}
_NAMES = {"simple": "SimpleProfiler", "advanced": "AdvancedProfiler", "pytorch": "PyTorchProfiler"}

__all__ = [
    "AdvancedProfiler",
    "PassThroughProfiler",
    "Profiler",
    "PyTorchProfiler",
    "SimpleProfiler",
    "build_profiler",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def build_profiler(name: str) -> Profiler:
    """The profiler with this name, whatever its case: ``"simple"``, ``"advanced"`` or ``"pytorch"``.

    Raises:
        MisconfigurationException: The name is unknown.
    """
    key = name.lower() if isinstance(name, str) else name
    if key not in _NAMES:
        raise MisconfigurationException(
            f"profiler={name!r} is unknown.{nearest_name(str(key), _NAMES)} "
            f"Use one of {', '.join(map(repr, _NAMES))}, or a Profiler."
        )
    profiler: Profiler = __getattr__(_NAMES[key])()
    return profiler
