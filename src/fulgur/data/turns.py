"""Loaders that cannot be split by index: every rank reads all batches and keeps its own."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any

from torch import Tensor

from fulgur.data.shard import Shard
from fulgur.errors import MisconfigurationException


class Turns:
    """Every ``size``-th batch of a loader that is the same on all ranks.

    Args:
        shard: Whose batches.
        is_whole: Whether a rank without a batch in the last step just ends; if not, it gets a copy that counts nowhere.
        drops_last: Whether a last step without a batch for every rank is left out.

    Attributes:
        shares: Of the steps handed out and not taken yet: how many samples each rank has.
    """

    def __init__(self, shard: Shard, *, is_whole: bool, drops_last: bool) -> None:
        self.shard, self.is_whole, self.drops_last = shard, is_whole, drops_last
        self.shares: deque[tuple[int, ...]] = deque()

    def read_step(self, batches: Iterator[Any]) -> list[Any]:
        """One batch for each rank; fewer where the loader ends. A None in the place of a batch is not one."""
        return [*islice(filter(_is_batch, batches), self.shard.size)]

    def take(
        self, batches: Iterator[Any], first: list[Any], lend: Callable[[], AbstractContextManager[Any]]
    ) -> Iterator[Any]:
        """This rank's batch of `first` and of every step after it, which are read within `lend`."""
        rank, size = self.shard.rank, self.shard.size
        step = first
        self.shares.clear()
        while step:
            is_full = len(step) == size
            if not is_full and (self.drops_last or (self.is_whole and rank >= len(step))):
                return
            self.shares.append((*map(_count_samples, step), *[0] * (size - len(step))))
            yield step[rank] if rank < len(step) else step[-1]
            with lend():
                step = self.read_step(batches)

    def check_same(self, first: list[Any], name: str) -> None:
        """Refuse a loader that gives the ranks different batches: it splits them itself. All ranks must reach this.

        Raises:
            MisconfigurationException: The first batches differ between ranks.
        """
        prints = self.shard.gather(_fingerprint(first))  # all ranks must reach this
        if len(set(prints)) == 1:
            return
        other = next(rank for rank, found in enumerate(prints) if found != prints[0])
        raise MisconfigurationException(
            f"The first batches of {name} on rank {other} are not those on rank 0, so that taking every "
            f"{self.shard.size}th of them on each rank would lose samples. If it gives each rank its own samples, pass "
            "Trainer(use_distributed_sampler=False). If it shuffles, let it draw from a generator that is seeded alike "
            "on all ranks."
        )


def _is_batch(batch: Any) -> bool:
    return batch is not None


def _count_samples(batch: Any) -> int:
    """Size of the first tensor's first dimension; 1 where there is none."""
    if isinstance(batch, Tensor):
        return batch.size(0) if batch.dim() else 1
    items = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (list, tuple)) else ()
    first = next(iter(items), None)
    return 1 if first is None else _count_samples(first)


def _fingerprint(batches: Sequence[Any]) -> str:
    """Equal for equal batches; different for nearly all others."""
    digest = hashlib.blake2b(digest_size=16)
    stack: list[Any] = [*batches]
    while stack:
        item = stack.pop()
        digest.update(type(item).__name__.encode())
        if isinstance(item, Tensor):
            flat = item.detach().cpu().reshape(-1)  # waits for the device
            digest.update(repr((tuple(item.shape), item.dtype, flat[:4096].tolist())).encode())
        elif isinstance(item, Mapping):
            stack += [*item.keys(), *item.values()]
        elif isinstance(item, (list, tuple)):
            stack += item
        elif isinstance(item, (str, bytes, int, float, bool)):
            digest.update(repr(item).encode())
    return digest.hexdigest()
