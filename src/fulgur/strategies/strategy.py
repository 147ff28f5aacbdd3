"""Strategy: the processes of a run, their devices, and what they say to each other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fulgur.checkpoint.io import CheckpointIO, TorchCheckpointIO
from fulgur.errors import CheckpointError


class Strategy(ABC):
    """How a model is placed on one or many processes. Subclass to add one.

    A strategy is given the module and returns what the loops call; it does not know the Trainer.

    Attributes:
        model: What the steps run through: the module, or a wrapper around it. None before `setup_module`.
        lightning_module: The bare module.
        optimizers: Set by the run, for user code that looks here.
        lr_scheduler_configs: Likewise.
        checkpoint_io: Writes, reads and deletes checkpoints; a plugin of the Trainer may take its place.
    """

    def __init__(self) -> None:
        self.model: nn.Module | None = None
        self.lightning_module: Any = None
        self.optimizers: list[Any] = []
        self.lr_scheduler_configs: list[Any] = []
        self.checkpoint_io: CheckpointIO = TorchCheckpointIO()

    # ------------------------------------------------------------------------------------------- the processes

    @property
    @abstractmethod
    def root_device(self) -> torch.device:
        """Device of this process."""

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return 1

    @property
    def global_rank(self) -> int:
        """Rank among all processes."""
        return 0

    @property
    def local_rank(self) -> int:
        """Rank among the processes of this machine."""
        return 0

    @property
    def node_rank(self) -> int:
        """Index of this machine."""
        return 0

    @property
    def is_global_zero(self) -> bool:
        """Whether this process writes files and prints."""
        return self.global_rank == 0

    # ------------------------------------------------------------------------------------------------ the model

    @abstractmethod
    def setup_module(self, module: Any) -> nn.Module:
        """Place `module` on the device and wrap it. Returns what is kept as `model`."""

    def wrap_step(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """`step`, a method of the module, routed through the wrapper that synchronises gradients."""
        return step

    def set_grad_sync(self) -> Callable[[bool], None] | None:
        """A function that turns gradient reduction on or off; None where there is nothing to reduce."""
        return None

    def teardown(self) -> None:
        """Take the module off the device, and leave the process as it was found."""

    # --------------------------------------------------------------------------------------- talking to each other

    @abstractmethod
    def barrier(self, name: str | None = None) -> None:
        """Wait until all ranks are here."""

    @abstractmethod
    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """`obj` of rank `src`, on all ranks."""

    @abstractmethod
    def reduce(self, tensor: Any, group: Any = None, reduce_op: str = "mean") -> Any:
        """`tensor` reduced over all ranks."""

    @abstractmethod
    def all_gather(self, tensor: Tensor, group: Any = None, sync_grads: bool = False) -> Tensor:
        """`tensor` of all ranks, stacked along a new first dimension; unchanged on one process."""

    def all_gather_nested(self, data: Any, group: Any = None, sync_grads: bool = False) -> Any:
        """`all_gather` of every tensor in a nesting of lists, tuples and dicts."""
        if self.world_size == 1:
            return data
        if isinstance(data, Tensor):
            return self.all_gather(data, group, sync_grads)
        if isinstance(data, dict):
            return type(data)((k, self.all_gather_nested(v, group, sync_grads)) for k, v in data.items())
        if isinstance(data, (list, tuple)):
            return type(data)(self.all_gather_nested(v, group, sync_grads) for v in data)
        return data

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        """Whether all ranks (or, with ``all=False``, any) decided for it."""
        if self.world_size == 1:
            return bool(decision)
        votes = int(self.reduce(torch.tensor(int(decision), device=self.root_device), reduce_op="sum"))
        return votes == self.world_size if all else votes > 0

    # ------------------------------------------------------------------------------------------------- files

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        filepath: Any,
        storage_options: Any = None,
        *,
        checkpoint_io: CheckpointIO | None = None,
    ) -> None:
        """Write a checkpoint from rank 0. All ranks must call it, and all get the error if it fails.

        Args:
            checkpoint: What to write.
            filepath: Path or URL.
            storage_options: For the `CheckpointIO`.
            checkpoint_io: What to write with. ``None`` is the one that is also read with.
        """
        failure: CheckpointError | None = None
        if self.is_global_zero:
            try:
                (checkpoint_io or self.checkpoint_io).save_checkpoint(
                    checkpoint, filepath, storage_options=storage_options
                )
            except CheckpointError as error:
                failure = error
        failure = self.broadcast(failure)  # all ranks must reach this
        if failure is not None:
            raise failure

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint into host memory."""
        trust = {} if weights_only is None else {"weights_only": weights_only}
        return self.checkpoint_io.load_checkpoint(checkpoint_path, map_location="cpu", **trust)

    def remove_checkpoint(self, filepath: Any) -> None:
        """Delete a checkpoint, from rank 0."""
        if self.is_global_zero:
            self.checkpoint_io.remove_checkpoint(filepath)
