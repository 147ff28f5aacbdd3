from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain
from typing import Any

import pytest
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
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from fulgur.data.combine import CombinedLoader
from fulgur.data.loaders import (
    check_limit,
    check_loaders,
    find_epoch_setters,
    is_shuffled,
    resolve_limit,
    sequential,
    sized_length,
    with_sampler,
    without_drop_last,
)
from fulgur.errors import MisconfigurationException


class Numbers(Dataset[int]):
    def __init__(self, n: int = 10) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, idx: int) -> int:
        return idx


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(10))


class SizedStream(Stream):
    def __len__(self) -> int:
        return 10


class WithoutLength:
    def __len__(self) -> int:
        raise NotImplementedError

    def __iter__(self) -> Iterator[int]:
        return iter(())


class EpochSampler(Sampler[int]):
    def __init__(self) -> None:
        self.epochs: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def __iter__(self) -> Iterator[int]:
        return iter(range(10))

    def __len__(self) -> int:
        return 10


class PairSampler(BatchSampler):
    """A batch sampler whose constructor nobody could guess."""

    def __init__(self, sampler: Any, colour: str) -> None:
        super().__init__(sampler, batch_size=2, drop_last=True)
        self.colour = colour


class OpaqueBatchSampler:
    def __iter__(self) -> Iterator[list[int]]:
        return iter([[3, 1], [2, 0]])

    def __len__(self) -> int:
        return 2


class OwnLoader(DataLoader[Any]):
    """A loader with a constructor of its own."""

    def __init__(self, colour: str) -> None:
        super().__init__(Numbers(), batch_size=4, shuffle=True, collate_fn=list)
        self.colour = colour


def loader(**kwargs: Any) -> DataLoader[Any]:
    return DataLoader(Numbers(), collate_fn=list, **kwargs)


@pytest.mark.parametrize(
    ("source", "length"),
    [
        (loader(batch_size=3), 4),
        ([1, 2, 3], 3),
        (CombinedLoader([range(2), range(3)]), 2),
        (DataLoader(SizedStream(), batch_size=5), 2),
        (DataLoader(Stream()), math.inf),
        (CombinedLoader([range(2), iter([])]), math.inf),
        (WithoutLength(), math.inf),
        (iter([1]), math.inf),
    ],
    ids=lambda value: type(value).__name__,
)
def test_length_is_inf_where_there_is_none(source: Any, length: float) -> None:
    assert sized_length(source) == length


@pytest.mark.parametrize(
    ("n_batches", "limit", "expected"),
    [
        (10, 3, 3),
        (10, 30, 10),
        (10, 1, 1),
        (10, 1.0, 10),
        (10, 0, 0),
        (10, 0.0, 0),
        (10, 0.5, 5),
        (7, 0.5, 3),
        (100, 0.29, 29),
        (10, 2.0, 2),
        (0, 0.5, 0),
        (0, 5, 0),
        (math.inf, 4, 4),
        (math.inf, 4.0, 4),
        (math.inf, 1.0, math.inf),
        (math.inf, 0.0, 0),
    ],
)
def test_limit_counts_or_takes_a_fraction(n_batches: float, limit: float, expected: float) -> None:
    result = resolve_limit(n_batches, limit, name="limit_val_batches")
    assert result == expected
    assert isinstance(result, int) or result == math.inf


@pytest.mark.parametrize("limit", [-1, -0.5, 1.5, math.inf, math.nan, "all", None])
def test_a_limit_that_is_no_number_of_batches_is_refused(limit: Any) -> None:
    with pytest.raises(MisconfigurationException, match=f"limit_test_batches={limit!r} is not a number of batches"):
        check_limit(limit, name="limit_test_batches")


def test_a_fraction_that_leaves_nothing_names_the_least_that_works() -> None:
    with pytest.raises(MisconfigurationException, match=r"limit_train_batches=0.1 of 3 batches.*at least 0.3334"):
        resolve_limit(3, 0.1, name="limit_train_batches")
    assert resolve_limit(3, 0.3334, name="limit_train_batches") == 1


