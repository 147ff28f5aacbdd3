"""Change the number of accumulated batches as epochs go by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fulgur.callbacks.own_engine import has_own_engine
from fulgur.errors import MisconfigurationException
from fulgur.hooks import Callback

if TYPE_CHECKING:
    from fulgur.module import LightningModule
    from fulgur.trainer import Trainer


class GradientAccumulationScheduler(Callback):
    """Set ``trainer.accumulate_grad_batches`` at the start of each epoch.

    Args:
        scheduling: Epoch index (from 0) to the number of batches accumulated from that epoch on. Epoch 0 has 1
            unless it is listed.

    Raises:
        TypeError: `scheduling` is empty.
        MisconfigurationException: An epoch is not an integer of at least 0, or a factor not one of at least 1.
        ValueError: At `setup`, if the Trainer has its own ``accumulate_grad_batches``.
        RuntimeError: At `setup`, if the module uses manual optimization, or the strategy is DeepSpeed's.

    Example:
        >>> scheduler = GradientAccumulationScheduler({4: 2, 8: 4})
        >>> [scheduler.get_accumulate_grad_batches(epoch) for epoch in (0, 4, 7, 20)]
        [1, 2, 2, 4]
    """

    def __init__(self, scheduling: dict[int, int]) -> None:
        _check_scheduling(scheduling)
        self.scheduling = {0: 1, **scheduling}
        self.epochs = sorted(self.scheduling)
        self._has_applied = False

    def going_to_accumulate_grad_batches(self) -> bool:
        """Whether any epoch accumulates more than one batch."""
        return any(factor > 1 for factor in self.scheduling.values())

    def get_accumulate_grad_batches(self, epoch: int) -> int:
        """Batches accumulated in `epoch` (from 0)."""
        return self.scheduling[max(start for start in self.epochs if start <= epoch)]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if not pl_module.automatic_optimization:
            raise RuntimeError(
                "GradientAccumulationScheduler works with automatic optimization; this module has "
                "automatic_optimization=False. Remove the callback and accumulate in `training_step`."
            )
        if has_own_engine(trainer.strategy):
            raise RuntimeError(
                "GradientAccumulationScheduler does not work with DeepSpeed, whose engine accumulates the same number "
                "of batches all along. Use Trainer(accumulate_grad_batches=...), or strategy='ddp' or 'fsdp'."
            )
        if trainer.accumulate_grad_batches != 1:
            raise ValueError(
                f"Trainer(accumulate_grad_batches={trainer.accumulate_grad_batches}) and GradientAccumulationScheduler "
                "both set the accumulation. Keep one of them."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # An epoch resumed midway has no on_train_epoch_start.
        self._apply(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._apply(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._has_applied:
            trainer.accumulate_grad_batches = 1
            self._has_applied = False

    def _apply(self, trainer: Trainer) -> None:
        trainer.accumulate_grad_batches = self.get_accumulate_grad_batches(trainer.current_epoch)
        self._has_applied = True


def _check_scheduling(scheduling: dict[int, int]) -> None:
    if not scheduling:
        raise TypeError(f"scheduling={scheduling!r} is empty. Give at least one epoch, for example {{4: 2}}.")
    for epoch, factor in scheduling.items():
        if not isinstance(epoch, int) or epoch < 0:
            raise MisconfigurationException(
                f"scheduling has the epoch {epoch!r}; epochs are integers from 0 on, for example {{4: 2}}."
            )
        if not isinstance(factor, int) or factor < 1:
            raise MisconfigurationException(
                f"scheduling has {factor!r} batches for epoch {epoch}; give an integer of at least 1."
            )
