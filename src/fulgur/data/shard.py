"""Which samples of a loader belong to which data rank.

Every rank runs the whole sampler. `size` consecutive batches of it, one for each rank, make a *step*; so the samples of
a step do not depend on the number of ranks as long as they are together as many. This file is arithmetic: it holds no
loader and starts no collective by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch.utils.data import DistributedSampler


def _given_back(obj: Any) -> Any:
    return obj


def _alone(obj: Any) -> list[Any]:
    return [obj]


@dataclass(frozen=True, slots=True)
class Shard:
    """The place of a process among those that see different data, and how it speaks to them.

    Attributes:
        rank: From 0.
        size: How many there are.
        share: The object of rank 0, on all ranks. All ranks must call it.
        gather: The objects of all ranks, by rank, on all ranks. All ranks must call it.
        store: A store that all ranks read and write, with ``add`` and ``check``; None where there is no other rank.
    """

    rank: int = 0
    size: int = 1
    share: Callable[[Any], Any] = field(default=_given_back, compare=False, repr=False)
    gather: Callable[[Any], list[Any]] = field(default=_alone, compare=False, repr=False)
    store: Any = field(default=None, compare=False, repr=False)


class Part(NamedTuple):
    """What one rank takes of a step.

    Attributes:
        samples: Its batch.
        offset: Samples of the step that lie before it.
        shares: Samples of each rank; 0 for one whose batch is a copy that counts nowhere.
    """

    samples: Any
    offset: int
    shares: tuple[int, ...]


def count_steps(n_batches: int, size: int, *, drops_last: bool) -> int:
    """Steps that `n_batches` of a sampler make, each of `size` batches; the last one may have fewer."""
    return n_batches // size if drops_last else -(-n_batches // size)


def count_own(n_batches: int, rank: int, size: int) -> int:
    """How many of `n_batches` are a rank's if each is taken whole."""
    return len(range(rank, n_batches, size))


def take_whole(group: Sequence[Any], rank: int) -> Part | None:
    """The batch at `rank` in a step, or None if there is none."""
    if rank >= len(group):
        return None
    sizes = tuple(map(_count, group))
    return Part(group[rank], sum(sizes[:rank]), sizes)


def take_share(group: Sequence[Any], rank: int, size: int) -> Part:
    """The share of `rank` in the samples of a step that has no batch for every rank.

    They are divided evenly, and the first ranks get one more. A rank for which none is left gets a copy of one.

    Example:
        >>> [take_share([[0, 1, 2], [3, 4]], rank, 3).samples for rank in range(3)]
        [[0, 1], [2, 3], [4]]
    """
    if not all(isinstance(batch, (list, tuple)) for batch in group):
        return _take_one(group, rank, size)  # what has no parts is not cut
    samples = [sample for batch in group for sample in batch]
    shares = tuple(len(samples) // size + (r < len(samples) % size) for r in range(size))
    offset = sum(shares[:rank])
    if not shares[rank]:
        offset = rank % len(samples)
    return Part(samples[offset : offset + max(shares[rank], 1)], offset, shares)


def _take_one(group: Sequence[Any], rank: int, size: int) -> Part:
    offset = rank if rank < len(group) else rank % len(group)
    return Part(group[offset], offset, tuple(int(r < len(group)) for r in range(size)))


def _count(batch: Any) -> int:
    return len(batch) if isinstance(batch, (list, tuple)) else 1


def weight_of(shares: Sequence[tuple[int, ...]], rank: int) -> float:
    """What a rank's loss counts in the mean over ranks, so that each sample of the step counts the same.

    Exactly 1 where all have as many samples.

    Args:
        shares: Samples of each rank, for every loader that the step takes a batch of. A copy in one of several loaders
            counts as one sample, for it is in the loss with the others.
        rank: Whose weight.
    """
    if len(shares) == 1:
        own = shares[0]
    else:
        own = tuple(sum(max(n, 1) for n in of_rank) if any(of_rank) else 0 for of_rank in zip(*shares, strict=True))
    return len(own) * own[rank] / sum(own)


def is_sharded(loader: Any, size: int) -> bool:
    """Whether `loader` gives every rank other samples by itself: it has a sampler that was made for that."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    samplers = (getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None))
    return any(
        isinstance(sampler, DistributedSampler)
        or (getattr(sampler, "num_replicas", None) == size and hasattr(sampler, "rank"))
        for sampler in samplers
    )
