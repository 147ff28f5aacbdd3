"""Which samples go to which data rank: for every number of samples and ranks, and every batch size."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, SequentialSampler

from fulgur.data.position import PlacedLoader
from fulgur.data.shard import Shard, is_sharded, take_share, weight_of

CASES = list(itertools.product((1, 2, 3, 4), (1, 2, 3, 4, 5)))
"""Ranks and batch size."""


class Unbatched:
    """A dataset of its own indices."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: Any) -> Any:
        return index


def steps(loader: Any, size: int, **options: Any) -> list[list[tuple[list[int], float]]]:
    """By rank the batches of one pass, each with its weight."""
    result = []
    for rank in range(size):
        placed = PlacedLoader(loader, Shard(rank, size), **options)
        own = []
        for batch in placed:
            weight = weight_of([placed.shares], rank) if placed.shares else 1.0
            own.append((batch.tolist() if isinstance(batch, torch.Tensor) else list(batch), weight))
        assert len(own) == len(placed)
        result.append(own)
    return result


@pytest.mark.parametrize(("size", "batch_size"), CASES)
def test_training_sees_each_sample_once_in_the_steps_of_one_rank(size: int, batch_size: int) -> None:
    for n in range(1, 51):
        loader: Any = DataLoader(range(n), batch_size=batch_size)  # type: ignore[arg-type]
        by_rank = steps(loader, size)
        whole = DataLoader(range(n), batch_size=batch_size * size)  # type: ignore[arg-type,var-annotated]
        assert {len(own) for own in by_rank} == {len(whole)}
        for step, expected in zip(zip(*by_rank, strict=True), whole, strict=True):
            assert sorted(i for samples, weight in step if weight for i in samples) == expected.tolist()
            counts = [len(samples) for samples, weight in step if weight]
            assert max(counts) - min(counts) <= 1
            # The mean over ranks of weighted means is the mean over samples.
            mean = sum(weight * sum(samples) / len(samples) for samples, weight in step) / size
            assert mean == pytest.approx(expected.double().mean().item(), abs=1e-12)


