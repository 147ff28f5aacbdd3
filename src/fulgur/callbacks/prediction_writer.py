"""Base of callbacks that store predictions."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any

from fulgur.errors import MisconfigurationException
from fulgur.hooks import Callback, overrides

if TYPE_CHECKING:
    from fulgur.module import LightningModule
    from fulgur.trainer import Trainer


class WriteInterval(str, Enum):
    """When a `BasePredictionWriter` writes."""

    BATCH = "batch"
    EPOCH = "epoch"
    BATCH_AND_EPOCH = "batch_and_epoch"

    @property
    def on_batch(self) -> bool:
        """Whether each batch is written."""
        return self is not WriteInterval.EPOCH

    @property
    def on_epoch(self) -> bool:
        """Whether all predictions are written at the end."""
        return self is not WriteInterval.BATCH


class BasePredictionWriter(Callback):
    """Store predictions as they come, at the end, or both. Override the methods for the interval you choose.

    On several ranks each rank writes its own share: put the rank into file names.

    Args:
        write_interval: ``"batch"``, ``"epoch"`` or ``"batch_and_epoch"``.

    Raises:
        MisconfigurationException: `write_interval` is none of these.
        NotImplementedError: At `setup`, if the method that the interval needs is not overridden, or the module's
            `predict_step` takes a ``dataloader_iter``, which leaves the samples of a batch unknown.

    Example:
        >>> class SaveEachBatch(BasePredictionWriter):
        ...     def write_on_batch_end(self, trainer, pl_module, prediction, batch_indices, *args):
        ...         torch.save(prediction, f"rank{trainer.global_rank}_{batch_indices[0]}.pt")
    """

    def __init__(self, write_interval: str = "batch") -> None:
        try:
            self.interval = WriteInterval(write_interval)
        except ValueError:
            known = ", ".join(repr(interval.value) for interval in WriteInterval)
            raise MisconfigurationException(f"write_interval={write_interval!r} is not one of {known}.") from None

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """After each batch. Override to store one prediction.

        Args:
            trainer: The running Trainer.
            pl_module: The module that predicts.
            prediction: What `predict_step` returned.
            batch_indices: Positions in the dataset of this batch's samples; ``None`` if the loader does not tell.
            batch: The batch, on the device.
            batch_idx: Index of the batch within its loader.
            dataloader_idx: Index of the loader.
        """
        raise NotImplementedError(self._missing("write_on_batch_end"))

    def write_on_epoch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        predictions: Sequence[Any],
        batch_indices: Sequence[Any],
    ) -> None:
        """After the last batch. Override to store all predictions.

        Args:
            trainer: The running Trainer.
            pl_module: The module that predicts.
            predictions: Prediction of each batch, on the CPU; one such list for each loader if there are several.
            batch_indices: Dataset positions by loader, batch and sample.
        """
        raise NotImplementedError(self._missing("write_on_epoch_end"))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "predict":
            return
        for name, is_needed in (
            ("write_on_batch_end", self.interval.on_batch),
            ("write_on_epoch_end", self.interval.on_epoch),
        ):
            if is_needed and not overrides(self, name, BasePredictionWriter):
                raise NotImplementedError(self._missing(name))
        if _takes_iterator(pl_module.predict_step):
            raise NotImplementedError(
                f"{type(self).__name__} needs to know the samples of each batch, and predict_step(dataloader_iter) "
                "hides them. Use predict_step(batch, batch_idx)."
            )

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self.interval.on_batch:
            indices = trainer.predict_loop.current_batch_indices
            self.write_on_batch_end(trainer, pl_module, outputs, indices, batch, batch_idx, dataloader_idx)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.interval.on_epoch:
            loop = trainer.predict_loop
            self.write_on_epoch_end(trainer, pl_module, loop.predictions, loop.epoch_batch_indices)

    def _missing(self, method: str) -> str:
        return f"{type(self).__name__} has write_interval={self.interval.value!r}: override `{method}`."


def _takes_iterator(step: Any) -> bool:
    import inspect

    return "dataloader_iter" in inspect.signature(step).parameters
