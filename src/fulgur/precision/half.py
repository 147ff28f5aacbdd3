"""Half precision for weights, inputs and everything made in a step."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import nn

from fulgur.precision.precision import DefaultDtype, Precision


class HalfPrecision(Precision):
    """``"bf16-true"`` and ``"16-true"``: weights, floating-point inputs and new tensors have 16 bits.

    Args:
        precision: ``"bf16-true"`` for bfloat16, ``"16-true"`` for float16.
    """

    def __init__(self, precision: Literal["bf16-true", "16-true"] = "16-true") -> None:
        self.name = precision
        self.input_dtype = torch.bfloat16 if precision == "bf16-true" else torch.float16

    def convert_module(self, module: nn.Module) -> nn.Module:
        """Cast the floating-point parameters and buffers to 16 bits."""
        return module.bfloat16() if self.input_dtype is torch.bfloat16 else module.half()

    def step_context(self) -> AbstractContextManager[Any]:
        """The 16-bit type as the default dtype."""
        return self.init_context()

    def init_context(self) -> AbstractContextManager[Any]:
        """The 16-bit type as the default dtype."""
        assert self.input_dtype is not None
        return DefaultDtype(self.input_dtype)
