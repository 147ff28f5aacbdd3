"""Gradient clipping."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fulgur.errors import MisconfigurationException
from fulgur.optim import clip_gradients


@pytest.fixture
def optimizer() -> torch.optim.Optimizer:
    first, second, unused = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    first.grad, second.grad = torch.tensor([3.0, 0.0]), torch.tensor([0.0, -4.0])
    return torch.optim.SGD([{"params": [first, unused]}, {"params": [second]}], lr=0.1)


def gradients(optimizer: torch.optim.Optimizer) -> list[float]:
    found = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return torch.cat(found).tolist()


def test_norm_is_taken_over_all_groups_together(optimizer: torch.optim.Optimizer) -> None:
    clip_gradients(optimizer, 1.0)
    assert gradients(optimizer) == pytest.approx([0.6, 0.0, 0.0, -0.8], abs=1e-6)


@pytest.mark.parametrize("algorithm", ["value", "VALUE"])
def test_value_cuts_off_each_element(optimizer: torch.optim.Optimizer, algorithm: str) -> None:
    clip_gradients(optimizer, 3.5, algorithm)
    assert gradients(optimizer) == [3.0, 0.0, 0.0, -3.5]


@pytest.mark.parametrize("clip_val", [0, -1.0])
def test_zero_and_below_clip_nothing(optimizer: torch.optim.Optimizer, clip_val: float) -> None:
    clip_gradients(optimizer, clip_val)
    assert gradients(optimizer) == [3.0, 0.0, 0.0, -4.0]


def test_non_finite_norm_is_left_to_the_caller(optimizer: torch.optim.Optimizer) -> None:
    optimizer.param_groups[0]["params"][0].grad[0] = float("inf")
    clip_gradients(optimizer, 1.0)


def test_unknown_algorithm_is_an_error(optimizer: torch.optim.Optimizer) -> None:
    with pytest.raises(MisconfigurationException, match="gradient_clip_algorithm='l1' is unknown"):
        clip_gradients(optimizer, 1.0, "l1")
