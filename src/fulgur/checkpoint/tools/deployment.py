"""A module's weights alone as a safetensors file, and such a file as a checkpoint."""

from __future__ import annotations

import os
from typing import Any

import torch

from fulgur.checkpoint.state import storable_hparams
from fulgur.checkpoint.tools.conversion import build_checkpoint, metadata_of
from fulgur.checkpoint.tools.safetensors_file import SAFETENSORS, read_metadata, read_weights, write_weights
from fulgur.rank import rank_zero_only


def export_weights(module: Any, file_path: str | os.PathLike[str]) -> None:
    """See `LightningModule.to_safetensors`."""
    if not os.fspath(file_path).endswith(SAFETENSORS):
        raise ValueError(f"to_safetensors({os.fspath(file_path)!r}): a file of this format ends in {SAFETENSORS!r}.")
    is_first = rank_zero_only.rank == 0
    weights = module.state_dict()
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if distributed:
        from fulgur.strategies.distributed_state import gather_state

        weights = gather_state(weights, is_kept=is_first)  # all ranks must reach this
    if is_first:
        content: dict[str, Any] = {}
        if module.hparams:
            content[module.CHECKPOINT_HYPER_PARAMS_NAME] = getattr(module, "_hparams_name", None)
            content[module.CHECKPOINT_HYPER_PARAMS_KEY] = storable_hparams(module)[0]
        write_weights(weights, os.fspath(file_path), metadata=metadata_of(content)[0])
    if distributed:
        torch.distributed.barrier()


def load_exported(path: str, map_location: Any = None) -> dict[str, Any]:
    """A checkpoint without anything but the weights, and the hyperparameters that the file tells.

    Raises:
        CheckpointError: The file is damaged.
        MissingExtraError: The package safetensors is not installed.
    """
    weights = read_weights(path)
    if isinstance(map_location, (str, torch.device)):
        weights = {name: tensor.to(map_location) for name, tensor in weights.items()}
    return build_checkpoint(weights, read_metadata(path))
