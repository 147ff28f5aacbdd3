"""Votes on an accelerator, whose host runs ahead: what it has not heard of yet, the device has to find in time.

A rank without a loss tells the others before it takes part in the reduction, and waits until their threads have
written it down, in memory of the host that the device reads. The devices read it after the reduction, which waits for
this rank. So what makes the mean one over the ranks with a loss is there when it is read, and no host waits but that of
a rank without any loss, which has to know whether there is a step at all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fulgur.optim.clip import gradients_of
from fulgur.strategies.votes import Votes, Window

if TYPE_CHECKING:
    from fulgur.agreement import Agreement

_N_SLOTS = 1024
"""Reductions that hosts may be ahead of devices, and of each other: twice what may be told of and not yet read."""


class DeviceVotes(Votes):
    """Scales gradients on the device by what it reads there after each reduction.

    Args:
        agreement, store, take_zero_loss: As for `Votes`.
        device: Where gradients are.
    """

    def __init__(
        self,
        agreement: Agreement,
        store: Any,
        *,
        take_zero_loss: Callable[[], Tensor | None],
        device: torch.device,
    ) -> None:
        super().__init__(agreement, store, take_zero_loss=take_zero_loss)
        self._device = device
        shape = (_N_SLOTS, agreement.world_size)
        self._missing = torch.zeros(shape, dtype=_widest(device), pin_memory=device.type == "cuda")

    def settle(self, window: Window) -> float:
        slot = self.number % _N_SLOTS
        missing = self._missing[slot].to(self._device, non_blocking=True).sum() / self._agreement.world_size
        present = window.n_batches - missing
        factor = torch.where(present > 0, window.n_batches / present, torch.zeros_like(present))
        gradients = gradients_of(window.optimizer)
        if gradients:
            torch._foreach_mul_(gradients, factor.to(torch.promote_types(gradients[0].dtype, torch.float32)))
        self._clear((slot + _N_SLOTS // 2) % _N_SLOTS)
        if window.missing < window.n_batches:
            return window.n_batches
        _wait_for(self._device)  # waits for the device: every rank without a loss has told of it by then
        return window.n_batches if super().settle(window) else 0.0

    def _clear(self, slot: int) -> None:
        if self._missing[slot].any():
            _wait_for(self._device)  # waits for the device: what was written half a ring ago may not have been read
            self._missing[slot] = 0.0

    def _begin_reduction(self, window: Window) -> None:
        super()._begin_reduction(window)
        self.asked = self.number  # the host does not know: the device looks at every step

    def _hear(self, told: tuple[int, int, float]) -> None:
        number, rank, missing = told
        self._missing[number % _N_SLOTS, rank] = missing


def _widest(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