def test_a_fraction_of_an_unsized_loader_is_refused() -> None:
    with pytest.raises(MisconfigurationException, match=r"limit_train_batches=0.5 is a fraction, but the loader has"):
        resolve_limit(math.inf, 0.5, name="limit_train_batches")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (loader(shuffle=True), True),
        (loader(shuffle=False), False),
        (loader(sampler=SubsetRandomSampler([1, 2])), True),
        (loader(sampler=WeightedRandomSampler([0.5] * 10, 10)), True),
        (loader(sampler=EpochSampler()), False),
        (loader(sampler=DistributedSampler(Numbers(), 2, 0, shuffle=True)), True),
        (loader(sampler=DistributedSampler(Numbers(), 2, 0, shuffle=False)), False),
        (loader(batch_sampler=PairSampler(RandomSampler(Numbers()), "red")), True),
        (loader(batch_sampler=OpaqueBatchSampler()), False),
        (loader(batch_size=None, shuffle=True), True),
        (DataLoader(Stream()), False),
        (CombinedLoader([loader(shuffle=False), loader(shuffle=True)]), True),
        ([1, 2], False),
    ],
)
def test_shuffled_loaders_are_recognised(source: Any, expected: bool) -> None:
    assert is_shuffled(source) is expected


def test_sequential_keeps_everything_but_the_order() -> None:
    shuffled = loader(batch_size=4, shuffle=True, drop_last=True, generator=torch.Generator(), timeout=0)
    ordered = sequential(shuffled)
    assert list(ordered) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert ordered.generator is shuffled.generator
    assert (ordered.batch_size, ordered.drop_last, ordered.collate_fn) == (4, True, list)
    assert isinstance(shuffled.sampler, RandomSampler)


def test_sequential_keeps_the_class_and_attributes_of_a_loader() -> None:
    ordered = sequential(OwnLoader("red"))
    assert type(ordered) is OwnLoader
    assert ordered.colour == "red"
    assert next(iter(ordered)) == [0, 1, 2, 3]


def test_sequential_keeps_a_custom_batch_sampler() -> None:
    shuffled = loader(batch_sampler=PairSampler(RandomSampler(Numbers(3)), "red"))
    ordered = sequential(shuffled)
    assert list(ordered) == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert (type(ordered.batch_sampler), ordered.batch_sampler.colour) == (PairSampler, "red")


def test_sequential_orders_a_random_subset_by_its_indices() -> None:
    assert list(sequential(loader(sampler=SubsetRandomSampler([7, 2, 5]), batch_size=2))) == [[7, 2], [5]]


def test_sequential_without_automatic_batching() -> None:
    unbatched = DataLoader(Numbers(3), batch_size=None, shuffle=True)
    assert [int(x) for x in sequential(unbatched)] == [0, 1, 2]


@pytest.mark.parametrize(
    "source",
    [
        loader(batch_size=2),
        loader(batch_sampler=PairSampler(SequentialSampler(Numbers()), "red")),
        DataLoader(Stream()),
        [1, 2],
        CombinedLoader([[1, 2], loader()]),
    ],
)
def test_sequential_gives_back_what_is_in_order(source: Any) -> None:
    assert sequential(source) is source


def test_sequential_reaches_into_combined_loaders() -> None:
    combined = CombinedLoader({"a": loader(shuffle=True, batch_size=5), "b": [[1], [2]]}, "sequential")
    ordered = sequential(combined)
    assert ordered.mode == "sequential"
    assert [batch for batch, _, _ in ordered] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [1], [2]]
    assert is_shuffled(combined)


def test_a_batch_sampler_without_a_sampler_cannot_be_ordered() -> None:
    with pytest.raises(MisconfigurationException, match=r"OpaqueBatchSampler .* no attribute `sampler`"):
        sequential(loader(batch_sampler=OpaqueBatchSampler()))


