from __future__ import annotations

import gc
import weakref
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from fulgur.optim.gradients import clear_gradients, gradient_clearer, gradient_nodes_kept, submodules


def has_met(parameter: nn.Parameter) -> bool:
    """Whether the node in which a graph of `parameter` ends was met before; marks it."""
    node = (parameter * 1).grad_fn.next_functions[0][0]  # type: ignore[union-attr]
    was_met = "met" in node.metadata
    node.metadata["met"] = True
    return was_met


def test_every_graph_ends_in_the_same_node_of_a_parameter() -> None:
    parameter = nn.Parameter(torch.ones(2))

    with gradient_nodes_kept([torch.optim.SGD([parameter], lr=0.1)]):
        met = [has_met(parameter) for _ in range(3)]

    assert met == [False, True, True]
    assert not has_met(parameter)


def test_a_parameter_that_is_frozen_is_left_out() -> None:
    parameters = [nn.Parameter(torch.ones(2), requires_grad=False), nn.Parameter(torch.ones(2))]

    with gradient_nodes_kept([torch.optim.SGD(parameters, lr=0.1)]):
        parameters[0].requires_grad_(True)
        met = [[has_met(p) for p in parameters] for _ in range(2)]

    assert met == [[False, False], [False, True]]


def test_parameters_are_free_afterwards() -> None:
    parameter = nn.Parameter(torch.ones(2))
    lives = weakref.ref(parameter)
    gc.disable()
    try:
        with gradient_nodes_kept([torch.optim.SGD([parameter], lr=0.1)]):
            del parameter
            gc.collect()
        gc.collect()
        assert lives() is None
    finally:
        gc.enable()


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


def with_gradient() -> nn.Parameter:
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    return parameter


def test_gradients_of_all_groups_are_cleared_and_of_those_that_join_later() -> None:
    first, second, later, foreign = with_gradient(), with_gradient(), with_gradient(), with_gradient()
    optimizer = torch.optim.SGD([{"params": [first]}, {"params": [second]}], lr=0.1)
    clear = gradient_clearer(optimizer)
    optimizer.add_param_group({"params": [later]})

    clear()

    assert first.grad is second.grad is later.grad is None
    assert foreign.grad is not None


class CountsClears(torch.optim.SGD):
    n_clears = 0

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.n_clears += 1
        super().zero_grad(set_to_none)


def test_an_optimizer_with_its_own_zero_grad_is_asked() -> None:
    optimizer = CountsClears([with_gradient()], lr=0.1)

    gradient_clearer(optimizer)()

    assert optimizer.n_clears == 1


def test_an_optimizer_whose_zero_grad_was_set_is_asked() -> None:
    optimizer: Any = torch.optim.SGD([with_gradient()], lr=0.1)
    calls: list[str] = []
    optimizer.zero_grad = lambda: calls.append("cleared")

    gradient_clearer(optimizer)()

    assert calls == ["cleared"]


def test_a_patch_of_every_optimizer_is_heard() -> None:
    optimizer = torch.optim.SGD([with_gradient()], lr=0.1)

    with patch.object(torch.optim.Optimizer, "zero_grad") as zero_grad:
        gradient_clearer(optimizer)()

    zero_grad.assert_called_once_with()
