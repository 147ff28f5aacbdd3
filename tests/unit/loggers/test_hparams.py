"""Hyperparameters as plain data and as one flat level."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass
from enum import Enum, IntEnum
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from fulgur.loggers.hparams import flatten, to_dict, to_plain, write_hparams


class Colour(Enum):
    RED = "#f00"


class Level(IntEnum):
    LOW = 1


@dataclass
class Settings:
    lr: float
    path: Path


class Thing:
    def __repr__(self) -> str:
        return "a thing"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, True),
        (3, 3),
        (0.5, 0.5),
        ("text", "text"),
        (Path("a/b"), "a/b"),
        (Colour.RED, "RED"),
        (Level.LOW, "LOW"),
        (torch.float32, "torch.float32"),
        (torch.device("cpu"), "cpu"),
        (torch.tensor(1.5), "tensor(1.5000)"),
        (np.float64(0.5), 0.5),
        (np.int32(3), 3),
        (Fraction(1, 4), 0.25),
        ((1, (2, "x")), [1, [2, "x"]]),
        ({"b", "a"}, ["a", "b"]),
        (b"raw", "b'raw'"),
        (Settings(0.1, Path("x")), {"lr": 0.1, "path": "x"}),
        (Namespace(a=1, b=Namespace(c=2)), {"a": 1, "b": {"c": 2}}),
        ({1: "int key", (2, 3): "tuple key"}, {1: "int key", "[2, 3]": "tuple key"}),
        (Thing(), "a thing"),
        (Settings, str(Settings)),
    ],
)
def test_every_value_becomes_plain_data(value: object, expected: object) -> None:
    plain = to_plain(value)
    assert plain == expected
    assert type(plain) is type(expected)


def test_yaml_file_is_read_back_by_the_safe_loader(tmp_path: Path) -> None:
    params = {"settings": Settings(0.1, Path("x")), "dtype": torch.bfloat16, "betas": (0.9, 0.99), "city": "Zürich"}
    write_hparams(str(tmp_path / "hparams.yaml"), params)
    text = (tmp_path / "hparams.yaml").read_text(encoding="utf-8")
    expected = {
        "settings": {"lr": 0.1, "path": "x"},
        "dtype": "torch.bfloat16",
        "betas": [0.9, 0.99],
        "city": "Zürich",
    }
    assert yaml.safe_load(text) == expected
    assert "!!" not in text
    assert list(yaml.safe_load(text)) == list(params)


def test_shared_lists_do_not_become_yaml_aliases(tmp_path: Path) -> None:
    shared = [1, 2]
    write_hparams(str(tmp_path / "hparams.yaml"), {"a": shared, "b": shared})
    assert "&" not in (tmp_path / "hparams.yaml").read_text()


def test_nested_names_are_joined() -> None:
    params = {"optimizer": {"lr": 0.1, "inner": Namespace(decay=0)}, "settings": Settings(0.2, Path("x")), 3: True}
    assert flatten(params) == {
        "optimizer/lr": 0.1,
        "optimizer/inner/decay": 0,
        "settings/lr": 0.2,
        "settings/path": "x",
        "3": True,
    }


def test_values_that_are_no_scalars_become_strings() -> None:
    params = {"betas": (0.9, 0.99), "none": None, "colour": Colour.RED, "tensor": torch.tensor([1, 2])}
    assert flatten(params) == {
        "betas": "(0.9, 0.99)",
        "none": "None",
        "colour": "Colour.RED",
        "tensor": "tensor([1, 2])",
    }


def test_scalars_of_other_libraries_become_python_numbers() -> None:
    flat = flatten({"tensor": torch.tensor(2), "np_int": np.int64(3), "np_float": np.float32(0.5)})
    assert flat == {"tensor": 2, "np_int": 3, "np_float": 0.5}
    assert [type(value) for value in flat.values()] == [int, int, float]


def test_params_may_be_a_dict_a_namespace_a_dataclass_or_none() -> None:
    assert to_dict({"a": 1}) == {"a": 1}
    assert to_dict(Namespace(a=1)) == {"a": 1}
    assert to_dict(Settings(0.1, Path("x"))) == {"lr": 0.1, "path": Path("x")}
    assert to_dict(None) == {}


def test_params_of_another_type_are_refused() -> None:
    with pytest.raises(TypeError, match="got a list"):
        to_dict([1, 2])
