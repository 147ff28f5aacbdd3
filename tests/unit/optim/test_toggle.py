"""Switching off the parameters of other optimizers."""

from __future__ import annotations

import torch
from torch import nn

from fulgur.optim import toggle_parameters, untoggle_parameters


def test_only_own_and_shared_parameters_stay_on() -> None:
    own, shared, foreign = (nn.Parameter(torch.zeros(1)) for _ in range(3))
    first = torch.optim.SGD([own, shared], lr=0.1)
    second = torch.optim.SGD([shared, foreign], lr=0.1)
    state = toggle_parameters(first, [first, second])
    assert [p.requires_grad for p in (own, shared, foreign)] == [True, True, False]
    untoggle_parameters(state)
    assert [p.requires_grad for p in (own, shared, foreign)] == [True, True, True]


def test_frozen_parameters_stay_frozen_afterwards() -> None:
    own, frozen = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1), requires_grad=False)
    first, second = torch.optim.SGD([own], lr=0.1), torch.optim.SGD([frozen], lr=0.1)
    untoggle_parameters(toggle_parameters(first, [first, second]))
    assert not frozen.requires_grad


def test_parameter_in_several_foreign_optimizers_gets_its_gradient_back() -> None:
    own, foreign = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    first = torch.optim.SGD([own], lr=0.1)
    others = [torch.optim.SGD([foreign], lr=0.1), torch.optim.Adam([foreign])]
    untoggle_parameters(toggle_parameters(first, [first, *others]))
    assert foreign.requires_grad
