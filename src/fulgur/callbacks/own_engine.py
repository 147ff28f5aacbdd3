"""Strategies whose engine has the optimizer's step, the accumulation and the weights that count."""

from __future__ import annotations

from typing import Any


def has_own_engine(strategy: Any) -> bool:
    """Whether `strategy` is DeepSpeed's; by name, so that a run without it does not import it."""
    return any(cls.__name__ == "DeepSpeedStrategy" for cls in type(strategy).__mro__)
