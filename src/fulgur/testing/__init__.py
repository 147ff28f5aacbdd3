"""What tests of training code are made with: small models, ranks, and counters of what a step costs.

Example:
    >>> from fulgur import Trainer
    >>> from fulgur.testing import BoringModel, calls_per_step, count_host_reads
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fulgur.testing.boring import (
        BoringDataModule,
        BoringModel,
        DemoModel,
        ManualOptimBoringModel,
        RandomDataset,
        RandomIterableDataset,
    )
    from fulgur.testing.calls import CallCount, calls_per_step, count_calls
    from fulgur.testing.host_reads import HostRead, count_host_reads, forbid_host_reads
    from fulgur.testing.ranks import run_ranks

_HOMES = {
    "BoringDataModule": "boring",
    "BoringModel": "boring",
    "CallCount": "calls",
    "DemoModel": "boring",
    "HostRead": "host_reads",
    "ManualOptimBoringModel": "boring",
    "RandomDataset": "boring",
    "RandomIterableDataset": "boring",
    "calls_per_step": "calls",
    "count_calls": "calls",
    "count_host_reads": "host_reads",
    "forbid_host_reads": "host_reads",
    "run_ranks": "ranks",
}

__all__ = [
    "BoringDataModule",
    "BoringModel",
    "CallCount",
    "DemoModel",
    "HostRead",
    "ManualOptimBoringModel",
    "RandomDataset",
    "RandomIterableDataset",
    "calls_per_step",
    "count_calls",
    "count_host_reads",
    "forbid_host_reads",
    "run_ranks",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fulgur.testing' has no attribute {name!r}")
    value = getattr(import_module(f"fulgur.testing.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
