"""Profilers: where the time of a run goes."""

from __future__ import annotations

from fulgur.errors import MisconfigurationException, nearest_name
from fulgur.profilers.advanced import AdvancedProfiler
from fulgur.profilers.profiler import PassThroughProfiler, Profiler
from fulgur.profilers.simple import SimpleProfiler

__all__ = ["AdvancedProfiler", "PassThroughProfiler", "Profiler", "SimpleProfiler", "build_profiler"]


def build_profiler(name: str) -> Profiler:
    """The profiler with this name, whatever its case: ``"simple"`` or ``"advanced"``.

    Raises:
        MisconfigurationException: The name is unknown.
    """
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
