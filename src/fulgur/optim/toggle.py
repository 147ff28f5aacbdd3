"""Training the parameters of one optimizer alone for a while."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

ToggleState = list[tuple[Tensor, bool]]
"""Parameters that `toggle_parameters` switched off, and whether each required a gradient before."""


def toggle_parameters(optimizer: Any, optimizers: Iterable[Any]) -> ToggleState:
    """Switch off the gradients of all parameters that belong to other optimizers only.

    Args:
        optimizer: The one whose parameters stay as they are, also those it shares with others.
        optimizers: All optimizers, `optimizer` among them or not.

    Returns:
        What `untoggle_parameters` needs to undo it.
    """
    return switch_off(foreign_parameters(optimizer, optimizers))


def foreign_parameters(optimizer: Any, optimizers: Iterable[Any]) -> tuple[Tensor, ...]:
    """All parameters that belong to other optimizers only, each once."""
    kept = {id(parameter) for parameter in _parameters(optimizer)}
    found = {id(parameter): parameter for other in optimizers for parameter in _parameters(other)}
    return tuple(parameter for key, parameter in found.items() if key not in kept)


def switch_off(parameters: Iterable[Tensor]) -> ToggleState:
    """Switch off the gradients of `parameters`. Returns what `untoggle_parameters` needs to undo it."""
    state: ToggleState = []
    for parameter in parameters:
        state.append((parameter, parameter.requires_grad))
        parameter.requires_grad = False
    return state


def untoggle_parameters(state: ToggleState) -> None:
    """Give the parameters that `toggle_parameters` switched off their gradients back."""
    for parameter, requires_grad in state:
        parameter.requires_grad = requires_grad


def _parameters(optimizer: Any) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]
