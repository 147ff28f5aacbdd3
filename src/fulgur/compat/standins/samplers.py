"""Samplers that give each rank samples of its own and repeat none, so that ranks may have different numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DistributedSampler

from fulgur.fabric.loaders import DistributedSamplerWrapper


class UnrepeatedDistributedSampler(DistributedSampler[Any]):
    """A `DistributedSampler` that adds no samples to make ranks even.

    Args:
        *args, **kwargs: As for `DistributedSampler`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.total_size = len(self.dataset)  # type: ignore[arg-type]
        self.num_samples = len(range(self.rank, self.total_size, self.num_replicas))

    def __iter__(self) -> Iterator[int]:
        return iter(self._order()[self.rank : self.total_size : self.num_replicas])

    def _order(self) -> list[int]:
        if not self.shuffle:
            return list(range(self.total_size))
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order: list[int] = torch.randperm(self.total_size, generator=generator).tolist()
        return order


class UnrepeatedDistributedSamplerWrapper(DistributedSamplerWrapper, UnrepeatedDistributedSampler):
    """What another sampler yields, each on one rank, with none added to make ranks even.

    Args:
        sampler: A sampler with a length, or a batch sampler.
        *args, **kwargs: As for `DistributedSampler`, from `num_replicas` on.
    """
