"""Batches of one pass over a loader, on the device, with the last one known as such."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from fulgur.errors import PossibleUserWarning
from fulgur.rank import rank_zero_warn

if TYPE_CHECKING:
    from fulgur.metrics import MetricLog

_END = object()


class Fetch:
    """Iterates over a loader, moves each batch, and knows in `is_last` whether more will come.

    A sized loader is never asked for a batch before the step needs it, so that random draws in the dataset and in the
    model keep the order of a hand-written loop. An unsized one is read one batch ahead.

    Args:
        loader: Any iterable.
        n_batches: How many batches to take at most; ``inf`` takes all.
        is_sized: Whether the loader is known to have at least `n_batches`.
        transfer: Brings a batch to the device.
        unpack: Gets the batch out of what the loader yields; None where it yields batches.

    Attributes:
        is_last: Whether the batch yielded last is the last one of this pass.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        *,
        n_batches: float,
        is_sized: bool,
        transfer: Callable[[Any], Any] | None,
        unpack: Callable[[Any], Any] | None = None,
    ) -> None:
        self.loader, self.n_batches, self.is_sized = loader, n_batches, is_sized
        self.transfer, self.unpack = transfer, unpack
        self.is_last = False

    def __iter__(self) -> Iterator[Any]:
        batches: Iterable[Any] = self.loader if self.unpack is None else map(self.unpack, self.loader)
        return self._sized(batches) if self.is_sized else self._ahead(batches)

    def _sized(self, batches: Iterable[Any]) -> Iterator[Any]:
        transfer, n_batches, count = self.transfer, self.n_batches, 0
        self.is_last = False
        for batch in batches:
            count += 1
            if batch is None:
                _say_that_none_is_skipped()
                continue
            if count >= n_batches:
                self.is_last = True
                yield batch if transfer is None else transfer(batch)
                return
            yield batch if transfer is None else transfer(batch)

    def _ahead(self, batches: Iterable[Any]) -> Iterator[Any]:
        transfer, n_batches, count = self.transfer, self.n_batches, 0
        self.is_last = False
        iterator = filter(_is_batch, batches)
        following = next(iterator, _END)
        while following is not _END:
            batch, count = following, count + 1
            following = next(iterator, _END) if count < n_batches else _END
            self.is_last = following is _END
            yield batch if transfer is None else transfer(batch)


def _is_batch(batch: Any) -> bool:
    if batch is None:
        _say_that_none_is_skipped()
    return batch is not None


def _say_that_none_is_skipped() -> None:
    rank_zero_warn(
        "The loader gave None instead of a batch; it is skipped. Look at its collate_fn.", PossibleUserWarning
    )


class StepIterator:
    """What a ``training_step(dataloader_iter)`` gets: an iterator over ``(batch, batch_idx, dataloader_idx)``.

    The loop advances once a step; a step that draws nothing leaves the batch for the next one.
    """

    def __init__(self, fetch: Fetch, dataloader_idx: int = 0) -> None:
        self.fetch, self.dataloader_idx = fetch, dataloader_idx
        self._batches = iter(fetch)
        self._ahead: Any = next(self._batches, _END)
        self.draws_last = fetch.is_last
        self.n_drawn = 0
        self.is_last = False

    @property
    def has_more(self) -> bool:
        """Whether there is a batch to draw."""
        return self._ahead is not _END

    def __iter__(self) -> StepIterator:
        return self

    def __next__(self) -> tuple[Any, int, int]:
        if self._ahead is _END:
            raise StopIteration
        batch, self.is_last = self._ahead, self.draws_last
        self._ahead = _END if self.is_last else next(self._batches, _END)
        self.draws_last = self.fetch.is_last
        self.n_drawn += 1
        return batch, self.n_drawn - 1, self.dataloader_idx


def build_transfer(
    log: MetricLog,
    *,
    device: Any,
    cast: Callable[[Any], Any] | None,
    before: Callable[[Any, int], Any] | None,
    move: Callable[[Any, Any, int], Any] | None,
    after: Callable[[Any, int], Any] | None,
    default_move: Callable[[Any, Any], Any],
    dataloader_idx: int = 0,
) -> Callable[[Any], Any]:
    """One function that brings a batch to the device, made of the parts that someone overrides.

    Args:
        log: The `MetricLog`; its scope is closed while user code runs, for nothing can be logged here.
        device: Where to.
        cast: The precision's conversion of floating-point tensors; None for none.
        before, move, after: Overridden transfer hooks; None where they are not.
        default_move: Moves a batch where `move` is None.
        dataloader_idx: Handed to the hooks.
    """
    if cast is None and before is None and move is None and after is None:
        return lambda batch: default_move(batch, device)

    def transfer(batch: Any) -> Any:
        log.scope = None
        if cast is not None:
            batch = cast(batch)
        if before is not None:
            batch = before(batch, dataloader_idx)
        batch = default_move(batch, device) if move is None else move(batch, device, dataloader_idx)
        return batch if after is None else after(batch, dataloader_idx)

    return transfer
