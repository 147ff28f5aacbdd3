"""Batches of one pass over a loader, on the device, with the last one known as such."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from fulgur.data.workers import begin_pass
from fulgur.errors import PossibleUserWarning
from fulgur.rank import rank_zero_warn

if TYPE_CHECKING:
    from fulgur.loops.weightless import Uncounted
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
        is_exhausted: Whether the loader is asked for an end after its last batch, as a hand-written loop does.
        measure: Takes the iterator of a pass, and gives one that measures the wait for each batch; None for none.
        weigh: Gives `weight` and `lack` of the batch that the loader yielded last; None where every batch counts 1.

    Attributes:
        uncounted: Keeps apart what is logged in a batch of weight 0; set by the loop where there may be one.
        weight: What the batch yielded last counts in the mean over ranks: 1 in every full step, 0 for a copy that only
            lets this rank take part in the step of others.
        lack: By how much the weights of all ranks are less than their number because of this one.
        is_last: Whether the batch yielded last is the last one of this pass.
        count: Items yielded in this pass, those that were None and not yielded too.
        n_held: Of these, what a `StepIterator` holds for a step to come.
        n_done: `count` less `n_held` when a step was last completed; set by the loop.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        *,
        n_batches: float,
        is_sized: bool,
        transfer: Callable[[Any], Any] | None,
        unpack: Callable[[Any], Any] | None = None,
        is_exhausted: bool = False,
        weigh: Callable[[], tuple[float, float]] | None = None,
        measure: Callable[[Iterator[Any]], Iterator[Any]] | None = None,
    ) -> None:
        self.weigh, self.measure = weigh, measure
        self.uncounted: Uncounted | None = None
        self.weight, self.lack = 1.0, 0.0
        self.loader, self.n_batches, self.is_sized = loader, n_batches, is_sized
        self.transfer, self.unpack = transfer, unpack
        self.is_exhausted = is_exhausted
        self.is_last = False
        self.count = self.n_done = self.n_held = 0
        self._following: Any = _END
        self._weights: deque[tuple[float, float]] = deque()
        self._resumed: dict[str, Any] | None = None

    def resume(self, state: dict[str, Any]) -> None:
        """Let the next pass be the one that `state` was taken in; the loader itself stands there already."""
        self._resumed = state
        self.is_last = state["is_last"]

    def was_drawn(self, state: dict[str, Any]) -> bool:
        """Whether the loader itself had come to its end where `state` was taken: it was asked for one batch more."""
        return bool(state["is_last"]) and not self.is_sized and state["count"] < self.n_batches

    def finish_resumed(self) -> None:
        """End a resumed pass whose last batch lies behind it."""
        items, self._resumed = iter(self.loader), None
        if self.is_exhausted:
            next(items, None)

    def state_dict(self) -> dict[str, Any]:
        """How far the pass is; with the batch that was read ahead, if one was."""
        in_flight = self.count > self.n_done
        state: dict[str, Any] = {"count": self.n_done, "is_last": self.is_last and not in_flight}
        if self._following is _END or in_flight:
            return state
        return state | {"following": self._following} | self._weight_of_following()

    def _weight_of_following(self) -> dict[str, Any]:
        return {"following_weight": self._weights[-1]} if self._weights else {}

    @property
    def n_undone(self) -> int:
        """Items drawn from the loader that a resumed pass has to draw again: of a step that did not end."""
        in_flight = self.count - self.n_done
        return in_flight + (self._following is not _END) if in_flight else 0

    def __iter__(self) -> Iterator[Any]:
        state, self._resumed = self._resumed or {}, None
        self.count = self.n_done = state.get("count", 0)
        self.n_held = 0
        self._following = state.get("following", _END)
        self.is_last = False
        items = begin_pass(self.loader)
        if self.measure is not None:
            items = self.measure(items)
        batches = items if self.unpack is None else map(self.unpack, items)
        if self.weigh is None:
            return self._sized(batches, self.transfer) if self.is_sized else self._ahead(batches, self.transfer)
        self._weights = deque([state.get("following_weight", (1.0, 0.0))] if "following" in state else ())
        batches, transfer = self._noted(batches), self._weighed
        return self._sized(batches, transfer) if self.is_sized else self._ahead(batches, transfer)

    def _sized(self, batches: Iterator[Any], transfer: Callable[[Any], Any] | None) -> Iterator[Any]:
        n_batches, count = self.n_batches, self.count
        for batch in batches:
            self.count = count = count + 1
            if batch is None:
                _say_that_none_is_skipped()
                continue
            if count >= n_batches:
                self.is_last = True
                yield batch if transfer is None else transfer(batch)
                if self.is_exhausted:
                    next(batches, None)
                return
            yield batch if transfer is None else transfer(batch)

    def _ahead(self, batches: Iterator[Any], transfer: Callable[[Any], Any] | None) -> Iterator[Any]:
        n_batches, count = self.n_batches, self.count
        batches = filter(_is_batch, batches)
        following = self._following if self._following is not _END else next(batches, _END)
        while following is not _END:
            batch, self.count = following, (count := count + 1)
            self._following = following = next(batches, _END) if count < n_batches else _END
            self.is_last = following is _END
            yield batch if transfer is None else transfer(batch)
        if self.is_exhausted and count >= n_batches:
            next(batches, None)

    def count_again(self, *args: Any) -> None:
        """After a batch of weight 0: what is logged counts. A hook; takes what such a one is given."""
        if self.uncounted is not None:
            self.uncounted.end()

    def _noted(self, batches: Iterator[Any]) -> Iterator[Any]:
        """`batches`, with the weight of each noted; in the place of a None the batch before it, again."""
        assert self.weigh is not None
        latest, weights = None, self._weights
        for batch in batches:
            if batch is not None:
                latest = batch
                weights.append(self.weigh())
            elif latest is None:
                raise TypeError(
                    "The loader gave None instead of its first batch. On several ranks each needs a batch to take part "
                    "in the step of the others. Look at its collate_fn."
                )
            else:
                _say_that_none_is_skipped()
                weights.append((0.0, self.weigh()[0]))
            yield latest

    def _weighed(self, batch: Any) -> Any:
        self.weight, self.lack = self._weights.popleft()
        if not self.weight and self.uncounted is not None:
            self.uncounted.begin()
        return batch if self.transfer is None else self.transfer(batch)


def _is_batch(batch: Any) -> bool:
    if batch is None:
        _say_that_none_is_skipped()
    return batch is not None


def _say_that_none_is_skipped() -> None:
    rank_zero_warn(
        "The loader gave None instead of a batch; it is skipped. Look at its collate_fn.", PossibleUserWarning
    )


class StepIterator:
    """What a step that takes a ``dataloader_iter`` gets: an iterator over ``(batch, batch_idx, dataloader_idx)``.

    The loop advances once a step; a step that draws nothing leaves the batch for the next one. A sized loader is not
    asked for a batch before the step draws it.
    """

    def __init__(self, fetch: Fetch, dataloader_idx: int = 0) -> None:
        self.fetch, self.dataloader_idx = fetch, dataloader_idx
        self._batches = iter(fetch)
        self.n_drawn = fetch.count  # of a resumed pass: not from 0
        self._ahead: Any = _END if fetch.is_sized else next(self._batches, _END)
        self._ahead_is_last = fetch.is_last
        fetch.n_held = int(self._ahead is not _END)
        self.is_last = not fetch.n_batches if fetch.is_sized else self._ahead is _END

    @property
    def has_more(self) -> bool:
        """Whether there is a batch to draw."""
        return not self.is_last

    @property
    def draws_last(self) -> bool:
        """Whether the next batch is the last one."""
        return self.n_drawn + 1 >= self.fetch.n_batches if self.fetch.is_sized else self._ahead_is_last

    def __iter__(self) -> StepIterator:
        return self

    def __next__(self) -> tuple[Any, int, int]:
        if self.is_last:
            raise StopIteration
        batch = self._draw()
        self.n_drawn += 1
        return batch, self.n_drawn - 1, self.dataloader_idx

    def _draw(self) -> Any:
        """The next batch, and whether it is the last; an unsized loader is asked for the one after it to know."""
        if self.fetch.is_sized:
            batch = next(self._batches, _END)
            self.is_last = self.fetch.is_last or batch is _END
            if batch is _END:
                raise StopIteration(
                    f"The loader ended after {self.n_drawn} batches, and its length says {self.fetch.n_batches}. "
                    f"Correct its __len__, or limit its batches to {self.n_drawn} by the Trainer's argument."
                )
            return batch
        batch, self.is_last = self._ahead, self._ahead_is_last
        self._ahead = _END if self.is_last else next(self._batches, _END)
        self._ahead_is_last = self.fetch.is_last
        self.fetch.n_held = int(self._ahead is not _END)
        return batch


def iterator_steps(fetch: Fetch, dataloader_idx: int = 0) -> Iterator[StepIterator]:
    """Hand the iterator itself to each step, for one that takes a ``dataloader_iter``."""
    iterator, is_last = StepIterator(fetch, dataloader_idx), False
    while iterator.has_more:
        fetch.is_last = is_last = iterator.draws_last
        yield iterator
    fetch.is_last = is_last  # as the last step was told, which may have drawn more batches than one


def build_transfer(
    log: MetricLog,
    *,
    device: Any,
    cast: Callable[[Any], Any] | None,
    before: Callable[[Any, int], Any] | None,
    move: Callable[[Any, Any, int], Any] | None,
    after: Callable[[Any, int], Any] | None,
    default_move: Callable[[Any], Any],
    dataloader_idx: int = 0,
) -> Callable[[Any], Any]:
    """One function that brings a batch to the device, made of the parts that someone overrides.

    Args:
        log: The `MetricLog`; its scope is closed while user code runs, for nothing can be logged here.
        device: Where to.
        cast: The precision's conversion of floating-point tensors; None for none.
        before, move, after: Overridden transfer hooks; None where they are not.
        default_move: Moves a batch to `device` where `move` is None.
        dataloader_idx: Handed to the hooks.
    """
    if cast is None and before is None and move is None and after is None:
        return default_move

    def transfer(batch: Any) -> Any:
        log.scope = None
        if cast is not None:
            batch = cast(batch)
        if before is not None:
            batch = before(batch, dataloader_idx)
        batch = default_move(batch) if move is None else move(batch, device, dataloader_idx)
        if after is not None:
            batch = after(batch, dataloader_idx)
        if batch is None:
            own = [getattr(hook, "__name__", "a transfer hook") for hook in (before, move, after) if hook is not None]
            raise TypeError(f"{' or '.join(own)} returned None instead of the batch. Add `return batch`.")
        return batch

    return transfer
