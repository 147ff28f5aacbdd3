"""Loaders of which each rank sees its own part of the samples."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
)

from fulgur.data.loaders import with_sampler
from fulgur.data.shard import is_sharded
from fulgur.rng import isolate_rng
from fulgur.strategies.strategy import Strategy


def split_over_ranks(loader: DataLoader[Any], strategy: Strategy) -> DataLoader[Any]:
    """`loader` with a `DistributedSampler`, as a loop around DistributedDataParallel has it.

    Each rank draws batches of the loader's own size; where samples do not divide evenly, some come twice.

    Returns:
        A changed copy, or `loader` itself where there is one process, no sampler, or one that was made for ranks.

    Raises:
        MisconfigurationException: A custom batch sampler holds no sampler that could be replaced.
    """
    if not strategy.is_distributed or strategy.data_size == 1 or isinstance(loader.dataset, IterableDataset):
        return loader
    if is_sharded(loader, strategy.data_size):
        return loader
    batch_sampler: Any = loader.batch_sampler
    sampler: Any = getattr(batch_sampler, "sampler", loader.sampler)
    size, rank = strategy.data_size, strategy.data_rank
    seed = int(os.environ.get("PL_GLOBAL_SEED") or 0)
    if type(sampler) in (SequentialSampler, RandomSampler):
        shuffle = isinstance(sampler, RandomSampler)
        return with_sampler(loader, DistributedSampler(loader.dataset, size, rank, shuffle=shuffle, seed=seed))
    return with_sampler(loader, DistributedSamplerWrapper(sampler, size, rank, shuffle=False, seed=seed))


class DistributedSamplerWrapper(DistributedSampler[Any]):
    """Splits what another sampler yields over the ranks.

    The other sampler is run to its end at the beginning of each pass, on every rank, with torch's generator in the same
    state on all of them: that of the seed and the pass. Its draws change no generator of the program.

    Args:
        sampler: A sampler with a length, or a batch sampler.
        *args: For `DistributedSampler`.
        **kwargs: For `DistributedSampler`.
    """

    def __init__(self, sampler: Sampler[Any] | BatchSampler, *args: Any, **kwargs: Any) -> None:
        self._drawn = _Drawn(sampler)
        super().__init__(cast("Dataset[Any]", self._drawn), *args, **kwargs)

    def __iter__(self) -> Iterator[Any]:
        self._drawn.draw(self.seed + self.epoch)
        return map(self._drawn.__getitem__, super().__iter__())


class _Drawn:
    """The indices that a sampler has yielded, as a dataset."""

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler
        self._indices: list[Any] = []

    def draw(self, seed: int) -> None:
        with isolate_rng():
            torch.manual_seed(seed)
            self._indices = list(self.sampler)

    def __getitem__(self, index: int) -> Any:
        return self._indices[index]

    def __len__(self) -> int:
        return len(self.sampler)
