"""Checkpoints of strategies whose parameters are spread over ranks: one file, or a directory of shards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from fulgur.checkpoint.io import AsyncCheckpointIO, CheckpointIO, TorchCheckpointIO
from fulgur.checkpoint.location import is_sharded
from fulgur.checkpoint.sharded import SHARDED_PARTS
from fulgur.errors import CheckpointError, MisconfigurationException
from fulgur.strategies.distributed_state import (
    OwnLayout,
    gather_state,
    load_into_module,
    load_into_optimizer,
    names_by_optimizer,
)
from fulgur.strategies.strategy import Strategy

if TYPE_CHECKING:
    from fulgur.checkpoint.sharded_read import Layout


class ShardedFiles(Strategy):
    """The part of a strategy that saves and loads distributed parameters.

    Attributes:
        saves_shards: Whether checkpoints are directories to which each rank writes its part.
    """

    saves_shards: bool

    def model_state(self, module: nn.Module) -> dict[str, Any]:
        state = module.state_dict()
        return state if self.saves_shards else gather_state(state, is_kept=self.is_global_zero)

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        state: dict[str, Any] = optimizer.state_dict()
        return state if self.saves_shards else gather_state(state, is_kept=self.is_global_zero)

    def load_model_state(self, module: nn.Module, state: Mapping[str, Any], *, strict: bool = True) -> Any:
        return load_into_module(module, state, strict=strict)

    def load_optimizer_state(self, optimizer: Any, state: Mapping[str, Any]) -> None:
        load_into_optimizer(optimizer, state)

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        filepath: Any,
        storage_options: Any = None,
        *,
        checkpoint_io: CheckpointIO | None = None,
    ) -> None:
        if not self.saves_shards:
            super().save_checkpoint(checkpoint, filepath, storage_options, checkpoint_io=checkpoint_io)
            return
        from fulgur.checkpoint.sharded_write import save_sharded

        if storage_options is not None:
            raise TypeError(
                f"storage_options={storage_options!r} is for URLs, and sharded checkpoints are written to disks."
            )
        writer = checkpoint_io or self.checkpoint_io
        inner = writer.checkpoint_io if isinstance(writer, AsyncCheckpointIO) else writer
        if type(inner) is not TorchCheckpointIO:
            raise MisconfigurationException(
                f"{type(inner).__name__} writes files from one rank, and this strategy saves shards. Leave the plugin "
                "out, or save one file: state_dict_type='full' (save_distributed_checkpoint=False)."
            )
        is_of_trainer = self.lightning_module is not None
        save_sharded(  # all ranks must reach this
            checkpoint,
            filepath,
            self,
            parameters=names_by_optimizer(self.lightning_module, self.optimizers) if is_of_trainer else {},
            parts=SHARDED_PARTS if is_of_trainer else list(checkpoint),
            background=writer if isinstance(writer, AsyncCheckpointIO) else None,
        )

    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None, *, layout: Layout | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint; of a sharded one each rank reads its part. All ranks must reach this.

        Args:
            checkpoint_path: A file or a directory of shards.
            weights_only: As for `fulgur.checkpoint.load.load_checkpoint`.
            layout: Says of each tensor which part of it is wanted. None: that of the Trainer's module and optimizers.
        """
        if not is_sharded(checkpoint_path):
            return super().load_checkpoint(checkpoint_path, weights_only=weights_only)
        from fulgur.checkpoint.sharded_read import load_sharded, verify_sharded

        if isinstance(self.checkpoint_io, AsyncCheckpointIO):
            self.checkpoint_io.wait()
        share = slice(self.global_rank, None, self.world_size)
        verdicts = self.all_gather_object(verify_sharded(checkpoint_path, share=share))  # all ranks must reach this
        for verdict in verdicts:
            if not verdict.is_usable:
                raise CheckpointError(f"{str(checkpoint_path)!r} {verdict.reason}. Use another checkpoint.")
        if layout is None and self.lightning_module is not None:
            layout = OwnLayout(self.lightning_module)
        return load_sharded(checkpoint_path, weights_only=weights_only, layout=layout, is_verified=True)
