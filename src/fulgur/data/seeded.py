"""Datasets whose samples are drawn under seeds made of the pass and of the sample's place in it."""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset, TensorDataset

from fulgur.data.generators import held_generators, seed_generator
from fulgur.rng import is_same_rng, restore_rng, snapshot_rng


class PlacedIndices(list[Any]):
    """Indices of a batch, with the place of the first of them in its pass."""

    def __init__(self, indices: Iterable[Any], key: bytes, place: int, is_batched: bool) -> None:
        super().__init__(indices)
        self.key, self.place, self.is_batched = key, place, is_batched

    def __reduce__(self) -> tuple[Any, ...]:
        return PlacedIndices, (list(self), self.key, self.place, self.is_batched)


class PlacedDataset:
    """A dataset that seeds the generators before each sample. Everything else is the dataset's own.

    Args:
        dataset: Map-style.
        is_lent: Whether the generators are lent: they are the run's own, and are put back after each batch. In a worker
            process they are nobody's.
    """

    def __init__(self, dataset: Any, is_lent: bool = False) -> None:
        self.__dict__.update(_dataset=dataset, _is_lent=is_lent, _generators=None, _draws=False)

    def __getitems__(self, indices: Any) -> Any:
        batched = getattr(self._dataset, "__getitems__", None)
        if batched is None or _takes_one_by_one(self._dataset):

            def draw(is_seeded: bool) -> Any:
                key = indices.key if is_seeded else None
                return [self._sample(index, place, key) for place, index in enumerate(indices, start=indices.place)]
        else:

            def draw(is_seeded: bool) -> Any:
                if is_seeded:
                    self._seed(indices.key, indices.place)
                return batched(list(indices))

        return self._undisturbed(draw) if self._is_lent else draw(True)

    def __getitem__(self, index: Any) -> Any:
        if not isinstance(index, PlacedIndices):
            return self._dataset[index]
        wanted = list(index) if index.is_batched else index[0]

        def draw(is_seeded: bool) -> Any:
            return self._sample(wanted, index.place, index.key if is_seeded else None)

        return self._undisturbed(draw) if self._is_lent else draw(True)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_dataset"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._dataset, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        return PlacedDataset, (self._dataset, self._is_lent)

    def _sample(self, index: Any, place: int, key: bytes | None) -> Any:
        if key is not None:
            self._seed(key, place)
        return self._dataset[index]

    def _undisturbed(self, draw: Callable[[bool], Any]) -> Any:
        """What `draw` gives, with the process's generators as they were afterwards.

        Seeding them for each sample takes longer than drawing most samples, so it is left out until a batch has moved
        one of them. That batch is drawn again.
        """
        before = snapshot_rng(include_cuda=False)
        if not self._draws and not held_generators(self._dataset):
            samples = draw(False)
            if is_same_rng(before, snapshot_rng(include_cuda=False)):
                return samples
            self.__dict__["_draws"] = True
        try:
            return draw(True)
        finally:
            restore_rng(before)

    def _seed(self, key: bytes, place: int) -> None:
        seed = int.from_bytes(hashlib.blake2b(place.to_bytes(8, "little"), key=key, digest_size=8).digest(), "little")
        # The global function would also note a seed for every CUDA device, each time.
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        numpy = sys.modules.get("numpy")
        if numpy is not None:
            numpy.random.seed(seed & 0xFFFFFFFF)
        if self._generators is None:
            self.__dict__["_generators"] = held_generators(self._dataset)
        for generator in self._generators:
            seed_generator(generator, seed)


def draws_nothing(dataset: Any) -> bool:
    """Whether `dataset` is known to draw no random number: no code of the user runs for a sample."""
    if type(dataset) is Subset:
        return draws_nothing(dataset.dataset)
    return type(dataset) in (TensorDataset, list, tuple, range) or isinstance(dataset, Tensor)


def _takes_one_by_one(dataset: Any) -> bool:
    """Whether a batch of `dataset` is only a list of its samples, so that each can have a seed of its own."""
    if type(dataset) is Subset:
        return _takes_one_by_one(dataset.dataset)
    return not hasattr(dataset, "__getitems__")
