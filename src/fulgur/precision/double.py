"""Double precision for weights, inputs and everything made in a step."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from fulgur.precision.precision import DefaultDtype, Precision


class DoublePrecision(Precision):
    """``"64-true"``: weights, floating-point inputs and new tensors are float64."""

    name = "64-true"
    input_dtype = torch.float64

    def convert_module(self, module: nn.Module) -> nn.Module:
        """Cast the floating-point parameters and buffers to float64."""
        return module.double()

    def step_context(self) -> AbstractContextManager[Any]:
        """float64 as the default dtype."""
        return DefaultDtype(torch.float64)

    def init_context(self) -> AbstractContextManager[Any]:
        """float64 as the default dtype."""
        return DefaultDtype(torch.float64)
