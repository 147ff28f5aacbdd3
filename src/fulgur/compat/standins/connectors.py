"""What programs take from the parts of the old Trainer."""

from __future__ import annotations

import sys
from typing import Any, Literal

from fulgur.earlier import AcceleratorView

_PRECISION_INPUT = (
    Literal[16, 32, 64]
    | Literal["transformer-engine", "transformer-engine-float16", "16-true", "16-mixed", "bf16-true", "bf16-mixed"]
    | Literal["32-true", "64-true", "64", "32", "16", "bf16"]
)
_OUT_DICT = dict[str, Any]
_IS_INTERACTIVE = hasattr(sys, "ps1")


def _log_device_info(trainer: Any) -> None:
    """Nothing is said about devices that are not used."""


class _AcceleratorConnector(AcceleratorView):
    """What arguments of the Trainer about devices and processes come to. Programs ask it before they make a Trainer."""

    def __init__(self, devices: Any = "auto", num_nodes: int = 1, accelerator: Any = "auto", **arguments: Any) -> None:
        from fulgur.trainer import Trainer

        quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        super().__init__(
            Trainer(
                devices=devices,
                num_nodes=num_nodes,
                accelerator=accelerator,
                enable_model_summary=False,
                **quiet,
                **arguments,
            )
        )
