"""Single precision: everything is left as the user made it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import nn

from fulgur.precision.precision import Precision


class FullPrecision(Precision):
    """``"32-true"``: weights and inputs as they come."""

    name = "32-true"

    def convert_module(self, module: nn.Module) -> nn.Module:
        """Leave the weights alone."""
        return module

    def step_context(self) -> None:
        """None: there is nothing to do."""
        return None

    def init_context(self) -> AbstractContextManager[Any]:
        """A context that does nothing."""
        return nullcontext()
