from __future__ import annotations

import sys
import warnings
from collections import OrderedDict, UserDict, defaultdict, namedtuple
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from fulgur.data import transfer
from fulgur.data.transfer import cast_floating, find_batch_size, move_to_device, mover
from fulgur.errors import PossibleUserWarning

CPU, META = torch.device("cpu"), torch.device("meta")

Point = namedtuple("Point", ["x", "y"])


@dataclass
class Sample:
    x: Any
    label: str = "cat"


@dataclass(frozen=True)
class FrozenSample:
    x: Any
    y: int = 1


@dataclass(slots=True)
class SlottedSample:
    x: Any


@dataclass
class PartlySet:
    x: Any
    later: Any = field(init=False)


class Movable:
    def __init__(self, device: torch.device = CPU) -> None:
        self.device = device

    def to(self, device: torch.device) -> Movable:
        return Movable(device)


class InPlaceMovable:
    device = CPU

    def to(self, device: torch.device) -> None:
        self.device = device


class ReadOnly(Mapping[str, Any]):
    def __init__(self, data: dict[str, Any]) -> None:
        self._data = data

    def __getitem__(self, key: str) -> Any:
        return self._data[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._data)

    def __len__(self) -> int:
        return len(self._data)


class Unbuildable(ReadOnly):
    def __init__(self) -> None:
        super().__init__({"x": torch.ones(1)})


def x() -> Tensor:
    return torch.ones(4, 2)


def python_calls(fn: Callable[[], Any]) -> int:
    calls = []
    sys.setprofile(lambda frame, event, arg: calls.append(frame.f_code.co_name) if event == "call" else None)
    try:
        fn()
    finally:
        sys.setprofile(None)
    # The profiler sees the lambda that makes the call as well.
    return len(calls) - 1


NESTINGS = {
    "tensor": (x, lambda b: b),
    "list": (lambda: [x(), 1], lambda b: b[0]),
    "tuple": (lambda: (x(), "a"), lambda b: b[0]),
    "dict": (lambda: {"a": x(), "b": None}, lambda b: b["a"]),
    "nested": (lambda: [{"a": (1, [x()])}], lambda b: b[0]["a"][1][0]),
    "defaultdict": (lambda: defaultdict(list, a=x()), lambda b: b["a"]),
    "ordered dict": (lambda: OrderedDict(a=x()), lambda b: b["a"]),
    "user dict": (lambda: UserDict(a=x()), lambda b: b["a"]),
    "mapping": (lambda: ReadOnly({"a": x()}), lambda b: b["a"]),
    "mapping proxy": (lambda: MappingProxyType({"a": x()}), lambda b: b["a"]),
    "named tuple": (lambda: Point(x(), 1), lambda b: b.x),
    "dataclass": (lambda: Sample(x()), lambda b: b.x),
    "frozen dataclass": (lambda: FrozenSample(x()), lambda b: b.x),
    "slotted dataclass": (lambda: SlottedSample(x()), lambda b: b.x),
    "dataclass not all set": (lambda: PartlySet(x()), lambda b: b.x),
    "packed sequence": (lambda: pack_sequence([x()]), lambda b: b.data),
    "parameter": (lambda: torch.nn.Parameter(x()), lambda b: b),
}
every_nesting = pytest.mark.parametrize(("build", "find"), list(NESTINGS.values()), ids=list(NESTINGS))


@every_nesting
def test_moves_tensors_in_any_nesting(build: Callable[[], Any], find: Callable[[Any], Tensor]) -> None:
    batch = build()
    moved = move_to_device(batch, META)
    assert find(moved).device == META
    assert find(batch).device == CPU
    assert type(moved) is type(batch) or isinstance(batch, Tensor)


@every_nesting
def test_gives_back_the_same_object_when_nothing_moves(build: Callable[[], Any], find: Any) -> None:
    batch = build()
    assert move_to_device(batch, CPU) is batch
    assert move_to_device(batch, "cpu") is batch


@every_nesting
def test_casts_floating_tensors_in_any_nesting(build: Callable[[], Any], find: Callable[[Any], Tensor]) -> None:
    batch = build()
    cast = cast_floating(batch, torch.float16)
    assert find(cast).dtype == torch.float16
    assert find(batch).dtype == torch.float32
    assert cast_floating(batch, torch.float32) is batch


def test_casting_leaves_integers_booleans_and_complex_numbers() -> None:
    batch = [torch.ones(2, dtype=torch.long), torch.tensor([True]), torch.ones(2, dtype=torch.complex64), 1.5, "text"]
    assert cast_floating(batch, torch.bfloat16) is batch


def test_casting_leaves_objects_that_merely_have_to() -> None:
    movable = Movable()
    assert cast_floating([movable], torch.float16)[0] is movable


def test_keeps_what_does_not_move() -> None:
    samples, text = {1, 2}, ["a", "b"]
    moved = move_to_device({"x": x(), "set": samples, "text": text, "n": 3, "type": int}, META)
    assert moved["set"] is samples
    assert moved["text"] is text
    assert (moved["n"], moved["type"]) == (3, int)


