"""Samplers with a place for every batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import (
    BatchSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from fulgur.data.shard import Shard, count_own, count_steps, take_share, take_whole

if TYPE_CHECKING:
    from fulgur.data.seeded import PlacedIndices

_END = object()
_WHOLE = Shard()


class PlacedBatches:
    """The batch sampler of a loader (or its sampler, where it does not batch), with a place for every batch.

    Args:
        batches: What yields lists of indices, or single indices.
        is_batched: Which of the two.
        is_tagged: Whether indices carry their places to the dataset.
        shard: Whose part to yield.
        is_whole: Whether ranks take whole batches only, so that some may get one less; if not, a last step without a
            batch for every rank is divided.
        drops_last: Whether such a step is left out.

    Attributes:
        lend: Within it, the sampler is asked for more, where it may still draw from the global generators.
        shares: Of the steps handed out and not taken yet: how many samples each rank has. With several ranks only.
        recorded: Where the indices handed out are noted, if somebody asks for them.
    """

    def __init__(
        self,
        batches: Any,
        *,
        is_batched: bool,
        is_tagged: bool,
        shard: Shard = _WHOLE,
        is_whole: bool = False,
        drops_last: bool = False,
    ) -> None:
        self.batches, self.is_batched, self.is_tagged = batches, is_batched, is_tagged
        self.shard, self.is_whole, self.drops_last = shard, is_whole, drops_last
        self.key, self.skip, self.is_empty = b"", 0, False
        self.on_start: Callable[[bytes], None] | None = None
        self.lend: Callable[[], AbstractContextManager[Any]] = nullcontext
        self.shares: deque[tuple[int, ...]] = deque()
        self.recorded: list[list[Any]] | None = None
        if is_tagged:
            from fulgur.data.seeded import PlacedIndices

            self._indices = PlacedIndices
        self._head: tuple[Iterator[Any], Any, int] | None = None
        self._is_primed = False

    def begin(
        self, key: bytes, *, skip: int, on_start: Callable[[bytes], None] | None = None, is_empty: bool = False
    ) -> None:
        """Say what the next pass is.

        Args:
            key: Goes into the seeds of its samples.
            skip: Batches to leave out; with several ranks, of each.
            on_start: Called with the key when the sampler is about to draw its order.
            is_empty: Let the pass have no batch at all.
        """
        self.key, self.skip, self.on_start, self.is_empty = key, skip, on_start, is_empty
        self._is_primed = False
        self.shares.clear()

    def prime(self) -> None:
        """Run the sampler to the position now, while the generators are as they were when the pass began."""
        if not self._is_primed:
            self._head, self._is_primed = self._advanced(), True

    def __len__(self) -> int:
        n_batches, shard = len(self.batches), self.shard
        if self.is_whole:
            return count_own(n_batches, shard.rank, shard.size)
        return count_steps(n_batches, shard.size, drops_last=self.drops_last) if shard.size > 1 else n_batches

    @property
    def n_steps(self) -> int:
        """The most batches that any rank gets."""
        return count_own(len(self.batches), 0, self.shard.size) if self.is_whole else len(self)

    def __iter__(self) -> Iterator[Any]:
        if self.shard.size > 1:
            return self._parts()
        # Without tags a batch costs no Python call of ours. Both draw nothing before the first batch is asked for.
        return self._tagged_batches() if self.is_tagged else chain.from_iterable(self._bare_parts())

    def _take_head(self) -> tuple[Iterator[Any], Any, int]:
        self.prime()
        assert self._head is not None
        head, self._head = self._head, None
        return head

    def _bare_parts(self) -> Iterator[Iterable[Any]]:
        iterator, first, _ = self._take_head()
        if first is not _END:
            yield (first,)
            yield iterator

    def _tagged_batches(self) -> Iterator[Any]:
        iterator, indices, place = self._take_head()
        while indices is not _END:
            yield self._placed(indices, place)
            place += len(indices) if self.is_batched else 1
            indices = next(iterator, _END)

    def _parts(self) -> Iterator[Any]:
        """This rank's part of every step."""
        iterator, first, place = self._take_head()
        rank, size = self.shard.rank, self.shard.size
        group = [] if first is _END else [first, *self._next(iterator, size - 1)]
        while group:
            is_full = len(group) == size and not self._is_short(group[-1])
            if not is_full and self.drops_last:
                return
            part = take_whole(group, rank) if is_full or self.is_whole else take_share(group, rank, size)
            if part is None:
                return
            self.shares.append(part.shares)
            if self.recorded is not None:
                self.recorded.append(list(part.samples) if self.is_batched else [part.samples])
            # Without batches, items are counted: what lies in one is drawn as a whole.
            offset, n_places = (part.offset, sum(part.shares)) if self.is_batched else (rank, size)
            yield self._placed(part.samples, place + offset) if self.is_tagged else part.samples
            place += n_places
            group = self._next(iterator, size)

    def _next(self, iterator: Iterator[Any], n: int) -> list[Any]:
        with self.lend():
            return [*islice(iterator, n)]

    def _is_short(self, batch: Any) -> bool:
        return type(self.batches) is BatchSampler and len(batch) < self.batches.batch_size

    def _placed(self, indices: Any, place: int) -> PlacedIndices:
        return self._indices(indices if self.is_batched else [indices], self.key, place, self.is_batched)

    def _advanced(self) -> tuple[Iterator[Any], Any, int]:
        """The sampler's iterator at the position, its next item, and the place of that."""
        if self.on_start is not None:
            self.on_start(self.key)
        n_skipped = self.skip * self.shard.size
        iterator, place = _skip(() if self.is_empty else self.batches, n_skipped, is_batched=self.is_batched)
        return iterator, next(iterator, _END), place


