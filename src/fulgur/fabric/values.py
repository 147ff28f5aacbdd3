"""Tensors and numbers, nested in lists, tuples and dicts: what users send to other ranks and to loggers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


def map_tensors(data: Any, function: Callable[[Tensor], Any], device: torch.device) -> Any:
    """`data` with ``function(tensor)`` for each tensor, and for each number as a tensor on `device`."""
    if isinstance(data, (bool, int, float)):
        data = torch.tensor(data, device=device)
    if isinstance(data, Tensor):
        return function(data)
    if isinstance(data, Mapping):
        return {key: map_tensors(value, function, device) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        items = [map_tensors(value, function, device) for value in data]
        return type(data)(*items) if hasattr(data, "_fields") else type(data)(items)
    return data


def to_scalar(name: str, value: Any) -> Any:
    """The number in a tensor of one element. Waits for the device.

    Raises:
        ValueError: It has several elements.
    """
    if not isinstance(value, Tensor):
        return value
    if value.numel() != 1:
        raise ValueError(f"log({name!r}, ...) got a tensor of shape {tuple(value.shape)}. Loggers take single numbers.")
    return value.item()  # waits for the device


class WithoutValues(TorchFunctionMode):
    """Context in which modules are made without drawing the initial values of their parameters."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return function(*args, **kwargs)
