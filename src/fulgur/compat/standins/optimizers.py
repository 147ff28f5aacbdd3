"""Optimizers, closures and losses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


def do_nothing_closure() -> None:
    """A closure without effect."""


def check_finite_loss(loss: Tensor | None) -> None:
    """Raise for a loss that is no number. Waits for the device.

    Raises:
        ValueError: It is not.
    """
    if loss is not None and not torch.isfinite(loss).all():  # waits for the device
        raise ValueError(f"The loss is {loss}, which is not finite.")


class _MockOptimizer(Optimizer):
    """Stands where ``configure_optimizers`` gave none."""

    def __init__(self) -> None:
        super().__init__([torch.zeros(1)], {})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if closure is not None:
            closure()

    def zero_grad(self, set_to_none: bool = True) -> None:
        return

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        return
