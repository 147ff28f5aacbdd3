from __future__ import annotations

import math
import re
import sys
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader, Dataset, TensorDataset

from fulgur.data.combine import CombinedLoader, flatten_loaders, is_loader_collection, map_loaders
from fulgur.errors import MisconfigurationException

BATCH = torch.zeros(2, 3)


class Stream:
    """An iterable class of a user's own."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.n))


class Squares(Dataset[int]):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, idx: int) -> int:
        return idx * idx


class MovableBatch:
    """A batch class that can be iterated over, as those of graph libraries can."""

    def to(self, device: torch.device) -> MovableBatch:
        return self

    def __iter__(self) -> Iterator[Tensor]:
        return iter([BATCH])


@dataclass
class LoaderPair:
    source: Any
    target: Any


@dataclass
class LoaderObject:
    n: int

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.n))


class NamedPair(NamedTuple):
    source: Any
    target: Any


def loader(n: int = 4, batch_size: int = 2) -> DataLoader[Any]:
    return DataLoader(range(n), batch_size=batch_size)  # type: ignore[arg-type]


def batches(combined: CombinedLoader) -> list[Any]:
    return [batch for batch, _, _ in combined]


@pytest.mark.parametrize(
    "source",
    [
        [loader(), loader()],
        (loader(), loader()),
        {"a": loader(), "b": loader()},
        [loader()],
        [CombinedLoader([loader()])],
        [Stream(2), Stream(3)],
        [range(2), range(3)],
        [Squares(), Squares()],
        [iter([1]), count()],
        [[loader(), loader()], loader()],
        {"a": [loader(), loader()], "b": loader()},
        [loader(), [BATCH, BATCH]],
        [[BATCH, BATCH], loader()],
        [loader(), None],
        {"a": [BATCH, BATCH], "b": [BATCH]},
        {"a": [1, 2], "b": (3, 4)},
        {"a": range(2)},
        LoaderPair(loader(), [loader()]),
        LoaderPair(range(2), [BATCH]),
        NamedPair(loader(), loader()),
        [],
        (),
        [[], []],
    ],
    ids=lambda source: re.sub(r" at 0x\w+", "", repr(source)),
)
def test_loaders_in_a_container_are_a_collection(source: Any) -> None:
    assert is_loader_collection(source)


@pytest.mark.parametrize(
    "source",
    [
        loader(),
        CombinedLoader([loader()]),
        Stream(2),
        range(3),
        Squares(),
        iter([BATCH]),
        LoaderObject(3),
        [BATCH, BATCH],
        (BATCH, BATCH),
        [(BATCH, BATCH), (BATCH, BATCH)],
        [[BATCH, BATCH], [BATCH, BATCH]],
        [{"x": BATCH, "y": BATCH}],
        [{"x": BATCH, "name": ["a", "b"], "n": 2, "mask": None}],
        [(BATCH, {"meta": {"ids": [1, 2]}})],
        [(BATCH, range(2)), (BATCH, range(2))],
        [LoaderPair(BATCH, BATCH)],
        [NamedPair(BATCH, BATCH)],
        [np.zeros(3), np.zeros(3)],
        [MovableBatch(), MovableBatch()],
        [pack_sequence([BATCH])],
        [torch.nn.Parameter(BATCH)],
        [1, 2, 3],
        [[1, 2], [3, 4]],
        ["a sentence", "another"],
        [{"ids": [1, 2]}, {"ids": [3]}],
        [{1, 2}],
        [b"bytes"],
        [None, None],
        {"x": BATCH, "y": BATCH},
        BATCH,
        "text",
        None,
        5,
        DataLoader,
    ],
    ids=lambda source: f"{type(source).__name__}",
)
def test_one_loader_or_its_batches_are_no_collection(source: Any) -> None:
    assert not is_loader_collection(source)


def test_flatten_goes_depth_first_and_keeps_lists_of_batches_whole() -> None:
    a, b, c, pairs = loader(), loader(), CombinedLoader([loader()]), [(BATCH, BATCH)]
    assert flatten_loaders({"x": [a, [b]], "y": c, "z": pairs}) == [a, b, c, pairs]
    assert flatten_loaders(pairs) == [pairs]
    assert flatten_loaders(a) == [a]


@pytest.mark.parametrize("kind", [list, tuple])
def test_map_keeps_the_structure(kind: type) -> None:
    source = kind([range(1), {"a": range(2), "b": [range(3)]}])
    assert map_loaders(source, len) == kind([1, {"a": 2, "b": [3]}])


def test_map_keeps_container_types() -> None:
    default: defaultdict[str, Any] = defaultdict(list, a=range(2))
    mapped = map_loaders(default, len)
    assert type(mapped) is defaultdict
    assert mapped["new"] == []
    assert default["a"] == range(2)
    assert type(map_loaders(OrderedDict(a=range(2)), len)) is OrderedDict
    assert map_loaders(NamedPair(range(1), range(2)), len) == NamedPair(1, 2)
    assert map_loaders(LoaderPair(range(1), range(2)), len) == LoaderPair(1, 2)


def test_map_of_one_loader_is_the_function_of_it() -> None:
    assert map_loaders([BATCH, BATCH], len) == 2


def test_min_size_ends_with_the_shortest() -> None:
    combined = CombinedLoader([range(3), range(10, 15)], "min_size")
    assert list(combined) == [([0, 10], 0, 0), ([1, 11], 1, 0), ([2, 12], 2, 0)]
    assert len(combined) == 3


def test_max_size_gives_none_where_a_loader_has_ended() -> None:
    combined = CombinedLoader({"a": range(1), "b": range(2)}, "max_size")
    assert batches(combined) == [{"a": 0, "b": 0}, {"a": None, "b": 1}]
    assert len(combined) == 2


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((2, 2), [(0, 0), (1, 1)]),
        ((2, 5), [(0, 0), (1, 1), (0, 2), (1, 3), (0, 4)]),
        ((3, 2), [(0, 0), (1, 1), (2, 0)]),
        ((1, 3), [(0, 0), (0, 1), (0, 2)]),
        ((0, 0), []),
    ],
)
def test_max_size_cycle_starts_the_shorter_anew(sizes: tuple[int, int], expected: list[Any]) -> None:
    combined = CombinedLoader(tuple(map(range, sizes)), "max_size_cycle")
    assert batches(combined) == expected
    assert len(combined) == len(expected)


def test_max_size_cycle_starts_no_loader_anew_for_nothing() -> None:
    starts = []

    class Counted(Stream):
        def __iter__(self) -> Iterator[int]:
            starts.append(self.n)
            return super().__iter__()

    list(CombinedLoader([Counted(4), Counted(2), Counted(4)], "max_size_cycle"))
    assert sorted(starts) == [2, 2, 4, 4]


def test_max_size_cycle_refuses_a_loader_that_cannot_be_repeated() -> None:
    with pytest.raises(MisconfigurationException, match="Loader 0 of the combined loaders gave no batch"):
        list(CombinedLoader([iter([1]), range(3)], "max_size_cycle"))


def test_sequential_counts_batches_within_each_loader() -> None:
    combined = CombinedLoader({"a": range(2), "b": [range(10, 11)]}, "sequential")
    assert list(combined) == [(0, 0, 0), (1, 1, 0), (10, 0, 1)]
    assert len(combined) == 3


def test_sequential_limits_each_loader() -> None:
    combined = CombinedLoader([range(5), range(5), range(3)], "sequential")
    combined.limits = [2, 0, math.inf]
    assert list(combined) == [(0, 0, 0), (1, 1, 0), (0, 0, 2), (1, 1, 2), (2, 2, 2)]
    assert len(combined) == 5
    combined.limits = 1
    assert combined.limits == [1, 1, 1]
    combined.limits = None
    assert len(combined) == 13


def test_sequential_takes_no_batch_beyond_the_limit() -> None:
    endless = count()
    combined = CombinedLoader([endless, range(2)], "sequential")
    combined.limits = [2, 1]
    assert list(combined) == [(0, 0, 0), (1, 1, 0), (0, 0, 1)]
    assert next(endless) == 2


def test_limits_need_one_value_for_each_loader() -> None:
    combined = CombinedLoader([range(1), range(2)], "sequential")
    with pytest.raises(ValueError, match="has 1 values for 2 loaders"):
        combined.limits = [1]


@pytest.mark.parametrize("mode", ["min_size", "max_size", "max_size_cycle", "sequential"])
def test_one_loader_gives_its_batches_as_they_are(mode: Any) -> None:
    pairs = [(BATCH, BATCH), (BATCH, BATCH)]
    combined = CombinedLoader(pairs, mode)
    assert [(batch is pair, i, d) for (batch, i, d), pair in zip(combined, pairs, strict=True)] == [
        (True, 0, 0),
        (True, 1, 0),
    ]
    assert len(combined) == 2


@pytest.mark.parametrize("mode", ["min_size", "max_size", "max_size_cycle", "sequential"])
def test_no_loaders_give_no_batches(mode: Any) -> None:
    combined = CombinedLoader([], mode)
    assert list(combined) == []
    assert len(combined) == 0


def test_the_constructor_takes_a_list_of_lists_as_several_loaders() -> None:
    assert batches(CombinedLoader([[1, 2], [3, 4, 5]], "min_size")) == [[1, 3], [2, 4]]


def test_of_takes_a_list_of_lists_as_one_loader_of_batches() -> None:
    assert batches(CombinedLoader.of([[1, 2], [3, 4]], "min_size")) == [[1, 2], [3, 4]]


def test_of_keeps_a_combined_loader_and_its_mode() -> None:
    combined = CombinedLoader([range(2)], "max_size")
    assert CombinedLoader.of(combined, "sequential") is combined


@pytest.mark.parametrize(
    ("structure", "expected"),
    [
        ((range(1), range(1)), (0, 0)),
        (OrderedDict(a=range(1)), OrderedDict(a=0)),
        (NamedPair(range(1), range(1)), NamedPair(0, 0)),
        (LoaderPair(range(1), [range(1)]), LoaderPair(0, [0])),
        ({"a": [range(1), (range(1),)], "b": range(1)}, {"a": [0, (0,)], "b": 0}),
        ([[range(1)], [range(1), range(1)]], [[0], [0, 0]]),
        ([[range(1)]], [[0]]),
    ],
    ids=repr,
)
def test_batches_have_the_structure_of_the_loaders(structure: Any, expected: Any) -> None:
    (batch,) = batches(CombinedLoader(structure))
    assert batch == expected
    assert type(batch) is type(expected)


def test_assigning_flattened_exchanges_the_loaders() -> None:
    combined = CombinedLoader({"a": range(2), "b": [range(3)]})
    combined.flattened = [range(10, 12), range(20, 22)]
    assert combined.iterables == {"a": range(10, 12), "b": [range(20, 22)]}
    assert batches(combined) == [{"a": 10, "b": [20]}, {"a": 11, "b": [21]}]
    with pytest.raises(ValueError, match="flattened has 2 loaders; got 1"):
        combined.flattened = [range(1)]


def test_assigning_flattened_does_not_change_what_the_user_gave() -> None:
    given = [range(2)]
    CombinedLoader(given).flattened = [range(3)]
    assert given == [range(2)]


def test_length_needs_a_length_of_every_loader() -> None:
    with pytest.raises(TypeError, match=r"loader 1 \(Stream\) has none"):
        len(CombinedLoader([range(3), Stream(2)]))


def test_each_iteration_starts_from_the_beginning() -> None:
    combined = CombinedLoader([range(3), range(3)])
    next(iter(combined))
    assert len(list(combined)) == 3
    assert len(list(combined)) == 3


def test_next_continues_the_running_iteration_and_reset_ends_it() -> None:
    combined = CombinedLoader([range(3)])
    iter(combined)
    assert next(combined) == ([0], 0, 0)
    assert next(combined) == ([1], 1, 0)
    combined.reset()
    with pytest.raises(RuntimeError, match=r"Call iter\(\) on it first"):
        next(combined)


def test_unknown_mode_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="Did you mean 'max_size_cycle'"):
        CombinedLoader([range(1)], "max_size_cycles")  # type: ignore[arg-type]


def test_combined_loaders_nest() -> None:
    inner = CombinedLoader([range(3), range(3)], "min_size")
    outer = CombinedLoader([inner, range(2)], "sequential")
    assert [d for _, _, d in outer] == [0, 0, 0, 1, 1]


def test_data_loaders_combine() -> None:
    data = TensorDataset(torch.arange(4.0))
    combined = CombinedLoader({"a": DataLoader(data, batch_size=2), "b": DataLoader(data, batch_size=1)}, "max_size")
    first = next(iter(combined))[0]
    assert torch.equal(first["a"][0], torch.tensor([0.0, 1.0]))
    assert torch.equal(first["b"][0], torch.tensor([0.0]))
    assert len(combined) == 4


@pytest.mark.parametrize(
    ("structure", "mode", "calls_per_batch"),
    [
        ([range(50), range(50)], "min_size", 0),
        ({"a": range(50), "b": range(50)}, "max_size", 0),
        ([range(50), range(50)], "sequential", 0),
        ((range(50), range(50)), "max_size_cycle", 1),
    ],
)
def test_iterating_costs_few_python_calls(structure: Any, mode: Any, calls_per_batch: int) -> None:
    iterator = iter(CombinedLoader(structure, mode))
    next(iterator)
    calls = []
    sys.setprofile(lambda frame, event, arg: calls.append(frame.f_code.co_name) if event == "call" else None)
    try:
        for _ in range(20):
            next(iterator)
    finally:
        sys.setprofile(None)
    # Python 3.10 and 3.11 count a list comprehension as a call.
    assert len([name for name in calls if name != "<listcomp>"]) == 20 * calls_per_batch