# ------------------------------------------------------------------------------------------------------- samplers


def _skip(batches: Any, n: int, *, is_batched: bool) -> tuple[Iterator[Any], int]:
    """An iterator over `batches` with `n` of them behind it, and how many samples that were.

    torch's own samplers are not stepped through: their order is one list, which is cut.
    """
    if n == 0:
        return iter(batches), 0
    if is_batched and type(batches) is BatchSampler:
        n_samples = n * batches.batch_size
        cut = _Cut(batches.sampler, n_samples)
        return iter(BatchSampler(cut, batches.batch_size, batches.drop_last)), n_samples
    if not is_batched:
        return iter(_Cut(batches, n)), n
    iterator, n_samples = iter(batches), 0
    for indices in islice(iterator, n):
        n_samples += len(indices)
    return iterator, n_samples


class _Cut:
    """A sampler without its first `n` indices."""

    def __init__(self, sampler: Any, n: int) -> None:
        self.sampler, self.n = sampler, n

    def __iter__(self) -> Iterator[int]:
        sampler, n = self.sampler, self.n
        if type(sampler) is SequentialSampler:
            return iter(range(n, len(sampler)))
        is_permutation = type(sampler) is RandomSampler and not sampler.replacement
        if is_permutation and sampler.num_samples <= len(sampler.data_source):
            return _rest_of_permutation(sampler, n)
        return islice(iter(sampler), n, None)


def _rest_of_permutation(sampler: RandomSampler, n: int) -> Iterator[int]:
    """What a RandomSampler yields after `n` indices, drawing from its generator exactly as it does itself."""
    size, generator = len(sampler.data_source), sampler.generator
    if generator is None:
        generator = torch.Generator()
        generator.manual_seed(int(torch.empty((), dtype=torch.int64).random_().item()))
    yield from torch.randperm(size, generator=generator)[n : sampler.num_samples].tolist()
    if sampler.num_samples == size:  # it draws the next one before it sees that nothing of it is wanted
        torch.randperm(size, generator=generator)


def draws_at_once(batches: Any) -> bool:
    """Whether `batches` draws from the global generators for its first item only, if ever."""
    sampler = batches.sampler if type(batches) is BatchSampler else batches
    return type(sampler) in (SequentialSampler, RandomSampler, SubsetRandomSampler, WeightedRandomSampler)


def draws_never(batches: Any) -> bool:
    """Whether `batches` has the same order in every pass, and draws nothing for it."""
    return type(batches.sampler if type(batches) is BatchSampler else batches) is SequentialSampler
