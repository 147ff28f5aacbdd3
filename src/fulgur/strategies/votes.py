"""Which ranks have a gradient for a step, so that the mean is over those and nobody waits for the others.

A rank without a loss, whose ``training_step`` returned None, takes part in the reduction with zeros. Before it does, it
tells the others, whose threads hear it (`Agreement`): as the reduction waits for this rank, they know when it is over.
So ranks that all have a loss, which is every step but a few, exchange nothing and look at one number. On accelerators,
whose hosts run ahead, `DeviceVotes` has the devices look.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from fulgur.agreement import Agreement
    from fulgur.strategies.strategy import Strategy

_NOBODY = 1e-6


class Window(Protocol):
    """The batches between two steps of an optimizer.

    Attributes:
        optimizer: Whose gradients they make.
        n_batches: How many there were on this rank, those without a loss too.
        missing: Weight of those without a loss.
    """

    optimizer: Any
    n_batches: int
    missing: float


class Votes:
    """Counts, for each reduction of gradients, the batches without a loss.

    Args:
        agreement: Carries the messages.
        store: Holds the counts.
        take_zero_loss: Gives the loss of no batch, for the last forward pass where that had none: its gradients are
            zeros. None where nothing was to be reduced.

    Attributes:
        weight: Of the running batch: its share of the samples of the step, times the number of ranks. 1.0 in a step
            whose batches are equally long.
        lack: Of the running batch: what the weights of all ranks lack of their number because of this rank, without
            the others knowing. 0.0 as a rule.
        number: Of the last reduction.
        asked: Number of the last reduction for which a rank told of batches without a loss; it may be yet to come.
    """

    def __init__(self, agreement: Agreement, store: Any, *, take_zero_loss: Callable[[], Tensor | None]) -> None:
        self.weight, self.lack = 1.0, 0.0
        self.number, self.asked = 0, -1
        self._agreement, self._store, self._take_zero_loss = agreement, store, take_zero_loss
        agreement.on_message["vote"] = self._hear

    def open_window(self, window: Window) -> None:
        """Begin to count anew."""
        window.n_batches, window.missing = 0, 0.0

    def cast(self, loss: Tensor, window: Window, *, reduces: bool) -> Tensor:
        """Count a batch with a loss. Returns the loss to go backward from."""
        window.n_batches += 1
        window.missing += self.lack
        if reduces:
            self._begin_reduction(window)
        return loss if self.weight == 1.0 else loss * self.weight

    def skip(self, window: Window, *, reduces: bool, scale: Callable[[Tensor], Tensor] | None = None) -> None:
        """Count a batch without a loss, and take part in the reduction with zeros if there is one.

        Args:
            window: That the batch belongs to.
            reduces: Whether gradients are reduced after this batch.
            scale: Scales losses, as under 16-mixed.
        """
        window.n_batches += 1
        window.missing += self.weight + self.lack
        if reduces:
            self._begin_reduction(window)
            loss = self._take_zero_loss()
            if loss is not None:
                (loss if scale is None else scale(loss)).backward()

    def settle(self, window: Window) -> float:
        """After a reduction for which a rank told of batches without a loss.

        Returns:
            The number of batches of the window with a loss, as a mean over all ranks; 0.0 where no rank had one.
        """
        keys = [f"{self.number}/{rank}" for rank in range(self._agreement.world_size)]
        missing = sum(float(self._store.get(key)) for key in keys if self._store.check([key]))
        present = window.n_batches - missing / self._agreement.world_size
        return present if present > _NOBODY * window.n_batches else 0.0

    def _begin_reduction(self, window: Window) -> None:
        """Tell the others what of this rank's share is not there, if anything is not; then they know it afterwards."""
        self.number += 1
        if window.missing:
            self._store.set(f"{self.number}/{self._agreement.rank}", repr(window.missing))
            self._agreement.tell_others("vote", (self.number, self._agreement.rank, window.missing))
            self._hear((self.number, self._agreement.rank, window.missing))

    def _hear(self, told: tuple[int, int, float]) -> None:
        self.asked = max(self.asked, told[0])  # one that is a step ahead may tell before this one has settled its own


def open_votes(strategy: Strategy, agreement: Agreement, take_zero_loss: Callable[[], Tensor | None]) -> Votes:
    """The votes for gradients on the strategy's device. All ranks must reach this."""
    store = strategy.open_store("votes")
    if strategy.root_device.type == "cpu":
        return Votes(agreement, store, take_zero_loss=take_zero_loss)
    from fulgur.strategies.device_votes import DeviceVotes

    return DeviceVotes(agreement, store, take_zero_loss=take_zero_loss, device=strategy.root_device)


def zero_of(tensors: list[Tensor]) -> Tensor:
    """Zero, whose gradient is zero for each of `tensors`, whatever is in them."""
    zero: Tensor = _ZeroGradients.apply(*tensors)  # type: ignore[no-untyped-call]
    return zero


class _ZeroGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        return tensors[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return tuple(torch.zeros_like(tensor) for tensor in ctx.saved_tensors)
