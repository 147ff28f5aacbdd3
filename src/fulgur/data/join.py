"""Ranks whose loaders end at different batches, and how the short ones stay with the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import chain, count, islice
from typing import Any, Literal

import torch

from fulgur.data.loaders import sized_length
from fulgur.data.shard import Shard
from fulgur.errors import MisconfigurationException

Uneven = Literal["join", "error"]

_numbers = count()
"""Tells the loaders of a process apart, in the same order on all ranks."""


class JoinedLoader:
    """The batches of this rank's loader, and then its last one again and again, until the loaders of all ranks end.

    A rank that had none gets one of another rank. What is yielded again counts nowhere: `is_over` says so.

    Lengths are exchanged once a pass. A rank whose loader has no length says so through the store when it ends; the
    others look there only when they have ended themselves, before a step that could be one too many. At that time all
    ranks have ended the step before: its reduction needed all of them.

    Args:
        loader: Any iterable.
        shard: The ranks.
        at_most: Batches of this rank's loader at most.
        uneven: "join", or "error" where different lengths are one.
        window: Steps from one reduction to the next: without lengths, all ranks end at the end of such a window.

    Attributes:
        is_over: Whether what was yielded last is a copy.
        n_present: How many ranks have a batch of their own in the step yielded last; None where that is not known.
        n_begun: Steps of the pass that lie behind when the next iteration begins; set on resume.
        following: The batch that was read ahead where there is no length; set on resume too. None if there is none.
    """

    def __init__(
        self,
        loader: Any,
        shard: Shard,
        *,
        at_most: float = math.inf,
        uneven: Uneven = "join",
        window: Callable[[], int] = lambda: 1,
    ) -> None:
        self.loader, self.shard, self.at_most, self.uneven, self.window = loader, shard, at_most, uneven, window
        self.is_over = False
        self.n_present: int | None = None
        self.n_begun = 0
        self.following: Any = None
        self._number = next(_numbers)
        self._n_passes = 0

    def __iter__(self) -> Iterator[Any]:
        n_begun, self.n_begun = self.n_begun, 0
        self._n_passes += 1
        self.is_over = False
        length = sized_length(self.loader)
        length = length if math.isinf(length) else min(length, self.at_most)
        lengths = self.shard.gather(length)  # all ranks must reach this
        if self.uneven == "error" and len(set(lengths)) > 1:
            raise MisconfigurationException(
                f"The training loaders of the ranks have {', '.join(map(_shown, lengths))} batches, by rank, and "
                "uneven_loaders='error'. Give them equal lengths, or pass Trainer(uneven_loaders='join')."
            )
        items = self._own_items(length - n_begun)
        self.n_present = None
        if any(map(math.isinf, lengths)):
            items, spare = self._peeked(items)
            return self._until_all_end(items, spare, n_begun)
        spare = None
        if min(lengths) <= n_begun < max(lengths):
            items, spare = self._peeked(items)
        return self._until([int(n) - n_begun for n in lengths], items, spare)

    def _own_items(self, n_left: float) -> Iterator[Any]:
        items = iter(self.loader)
        if self.following is not None:
            items, self.following = chain((self.following,), items), None
        # Where nothing is cut the loader is asked for its end, as in a hand-written loop.
        is_cut = self.at_most < sized_length(self.loader) < math.inf
        return islice(items, max(int(n_left), 0)) if is_cut else items

    def _peeked(self, items: Iterator[Any]) -> tuple[Iterator[Any], Any]:
        """`items`, and a batch of another rank if there are none; None if no rank has any."""
        first = next(items, None)
        has_one = self.shard.gather(first is not None)  # all ranks must reach this
        if all(has_one) or not any(has_one):
            return (chain((first,), items) if first is not None else iter(())), None
        donor = has_one.index(True)
        spare = self.shard.gather(first if self.shard.rank == donor else None)[donor]  # all ranks must reach this
        return (chain((first,), items) if first is not None else iter(())), spare

    def _until(self, lengths: list[int], items: Iterator[Any], latest: Any) -> Iterator[Any]:
        for n in range(max(lengths)):
            if not self.is_over:
                batch = next(items, None)
                self.is_over = batch is None
                latest = latest if self.is_over else batch
            self.n_present = sum(n < length for length in lengths)
            yield latest
        if not self.is_over:
            next(items, None)

    def _until_all_end(self, items: Iterator[Any], latest: Any, n: int) -> Iterator[Any]:
        """Steps until no rank has a batch; `n` counts those of the pass."""
        self.following = next(items, None)
        if self.following is None:
            if latest is None:  # on any rank
                return
            self._say_end(n)
        while True:
            n += 1
            if self.following is not None:
                latest, self.following = self.following, next(items, None)
                if self.following is None:
                    self._say_end(n)  # order matters: before the step whose end lets the others look
            elif (n - 1) % self.window() == 0 and not self._goes_on(n - 1):
                return
            else:
                self.is_over = True
            yield latest

    def _say_end(self, n: int) -> None:
        self.shard.store.add(self._key(self.shard.rank), n + 1)  # unlike `set`, comes back when it is there

    def _goes_on(self, n: int) -> bool:
        """Whether another rank has more than `n` batches. All have finished step `n`."""
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()  # waits for the device: for the others, whose reduction it is in
        store, own = self.shard.store, self.shard.rank
        for rank in range(self.shard.size):
            key = self._key(rank)
            if rank != own and (not store.check([key]) or int(store.get(key)) - 1 > n):
                if self.uneven == "error":
                    raise MisconfigurationException(
                        f"The training loader of rank {own} ended after {n} batches, and that of rank {rank} goes on; "
                        "uneven_loaders='error'. Give them equal lengths, or pass Trainer(uneven_loaders='join')."
                    )
                return True
        return False

    def _key(self, rank: int) -> str:
        return f"ended/{self._number}/{self._n_passes}/{rank}"


def _shown(length: float) -> str:
    return "unknown numbers of" if math.isinf(length) else str(int(length))
