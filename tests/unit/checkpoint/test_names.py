"""File names from metrics."""

from __future__ import annotations

import pytest
import torch

from fulgur.checkpoint.names import format_name, name_pattern
from fulgur.errors import MisconfigurationException


@pytest.mark.parametrize(
    ("template", "metrics", "expected"),
    [
        ("{epoch}-{step}", {"epoch": 3, "step": 8}, "epoch=3-step=8"),
        ("x-{epoch:02d}-{vl:.2f}", {"epoch": 1, "vl": torch.tensor(1.0)}, "x-epoch=01-vl=1.00"),
        ("{epoch}-{nope}-{vl}", {"epoch": 1, "vl": torch.tensor(1.0)}, "epoch=1-nope=0-vl=1.0"),
        ("{epoch}-{a/b}", {"epoch": 0, "a/b": 0.0}, "epoch=0-a/b=0.0"),
        ("{val.loss:.1f}", {"val.loss": 0.25}, "val.loss=0.2"),
        ("{vl:.2f}", {"vl": float("nan")}, "vl=nan"),
        ("const", {}, "const"),
        ("{{kept}}", {}, "{kept}"),
    ],
)
def test_fields_are_filled_with_their_names(template: str, metrics: dict[str, object], expected: str) -> None:
    assert format_name(template, metrics) == expected


def test_names_can_be_left_out() -> None:
    assert format_name("e{epoch}-v{vl:.1f}-{nope}", {"epoch": 1, "vl": 1.0}, insert_names=False) == "e1-v1.0-0"


def test_equals_sign_can_be_another() -> None:
    assert format_name("{epoch}", {"epoch": 1}, equals="_") == "epoch_1"


def test_format_that_does_not_fit_the_value_names_both() -> None:
    with pytest.raises(MisconfigurationException, match=r"vl=0\.5 with the format 'd'"):
        format_name("{vl:d}", {"vl": 0.5})


@pytest.mark.parametrize(
    ("template", "name", "expected"),
    [
        ("last", "last", True),
        ("last", "last-v12", True),
        ("last", "lasting", False),
        ("last", "my-last", False),
        ("{epoch}-last", "epoch=3-last", True),
        ("{epoch}-last", "3-last-v1", True),
        ("a.b", "aXb", False),
    ],
)
def test_pattern_recognizes_names_of_a_template(template: str, name: str, expected: bool) -> None:
    assert bool(name_pattern(template).fullmatch(name)) is expected
