"""The smallest models and data that go through every part of a run; they are those of `fulgur.testing`."""

from __future__ import annotations

from fulgur.testing.boring import (
    BoringDataModule,
    BoringModel,
    DemoModel,
    ManualOptimBoringModel,
    RandomDataset,
    RandomIterableDataset,
)

__all__ = [
    "BoringDataModule",
    "BoringModel",
    "DemoModel",
    "ManualOptimBoringModel",
    "RandomDataset",
    "RandomIterableDataset",
]
