"""Loaders of a run on several ranks: who takes what of them, and how many batches that makes."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

from fulgur.data.join import JoinedLoader, Uneven
from fulgur.data.loaders import resolve_limit, sized_length
from fulgur.data.position import PlacedLoader, is_mapped
from fulgur.data.shard import Shard, is_sharded, weight_of
from fulgur.data.workers import seed_workers
from fulgur.rank import rank_zero_info

if TYPE_CHECKING:
    from fulgur.loops.feed import Feed


def join_training(feed: Feed, shard: Shard, *, limit: tuple[int | float, str], uneven: Uneven) -> float:
    """Let the training loaders have as many batches on all ranks. All ranks must reach this.

    Args:
        feed: With its loaders, which are changed in place.
        shard: The ranks.
        limit: Most batches of a rank, or the fraction of its own, and the Trainer's argument behind it.
        uneven: What to do where lengths differ.

    Returns:
        Batches of the loader that has most of them.
    """
    _say_who_reads_all(feed.placed)
    feed.weighs = [partial(_weigh, feed, shard.rank)]
    length = sized_length(feed.loaders[0])
    if all(loader.shard.size > 1 for loader in feed.placed):
        feed.looks_ahead = not all(is_mapped(loader.loader) for loader in feed.placed)
        return length
    lengths = shard.gather(length)  # all ranks must reach this
    limits = [resolve_limit(n, limit[0], name=limit[1]) for n in lengths]
    feed.joined = [JoinedLoader(feed.loaders[0], shard, at_most=limits[shard.rank], uneven=uneven)]
    feed.loaders = [feed.joined[0]]
    feed.n_batches = [max(limits)]
    feed.is_sized = [
        True
    ]  # it is never asked for a batch before its step: that would be too early to know of the others
    return float(max(lengths))


def split_evaluation(
    feed: Feed, shard: Shard, *, is_split: bool, is_collective: bool, keeps_all: bool
) -> tuple[list[float], list[float]]:
    """Give every rank its part of the loaders of an evaluation. All ranks must reach this.

    Whole batches, if that leaves no rank without one: ranks may have one less than others then, and need not wait for
    them. Loaders with fewer batches than ranks are divided by samples, and so is the last step where all ranks must
    have as many batches.

    Args:
        feed: With its loaders, which are changed in place.
        shard: The ranks.
        is_split: Whether to split at all.
        is_collective: Whether all ranks must have as many batches.
        keeps_all: Whether batches must stay whole wherever they can.

    Returns:
        For each loader the number of batches of this rank, and of the one that has most.
    """
    feed.weighs = [None] * len(feed.loaders)
    for index, loader in enumerate(feed.loaders):
        is_parted = is_split and not is_sharded(loader, shard.size)
        seed_workers(loader, global_rank=0 if is_parted else shard.rank)  # ranks that read the same need the same seeds
        if is_parted:
            has_few = not keeps_all and is_mapped(loader) and sized_length(loader) < shard.size
            is_whole = not (is_collective or has_few)
            placed = PlacedLoader(loader, shard, is_training=False, is_whole=is_whole)
            feed.placed.append(placed)
            feed.loaders[index] = placed
            feed.weighs[index] = None if is_whole else partial(_weigh_one, placed, shard.rank)
        elif is_collective:
            joined = JoinedLoader(loader, shard)
            feed.joined.append(joined)
            feed.loaders[index] = joined
            feed.weighs[index] = partial(_weigh_joined, joined)
    _say_who_reads_all(feed.placed)
    own = [_own_length(loader) for loader in feed.loaders]
    if len(feed.placed) == len(feed.loaders):
        return own, [sized_steps(loader) for loader in feed.placed]
    gathered = shard.gather(own)  # all ranks must reach this
    longest = [max(lengths) for lengths in zip(*gathered, strict=True)]
    is_joined = [isinstance(loader, JoinedLoader) for loader in feed.loaders]
    return [most if joins else n for n, most, joins in zip(own, longest, is_joined, strict=True)], longest


def sized_steps(loader: PlacedLoader) -> float:
    """Batches of the rank that gets most of `loader`; ``inf`` if unknown."""
    return math.inf if math.isinf(sized_length(loader)) else loader.n_steps


def _own_length(loader: Any) -> float:
    return sized_length(loader.loader if isinstance(loader, JoinedLoader) else loader)


def _weigh(feed: Feed, rank: int) -> tuple[float, float]:
    shares = [loader.shares for loader in feed.placed if loader.shares]
    weight = weight_of(shares, rank) if shares else 1.0
    if not feed.joined:
        return weight, 0.0
    factor, lack = _weigh_joined(feed.joined[0])
    return weight * factor, lack


def _weigh_one(loader: PlacedLoader, rank: int) -> tuple[float, float]:
    return weight_of([loader.shares], rank), 0.0


def _weigh_joined(loader: JoinedLoader) -> tuple[float, float]:
    """The ranks that have a batch share the weight of those that have none, where it is known which they are."""
    if loader.n_present is None:
        return (0.0, 1.0) if loader.is_over else (1.0, 0.0)
    return (0.0 if loader.is_over else loader.shard.size / loader.n_present), 0.0


def _say_who_reads_all(loaders: list[PlacedLoader]) -> None:
    for loader in loaders:
        if loader.reads_all:
            rank_zero_info(
                f"Each of {loader.shard.size} ranks reads all batches of {loader.described} and keeps its own: they "
                "cannot be told apart before they are read. To read only what is kept, let the dataset give every rank "
                "and worker other samples, and pass Trainer(use_distributed_sampler=False)."
            )