def test_keeps_the_factory_of_a_defaultdict() -> None:
    assert move_to_device(defaultdict(list, a=x()), META)["missing"] == []


def test_calls_to_of_any_object_that_has_it() -> None:
    assert move_to_device([Movable()], META)[0].device == META
    assert move_to_device(Movable(), META).device == META


def test_an_object_whose_to_returns_nothing_has_moved_in_place() -> None:
    movable = InPlaceMovable()
    assert move_to_device({"x": movable}, META)["x"] is movable
    assert movable.device == META


def test_a_mapping_that_cannot_be_rebuilt_says_how_to_move_it() -> None:
    with pytest.raises(TypeError, match=r"Unbuildable cannot be rebuilt .* Give the class a method"):
        move_to_device(Unbuildable(), META)


def test_takes_a_non_blocking_wish_on_the_cpu() -> None:
    batch = [x().double(), x()]
    assert move_to_device(batch, CPU, non_blocking=True) is batch


@pytest.mark.parametrize(
    "batch", [x(), [x(), x()], (x(), x(), 1), {"a": x(), "b": "text"}], ids=["tensor", "list", "tuple", "dict"]
)
def test_flat_batches_cost_one_python_call(batch: Any) -> None:
    assert python_calls(lambda: move_to_device(batch, CPU)) == 1
    assert python_calls(lambda: move_to_device(batch, META, non_blocking=True)) == 1
    assert python_calls(lambda: cast_floating(batch, torch.float16)) == 1
    assert python_calls(lambda: find_batch_size(batch)) == 1


def test_nested_plain_containers_cost_one_call_to_measure() -> None:
    batch = [{"a": (x(), [x()])}]
    assert python_calls(lambda: find_batch_size(batch)) == 1


@pytest.fixture(autouse=True)
def _fresh_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "_has_warned_of_sizes", False)


@pytest.mark.parametrize(
    ("batch", "size"),
    [
        (torch.ones(5, 2), 5),
        (torch.ones(0, 2), 0),
        (torch.tensor(1.0), 1),
        ([torch.tensor(1.0), torch.tensor(2.0)], 1),
        ([torch.ones(3), torch.ones(3, 4)], 3),
        ({"name": "abc", "x": torch.ones(6)}, 6),
        ({"a": {"b": [("text", torch.ones(7))]}}, 7),
        ([torch.tensor(0.1), torch.ones(4)], 4),
        (Sample(torch.ones(2)), 2),
        (Point(torch.ones(2), 1), 2),
        (PartlySet(torch.ones(2)), 2),
        (UserDict(a=torch.ones(2)), 2),
        (torch.nn.Parameter(torch.ones(2)), 2),
        (pack_sequence([torch.ones(3), torch.ones(2)]), 2),
        (pack_sequence([torch.ones(2), torch.ones(3)], enforce_sorted=False), 2),
        ("text", None),
        (["a", 1, None, 2.5], None),
        ({}, None),
        (None, None),
    ],
)
def test_batch_size_is_the_first_dimension_of_the_first_tensor(batch: Any, size: int | None) -> None:
    assert find_batch_size(batch) == size


def test_measuring_uses_up_no_iterator() -> None:
    iterator = iter([torch.ones(3)])
    assert find_batch_size([iterator, torch.ones(2)]) == 2
    assert len(list(iterator)) == 1


def test_sizes_that_differ_warn_once_and_the_first_is_kept() -> None:
    batch = [torch.ones(3), torch.ones(4)]
    with pytest.warns(PossibleUserWarning, match=r"\(3 and 4\).*batch_size="):
        assert find_batch_size(batch) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find_batch_size(batch) == 3


def test_packed_sequences_stay_packed() -> None:
    assert type(move_to_device([pack_sequence([x()])], META)[0]) is PackedSequence


@pytest.mark.parametrize(
    "batch",
    [torch.ones(2), (torch.ones(2), torch.ones(3)), [torch.ones(2), "text"], {"x": torch.ones(2)}, {"x": [1, None]}, 3],
    ids=["tensor", "tuple", "list with a text", "dict", "nested", "number"],
)
def test_mover_to_the_cpu_returns_what_is_there_already(batch: Any) -> None:
    assert mover(CPU)(batch) is batch


def test_mover_to_the_cpu_moves_what_is_elsewhere() -> None:
    class Elsewhere:
        def to(self, device: torch.device) -> str:
            return f"on {device}"

    here = torch.ones(2)
    assert mover(CPU)((here, Elsewhere())) == (here, "on cpu")
    assert mover(CPU)({"x": here, "y": {"z": Elsewhere()}}) == {"x": here, "y": {"z": "on cpu"}}


def test_mover_to_another_device_moves() -> None:
    moved = mover(META)({"x": torch.ones(2)})
    assert moved["x"].device == META
