"""Walking through nested data."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor


def apply_to_collection(
    data: Any, dtype: Any, function: Callable[..., Any], *args: Any, wrong_dtype: Any = None, **kwargs: Any
) -> Any:
    """`data` with ``function(value, *args, **kwargs)`` in the place of each value of type `dtype`.

    Args:
        data: A value, or dicts, lists, tuples and dataclasses of them, nested.
        dtype: A type or a tuple of types.
        function: What to do with each.
        *args: After the value.
        wrong_dtype: Types that are left alone although they are of `dtype`.
        **kwargs: For `function`.
    """

    def walk(value: Any) -> Any:
        if isinstance(value, dtype) and not (wrong_dtype is not None and isinstance(value, wrong_dtype)):
            return function(value, *args, **kwargs)
        if isinstance(value, Mapping):
            items = [(key, walk(item)) for key, item in value.items()]
            if isinstance(value, defaultdict):
                return defaultdict(value.default_factory, items)
            return type(value)(items)  # type: ignore[call-arg]
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(walk, value))
        if isinstance(value, (list, tuple)):
            return type(value)(map(walk, value))
        if is_dataclass(value) and not isinstance(value, type):
            import copy

            result = copy.copy(value)
            for field in fields(value):
                object.__setattr__(result, field.name, walk(getattr(value, field.name)))
            return result
        return value

    return walk(data)


def convert_to_tensors(data: Any, device: torch.device) -> Any:
    """Numbers, bools, arrays and tensors in `data`, as tensors on `device`."""
    converted = apply_to_collection(data, (bool, int, float), lambda value: torch.tensor(value, device=device))
    import sys

    numpy = sys.modules.get("numpy")
    if numpy is not None:
        converted = apply_to_collection(converted, numpy.ndarray, torch.from_numpy)
    return apply_to_collection(converted, Tensor, lambda tensor: tensor.to(device).contiguous())


def convert_tensors_to_scalars(data: Any) -> Any:
    """Tensors in `data` as numbers. Waits for the device.

    Raises:
        ValueError: A tensor has more than one element.
    """

    def scalar(tensor: Tensor) -> Any:
        if tensor.numel() != 1:
            raise ValueError(f"A tensor of shape {tuple(tensor.shape)} is no number; it has {tensor.numel()} elements.")
        return tensor.item()  # waits for the device

    return apply_to_collection(data, Tensor, scalar)
