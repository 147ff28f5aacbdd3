"""One process, one device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fulgur.checkpoint.io import CheckpointIO
from fulgur.strategies.strategy import Strategy


class SingleDeviceStrategy(Strategy):
    """Train in this process on one device.

    Args:
        device: Where. A `torch.device` or its name.
        accelerator, precision_plugin: Those of the Trainer; None takes what the Trainer is given.
        checkpoint_io: Writes and reads checkpoints; None is the default one.
    """

    def __init__(
        self,
        device: torch.device | str = "cpu",
        accelerator: Any = None,
        checkpoint_io: CheckpointIO | None = None,
        precision_plugin: Any = None,
    ) -> None:
        super().__init__(accelerator, checkpoint_io, precision_plugin)
        self._root_device = torch.device(device)

    @property
    def root_device(self) -> torch.device:
        return self._root_device

    def teardown(self) -> None:
        """Move module and optimizer state to the host, so that the accelerator's memory is free."""
        move_to_host(self)

    def barrier(self, name: str | None = None) -> None:
        return

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        return obj

    def reduce(self, tensor: Any, group: Any = None, reduce_op: str = "mean") -> Any:
        return tensor

    def all_gather(self, tensor: Tensor, group: Any = None, sync_grads: bool = False) -> Tensor:
        return tensor


def move_to_host(strategy: Strategy) -> None:
    """Move the module and the state of its optimizers off the accelerator."""
    if strategy.root_device.type == "cpu" or strategy.lightning_module is None:
        return
    strategy.lightning_module.cpu()
    for optimizer in strategy.optimizers:
        for state in optimizer.state.values():
            for key, value in state.items() if isinstance(state, dict) else ():
                if isinstance(value, Tensor):
                    state[key] = value.cpu()
