from __future__ import annotations

import torch
from torch import nn

from fulgur.optim.submodules import clear_gradients, submodules


class Shared(nn.Module):
    """A layer that stands in two places, one inside the other's neighbour, and a place that is empty."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.nested = nn.Sequential(nn.Sequential(self.first, nn.Dropout()), nn.BatchNorm1d(2))
        self.register_module("empty", None)
        self.own = nn.Parameter(torch.ones(2))


def test_every_module_is_there_once() -> None:
    root = Shared()
    found = submodules(root)
    assert set(found) == set(root.modules())
    assert len(found) == len(list(root.modules()))


def test_gradients_of_all_parameters_are_cleared() -> None:
    root = Shared()
    for parameter in root.parameters():
        parameter.grad = torch.ones_like(parameter)
    clear_gradients(root)
    assert [parameter.grad for parameter in root.parameters()] == [None] * 5
