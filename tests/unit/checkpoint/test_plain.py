"""Hyperparameters to plain data and back."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import enum
import sys
import types
from collections import OrderedDict, namedtuple
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import pytest
import torch

from fulgur.checkpoint.load import load_checkpoint
from fulgur.checkpoint.plain import from_plain, to_plain
from fulgur.checkpoint.write import write_checkpoint
from fulgur.errors import CheckpointError


class Color(enum.Enum):
    RED = "red"


class Access(enum.Flag):
    READ = 1
    WRITE = 2


class Level(enum.IntEnum):
    LOW = 1


@dataclasses.dataclass(frozen=True)
class Layer:
    width: int
    where: Path
    made: list[str] = dataclasses.field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        made.append(self.width)


made: list[int] = []

Point = namedtuple("Point", ["x", "y"])

VALUES: list[Any] = [
    None,
    True,
    3,
    2.5,
    "text",
    b"bytes",
    [1, "a"],
    (1, (2,)),
    {"a": {"b": 1}, 3: None},
    Path("/data/x"),
    PurePosixPath("a/b"),
    PureWindowsPath("C:\\a"),
    argparse.Namespace(lr=1e-3, root=Path("/x")),
    types.SimpleNamespace(a=1),
    Color.RED,
    Access.READ | Access.WRITE,
    Level.LOW,
    torch.float16,
    torch.device("cuda", 1),
    torch.Size([2, 3]),
    range(1, 10, 2),
    slice(1, None),
    {3, 1, 2},
    frozenset({"a"}),
    1 + 2j,
    datetime.timedelta(days=1, microseconds=5),
    datetime.datetime(2024, 5, 6, 7, 8, tzinfo=datetime.timezone.utc),
    datetime.date(2024, 5, 6),
    datetime.time(7, 8),
    Point(1, [2]),
    {(1, 2): "tuple key", Color.RED: "enum key"},
    {"__fulgur__": "Path", "value": "a user's own"},
    np.float32(1.5),
    np.int64(3),
    np.bool_(True),
    np.str_("s"),
    np.datetime64("2024-01-01"),
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_value_survives_a_checkpoint_opened_safely(value: Any, tmp_path: Path) -> None:
    write_checkpoint({"hyper_parameters": to_plain({"x": value}, where="hyper_parameters")}, tmp_path / "a.ckpt")
    restored = from_plain(load_checkpoint(tmp_path / "a.ckpt")["hyper_parameters"])["x"]
    assert restored == value
    assert type(restored) is type(value)


def test_array_survives(tmp_path: Path) -> None:
    value = np.arange(6, dtype="<i2").reshape(2, 3)
    write_checkpoint({"x": to_plain(value, where="x")}, tmp_path / "a.ckpt")
    restored = from_plain(load_checkpoint(tmp_path / "a.ckpt")["x"])
    assert restored.dtype == value.dtype
    assert (restored == value).all()
    restored[0, 0] = 7


def test_tensor_is_left_as_it_is() -> None:
    value = torch.ones(2)
    assert to_plain({"x": value}, where="h")["x"] is value


def test_dataclass_comes_back_without_running_its_code() -> None:
    layer = Layer(4, Path("/x"))
    layer.made.append("later")
    made.clear()
    restored = from_plain(to_plain(layer, where="h"))
    assert restored == layer
    assert isinstance(restored, Layer)
    assert made == []


def test_dataclass_whose_class_is_not_imported_comes_back_as_a_dict(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = to_plain(Layer(4, Path("/x")), where="h")
    monkeypatch.delitem(sys.modules, Layer.__module__)
    assert from_plain(plain) == {"width": 4, "where": Path("/x"), "made": []}


def test_dataclass_that_has_other_fields_by_now_comes_back_as_a_dict() -> None:
    plain = to_plain(Layer(4, Path("/x")), where="h")
    del plain["value"]["width"]
    assert from_plain(plain) == {"where": Path("/x"), "made": []}


def test_enum_whose_class_is_not_imported_comes_back_as_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = to_plain(Color.RED, where="h")
    monkeypatch.delitem(sys.modules, Color.__module__)
    assert from_plain(plain) == "red"


def test_enum_member_that_was_renamed_is_found_by_its_value() -> None:
    plain = to_plain(Color.RED, where="h")
    plain["name"] = "CRIMSON"
    assert from_plain(plain) is Color.RED


@pytest.mark.parametrize("kind", ["Enum", "dataclass", "namedtuple"])
def test_file_cannot_name_a_class_of_another_kind(kind: str) -> None:
    hostile = {
        "__fulgur__": kind,
        "module": "subprocess",
        "class": "Popen",
        "name": "x",
        "value": {"args": "touch ran"},
    }
    assert from_plain(hostile) in ({"args": "touch ran"}, ("touch ran",))
    assert not Path("ran").exists()


def test_class_is_not_found_through_an_alias(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[Color.__module__], "Alias", Color, raising=False)
    plain = to_plain(Color.RED, where="h") | {"class": "Alias"}
    assert from_plain(plain) == "red"


def test_looking_a_class_up_does_not_run_a_modules_getattr(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("lazy")

    def load(name: str) -> Any:
        raise AssertionError(f"{name} was looked up")

    module.__getattr__ = load  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, "lazy", module)
    assert from_plain({"__fulgur__": "Enum", "module": "lazy", "class": "X", "name": "A", "value": 1}) == 1


@pytest.mark.parametrize(
    "damaged",
    [{"__fulgur__": "range"}, {"__fulgur__": "torch.dtype", "value": "nn"}, {"__fulgur__": "timedelta", "value": "x"}],
)
def test_damaged_content_is_left_as_it_is(damaged: dict[str, Any]) -> None:
    assert from_plain(damaged) == damaged


def test_unknown_kind_is_left_as_it_is() -> None:
    assert from_plain({"__fulgur__": "from the future", "value": 1}) == {"__fulgur__": "from the future", "value": 1}


def test_subclass_of_a_dict_is_stored_as_a_dict() -> None:
    assert type(to_plain(OrderedDict(a=1), where="h")) is dict


def test_equal_sets_make_equal_content() -> None:
    forward, backward = set("abcdefgh"), set("hgfedcba")
    assert to_plain(forward, where="h") == to_plain(backward, where="h")


def test_what_has_no_plain_form_is_refused_by_name() -> None:
    with pytest.raises(CheckpointError, match=r"hyper_parameters\['net'\]\[0\] is Linear.*ignore="):
        to_plain({"net": [torch.nn.Linear(1, 1)]}, where="hyper_parameters")


def test_array_of_objects_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"numpy\.ndarray"):
        to_plain(np.array([object()]), where="h")


def test_value_that_contains_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(CheckpointError, match=r"h\[0\] contains itself"):
        to_plain(value, where="h")


def test_value_that_occurs_twice_is_stored_twice() -> None:
    shared = [1]
    assert to_plain([shared, shared], where="h") == [[1], [1]]


@pytest.mark.parametrize("value", [b"", bytearray(), {"a": [b""]}, {b"": 1}], ids=repr)
def test_empty_bytes_survive_a_file_that_is_opened_safely(tmp_path: Path, value: Any) -> None:
    torch.save(to_plain(value, where="x"), tmp_path / "a.pt")
    assert from_plain(torch.load(tmp_path / "a.pt", weights_only=True)) == value


def test_empty_array_survives_a_file_that_is_opened_safely(tmp_path: Path) -> None:
    torch.save(to_plain(np.zeros((0, 3), "f4"), where="x"), tmp_path / "a.pt")
    array = from_plain(torch.load(tmp_path / "a.pt", weights_only=True))
    assert (array.shape, array.dtype) == ((0, 3), np.float32)