@pytest.mark.parametrize(("size", "batch_size"), CASES)
def test_drop_last_leaves_out_a_step_that_is_not_full(size: int, batch_size: int) -> None:
    for n in range(size * batch_size, 51):
        loader: Any = DataLoader(range(n), batch_size=batch_size, drop_last=True)  # type: ignore[arg-type]
        by_rank = steps(loader, size)
        assert {len(own) for own in by_rank} == {n // (size * batch_size)}
        assert all(weight == 1.0 and len(samples) == batch_size for own in by_rank for samples, weight in own)
        seen = sorted(i for own in by_rank for samples, _ in own for i in samples)
        assert seen == list(range(n // (size * batch_size) * size * batch_size))


@pytest.mark.parametrize(("size", "batch_size"), CASES)
def test_evaluation_takes_the_batches_of_the_loader_as_they_are(size: int, batch_size: int) -> None:
    for n in range(1, 51):
        loader: Any = DataLoader(range(n), batch_size=batch_size)  # type: ignore[arg-type]
        by_rank = steps(loader, size, is_training=False, is_whole=True)
        batches = [[samples for samples, _ in own] for own in by_rank]
        interleaved = [b for step in itertools.zip_longest(*batches) for b in step if b is not None]
        assert interleaved == [batch.tolist() for batch in loader]


@pytest.mark.parametrize(("size", "batch_size"), CASES)
def test_evaluation_where_all_ranks_need_as_many_batches(size: int, batch_size: int) -> None:
    for n in range(1, 51):
        loader: Any = DataLoader(range(n), batch_size=batch_size)  # type: ignore[arg-type]
        by_rank = steps(loader, size, is_training=False)
        assert {len(own) for own in by_rank} == {-(-n // (size * batch_size))}
        assert sorted(i for own in by_rank for samples, weight in own if weight for i in samples) == list(range(n))


def test_full_steps_weigh_exactly_one() -> None:
    for size, n in itertools.product(range(1, 9), range(1, 60)):
        assert weight_of([(n,) * size], size - 1) == 1.0


def test_batches_of_a_batch_sampler_stay_whole_in_full_steps() -> None:
    class ByLength:
        def __iter__(self) -> Iterator[list[int]]:
            return iter([[0, 1, 2], [3], [4, 5], [6, 7, 8, 9], [10, 11, 12]])

        def __len__(self) -> int:
            return 5

    loader: Any = DataLoader(range(13), batch_sampler=ByLength())  # type: ignore[arg-type]
    first, second = steps(loader, 2)
    assert first == [([0, 1, 2], 1.5), ([4, 5], 2 / 3), ([10, 11], 4 / 3)]
    assert second == [([3], 0.5), ([6, 7, 8, 9], 4 / 3), ([12], 2 / 3)]


def test_items_of_a_loader_without_batches_are_dealt_out() -> None:
    first, second = steps(DataLoader([[5], [6], [7]], batch_size=None), 2)  # type: ignore[arg-type]
    assert first == [([5], 1.0), ([7], 2.0)]
    assert second == [([6], 1.0), ([7], 0.0)]


def test_a_sampler_of_batches_without_batch_size_is_divided_too() -> None:
    batches = BatchSampler(SequentialSampler(range(7)), 2, drop_last=False)
    loader: Any = DataLoader(Unbatched(7), sampler=batches, batch_size=None)  # type: ignore[arg-type]
    by_rank = steps(loader, 3)
    assert [[samples for samples, _ in own] for own in by_rank] == [[[0, 1], [6]], [[2, 3], [6]], [[4, 5], [6]]]
    assert [[weight for _, weight in own] for own in by_rank] == [[1.0, 3.0], [1.0, 0.0], [1.0, 0.0]]


def test_ranks_without_a_sample_get_a_copy_that_weighs_nothing() -> None:
    parts = [take_share([[7]], rank, 3) for rank in range(3)]
    assert [part.samples for part in parts] == [[7], [7], [7]]
    assert [weight_of([part.shares], rank) for rank, part in enumerate(parts)] == [3.0, 0.0, 0.0]


def test_a_copy_in_one_of_two_loaders_counts_with_the_other() -> None:
    full, short = (4, 4), (1, 0)
    assert [weight_of([full, short], rank) for rank in range(2)] == [1.0, 1.0]
    assert [weight_of([(1, 0), (1, 0)], rank) for rank in range(2)] == [2.0, 0.0]


@pytest.mark.parametrize("skip", range(4))
@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_pass_goes_on_after_any_step_on_any_number_of_ranks(size: int, skip: int) -> None:
    def placed(rank: int) -> PlacedLoader:
        loader = DataLoader(range(30), batch_size=8 // size, shuffle=True)  # type: ignore[arg-type,var-annotated]
        return PlacedLoader(loader, Shard(rank, size))

    torch.manual_seed(3)
    of_one = PlacedLoader(DataLoader(range(30), batch_size=8, shuffle=True))  # type: ignore[arg-type]
    whole = []
    for step, batch in enumerate(of_one, start=1):
        whole.append(batch.tolist())
        if step == skip:
            state = of_one.state_dict()
    if skip == 0:
        return
    rest: list[list[int]] = [[] for _ in whole[skip:]]
    for rank in range(size):
        own = placed(rank)
        own.resume(state, in_pass=True)
        for step, batch in enumerate(own):
            rest[step] += batch.tolist() if weight_of([own.shares or (1,)], rank if own.shares else 0) else []
    assert [sorted(step) for step in rest] == [sorted(step) for step in whole[skip:]]


def test_a_distributed_sampler_is_known_as_one() -> None:
    sampler: Any = DistributedSampler(range(4), num_replicas=2, rank=0)  # type: ignore[arg-type]
    assert is_sharded(DataLoader(range(4), sampler=sampler), 2)  # type: ignore[arg-type]
    assert is_sharded(DataLoader(range(4), batch_sampler=BatchSampler(sampler, 2, False)), 2)  # type: ignore[arg-type]
    assert not is_sharded(DataLoader(range(4)), 2)  # type: ignore[arg-type]
