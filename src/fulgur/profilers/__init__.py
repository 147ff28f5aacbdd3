"""Profilers: where the time of a run goes."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fulgur.errors import MisconfigurationException, nearest_name
from fulgur.profilers.profiler import PassThroughProfiler, Profiler

if TYPE_CHECKING:
    from fulgur.profilers.advanced import AdvancedProfiler
    from fulgur.profilers.simple import SimpleProfiler

_HOMES = {"AdvancedProfiler": "advanced", "SimpleProfiler": "simple"}

__all__ = ["AdvancedProfiler", "PassThroughProfiler", "Profiler", "SimpleProfiler", "build_profiler"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def build_profiler(name: str) -> Profiler:
    """The profiler with this name, whatever its case: ``"simple"`` or ``"advanced"``.

    Raises:
        MisconfigurationException: The name is unknown.
    """
    from fulgur.profilers.advanced import AdvancedProfiler
    from fulgur.profilers.simple import SimpleProfiler

    known: dict[str, type[SimpleProfiler] | type[AdvancedProfiler]] = {
        "simple": SimpleProfiler,
        "advanced": AdvancedProfiler,
    }
    key = name.lower() if isinstance(name, str) else name
    if key not in known:
        raise MisconfigurationException(
            f"profiler={name!r} is unknown.{nearest_name(str(key), known)} "
            f"Use one of {', '.join(map(repr, known))}, or a Profiler."
        )
    return known[key]()