def test_with_sampler_draws_from_the_new_sampler() -> None:
    assert list(with_sampler(loader(batch_size=2), [5, 6, 7])) == [[5, 6], [7]]


@pytest.mark.parametrize(
    "source",
    [
        loader(batch_size=4, drop_last=True),
        loader(batch_sampler=BatchSampler(SequentialSampler(Numbers()), 4, True)),
        DataLoader(Stream(), batch_size=4, drop_last=True, collate_fn=list),
    ],
)
def test_without_drop_last_keeps_every_sample(source: DataLoader[Any]) -> None:
    assert list(chain.from_iterable(without_drop_last(source))) == list(range(10))
    assert list(chain.from_iterable(source)) == list(range(8))


def test_without_drop_last_reaches_into_combined_loaders() -> None:
    combined = CombinedLoader([loader(batch_size=4, drop_last=True)], "sequential")
    assert len(without_drop_last(combined)) == 3


@pytest.mark.parametrize("source", [loader(batch_size=4), [1, 2], loader(batch_sampler=OpaqueBatchSampler())])
def test_without_drop_last_gives_back_what_drops_nothing(source: Any) -> None:
    assert without_drop_last(source) is source


def test_epoch_setters_are_found_once_each() -> None:
    sampler, inner, nested = EpochSampler(), EpochSampler(), EpochSampler()
    loaders = [
        loader(sampler=sampler),
        loader(batch_sampler=PairSampler(inner, "red")),
        CombinedLoader([loader(sampler=nested), loader(sampler=nested)]),
        loader(),
        [1, 2],
    ]
    setters = find_epoch_setters(loaders)
    for setter in setters:
        setter(3)
    assert len(setters) == 3
    assert sampler.epochs == inner.epochs == nested.epochs == [3]


def test_a_batch_sampler_with_epochs_of_its_own_is_told_too() -> None:
    class EpochPairs(PairSampler):
        epoch = -1

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

    pairs = EpochPairs(SequentialSampler(Numbers()), "red")
    for setter in find_epoch_setters([loader(batch_sampler=pairs)]):
        setter(2)
    assert pairs.epoch == 2


def test_a_dataset_with_set_epoch_is_left_alone() -> None:
    class EpochDataset(Numbers):
        def set_epoch(self, epoch: int) -> None:
            raise AssertionError

    assert find_epoch_setters([DataLoader(EpochDataset())]) == ()


@pytest.mark.parametrize(
    "source",
    [
        loader(),
        [loader(), loader()],
        {"a": loader()},
        [torch.ones(2)],
        iter([1]),
        Stream(),
        CombinedLoader([loader()]),
    ],
)
def test_loaders_of_all_kinds_pass_the_check(source: Any) -> None:
    check_loaders(source, name="train_dataloader()")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (5, r"gave 5 \(int\), which is not iterable. Give a DataLoader"),
        (None, "gave None, which is not iterable. Is a `return` missing"),
        (Numbers(), r"gave a Numbers, which holds samples, not batches. Give DataLoader\(dataset"),
        (torch.ones(8, 2), "gave a Tensor, which holds samples"),
        ("train.csv", "gave a str, which holds samples"),
        (DataLoader, "gave the class DataLoader, not an instance"),
        ([loader(), None], "gave None, which is not iterable"),
        ({"x": torch.ones(2)}, r"gave a dict with the keys \['x'\] .* that is a batch"),
        (CombinedLoader([loader(), 3]), r"gave 3 \(int\)"),
    ],
)
def test_what_is_no_loader_is_refused_with_what_came(source: Any, message: str) -> None:
    with pytest.raises(TypeError, match=rf"^train_dataloader\(\) {message}"):
        check_loaders(source, name="train_dataloader()")


def test_checking_starts_no_loader() -> None:
    class Fragile:
        def __iter__(self) -> Iterator[int]:
            raise AssertionError

    check_loaders([Fragile()], name="train_dataloader()")
