"""Precision of models that `FSDPStrategy` cuts into parts."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fulgur.precision.build import build_precision
from fulgur.precision.precision import Precision

if TYPE_CHECKING:
    from torch.distributed.fsdp import MixedPrecisionPolicy


class FSDPPrecision(Precision):
    """The precision of this name, said as a plugin: the same as ``Trainer(precision=...)`` with `FSDPStrategy`.

    Args:
        precision: ``"32-true"``, ``"bf16-true"``, ``"16-true"``, ``"bf16-mixed"`` or ``"16-mixed"`` (CUDA only).
        scaler: Scaler of the loss, with ``"16-mixed"`` only. None builds torch's with its usual settings.

    Raises:
        ValueError: The name is unknown, is ``"64-true"``, or is given a scaler that it has no use for.
    """

    def __init__(self, precision: Any, scaler: torch.amp.GradScaler | None = None) -> None:
        self._own = build_precision(precision, "cuda" if torch.cuda.is_available() else "cpu")
        self.name, self.input_dtype = self._own.name, self._own.input_dtype
        if self.name == "64-true":
            raise ValueError(f"FSDPPrecision({precision!r}): use DoublePrecision(), or a precision of 16 or 32 bits.")
        if scaler is not None and self._own.scaler is None:
            raise ValueError(f"FSDPPrecision({precision!r}) scales no loss. Leave out the scaler.")
        self.scaler = scaler or self._own.scaler

    @property
    def mixed_precision_config(self) -> MixedPrecisionPolicy:
        """In which formats units gather their parameters, and reduce their gradients."""
        from torch.distributed.fsdp import MixedPrecisionPolicy

        dtypes = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
        if self.name not in dtypes:
            return MixedPrecisionPolicy()
        return MixedPrecisionPolicy(param_dtype=dtypes[self.name], reduce_dtype=torch.float32)

    def convert_module(self, module: nn.Module) -> nn.Module:
        """Bring the weights into their format, in place."""
        return self._own.convert_module(module)

    def step_context(self) -> AbstractContextManager[Any] | None:
        """A context for the steps of a module; None where there is nothing to do."""
        return self._own.step_context()

    def init_context(self) -> AbstractContextManager[Any]:
        """A context in which a model is built with weights of the right format."""
        return self._own.init_context()

    def state_dict(self) -> dict[str, Any]:
        """State of the scaler, if there is one."""
        return {} if self.scaler is None else self.scaler.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Give the scaler its state back."""
        if self.scaler is not None and state_dict:
            self.scaler.load_state_dict(state_dict)
