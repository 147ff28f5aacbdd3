"""Fabric: devices, processes, precision, loggers and checkpoints for loops that people write themselves."""

from __future__ import annotations

from fulgur.fabric.fabric import Fabric
from fulgur.fabric.wrappers import is_wrapped
from fulgur.rng import seed_everything

__all__ = ["Fabric", "is_wrapped", "seed_everything"]
