"""Layers that see the batches of all ranks in training: a plugin of the Trainer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import nn

from fulgur.strategies.batch_norm import Replaced, restore_batch_norms, share_batch_norms


class LayerSync(ABC):
    """Replaces layers before training on several processes, and puts them back afterwards. Subclass to add one."""

    @abstractmethod
    def apply(self, model: nn.Module) -> nn.Module:
        """Replace layers within `model`, and return it."""

    @abstractmethod
    def revert(self, model: nn.Module) -> nn.Module:
        """Put back what `apply` replaced, with the values that it has learned, and return `model`."""


class TorchSyncBatchNorm(LayerSync):
    """Batch norm over the batches of all ranks: what ``Trainer(sync_batchnorm=True)`` asks for."""

    def __init__(self) -> None:
        self._replaced: Replaced = []

    def apply(self, model: nn.Module) -> nn.Module:
        """Replace the batch norm layers within `model`; parameters and buffers are kept."""
        parameter: Any = next(model.parameters(), None)
        if parameter is not None:
            self._replaced = share_batch_norms(model, parameter.device)
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Put the layers back, with the parameters and buffers of those in their place."""
        restore_batch_norms(self._replaced)
        self._replaced = []
        return model
