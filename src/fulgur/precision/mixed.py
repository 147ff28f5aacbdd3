"""Mixed precision: float32 weights, 16-bit arithmetic where torch holds it to be safe."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import nn

from fulgur.errors import MisconfigurationException
from fulgur.precision.precision import Precision

# torch < 2.11: a weight first cast under no_grad stays in autocast's cache without its gradient (pytorch#158232), so
# the cache is off there; drop when the minimum is 2.11. None leaves torch's own setting.
_TORCH_VERSION = tuple(int(part) for part in torch.__version__.split(".")[:2])
_CACHE_ENABLED = None if _TORCH_VERSION >= (2, 11) else False


class MixedPrecision(Precision):
    """``"bf16-mixed"`` and ``"16-mixed"``: steps run under autocast, weights stay float32.

    Args:
        precision: ``"bf16-mixed"`` for bfloat16, ``"16-mixed"`` for float16 with a scaled loss.
        device: Device type that the steps run on: ``"cpu"``, ``"cuda"`` or ``"mps"``.
        scaler: Scaler of the loss, with ``"16-mixed"`` only. None builds torch's with its usual settings.

    Raises:
        MisconfigurationException: ``"16-mixed"`` on a device other than CUDA, or a scaler with ``"bf16-mixed"``.
    """

    def __init__(
        self,
        precision: Literal["16-mixed", "bf16-mixed"],
        device: str,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        device_type = device.partition(":")[0]
        if precision == "16-mixed" and device_type != "cuda":
            raise MisconfigurationException(
                f"precision='16-mixed' needs CUDA; this run uses {device_type}. "
                "Use precision='bf16-mixed', or accelerator='cuda'."
            )
        if precision == "bf16-mixed" and scaler is not None:
            raise MisconfigurationException(
                f"precision='bf16-mixed' takes no scaler, got {scaler!r}. bfloat16 has the range of float32: "
                "leave the scaler out."
            )
        self.name = precision
        self.scaler = (scaler or torch.amp.GradScaler("cuda")) if precision == "16-mixed" else None
        self._device_type = device_type
        self._dtype = torch.bfloat16 if precision == "bf16-mixed" else torch.float16

    def convert_module(self, module: nn.Module) -> nn.Module:
        """Leave the weights alone."""
        return module

    def step_context(self) -> AbstractContextManager[Any]:
        """Autocast for this device."""
        return torch.autocast(self._device_type, dtype=self._dtype, cache_enabled=_CACHE_ENABLED)

    def init_context(self) -> AbstractContextManager[Any]:
        """A context that does nothing: the weights are float32."""
        return nullcontext()

    def state_dict(self) -> dict[str, Any]:
        """State of the scaler, if there is one. Waits for the device."""
        return {} if self.scaler is None else self.scaler.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Give the scaler its state back."""
        if self.scaler is not None and state_dict:
            self.scaler.load_state_dict(state_dict)
