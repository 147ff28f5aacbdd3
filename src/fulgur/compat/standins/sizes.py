"""Sizes of models: bytes, operations, parameters that are shared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def get_formatted_model_size(total_model_size: float) -> str:
    """Megabytes, with three digits after the point."""
    return f"{total_model_size:,.3f}"


def find_shared_parameters(module: nn.Module) -> list[list[str]]:
    """Names of parameters that are one and the same, in groups."""
    names: dict[int, list[str]] = {}
    for prefix, submodule in module.named_modules(remove_duplicate=False):
        for name, parameter in submodule._parameters.items():
            if parameter is not None:
                found = names.setdefault(id(parameter), [])
                path = f"{prefix}.{name}" if prefix else name
                if path not in found:
                    found.append(path)
    return [group for group in names.values() if len(group) > 1]


def set_shared_parameters(module: nn.Module, shared_params: list[list[str]]) -> nn.Module:
    """Make the parameters of each group one again, that of the first name."""
    for first, *others in shared_params:
        parameter = module.get_parameter(first)
        for path in others:
            owner, _, name = path.rpartition(".")
            setattr(module.get_submodule(owner), name, parameter)
    return module


def measure_flops(
    model: nn.Module, forward_fn: Callable[[], Tensor], loss_fn: Callable[[Tensor], Tensor] | None = None
) -> int:
    """Floating-point operations of a forward pass, and of the backward pass too where `loss_fn` is given.

    Args:
        model: Without effect; what `forward_fn` runs is counted.
        forward_fn: Runs the model.
        loss_fn: Makes a loss of its output.
    """
    from torch.utils.flop_counter import FlopCounterMode

    counter: Any = FlopCounterMode(display=False)
    with counter:
        output = forward_fn()
        if loss_fn is not None:
            loss: Any = loss_fn(output)
            torch.autograd.backward(loss)
    return int(counter.get_total_flops())
