from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch

from fulgur.errors import MisconfigurationException
from fulgur.loops.order import in_order


class Pair(NamedTuple):
    a: Any
    b: Any


def ids(*indices: int) -> torch.Tensor:
    return torch.tensor(indices)


def test_batches_in_order_are_given_as_they_are() -> None:
    first, second = object(), object()
    assert in_order([([0, 1], first), ([2], second)], 2) == [first, second]


def test_unknown_indices_keep_the_order() -> None:
    assert in_order([([], "b"), ([], "a")], 2) == ["b", "a"]


def test_samples_out_of_order_are_stacked_anew_each_once() -> None:
    ordered = in_order([([3, 0], ids(3, 0)), ([2, 1], ids(2, 1)), ([4, 0], ids(4, 0))], 2)
    assert [batch.tolist() for batch in ordered] == [[0, 1], [2, 3], [4]]


def test_parts_of_divided_batches_are_joined() -> None:
    ordered = in_order([([0, 1], ids(0, 1)), ([2], ids(2)), ([3], ids(3))], 2)
    assert [batch.tolist() for batch in ordered] == [[0, 1], [2, 3]]


def test_nested_predictions_keep_their_form() -> None:
    def prediction(*indices: int) -> Any:
        return {"pair": Pair(ids(*indices), [f"{i}" for i in indices]), "all": (ids(*indices) * 2,)}

    ordered = in_order([([2, 0], prediction(2, 0)), ([1], prediction(1))], 2)
    assert isinstance(ordered[0]["pair"], Pair)
    assert ordered[0]["pair"].a.tolist() == [0, 1]
    assert ordered[0]["pair"].b == ["0", "1"]
    assert [batch["all"][0].tolist() for batch in ordered] == [[0, 2], [4]]


def test_a_list_with_one_item_for_each_sample_is_reordered() -> None:
    assert in_order([([1, 0], [ids(1, 1, 1), ids(0)]), ([2], [ids(2)])], 2)[0][0].tolist() == [0]


def test_what_cannot_be_cut_is_an_error_that_says_what_can() -> None:
    with pytest.raises(MisconfigurationException, match=r"returned float for a batch of 2 samples.*dicts or tuples"):
        in_order([([1, 0], 0.5)], 2)
