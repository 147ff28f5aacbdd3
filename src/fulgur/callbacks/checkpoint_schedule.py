"""When a `ModelCheckpoint` is due: intervals of time, epochs, and the validation that may follow a batch."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from fulgur.trainer import Trainer

Method = TypeVar("Method", bound=Callable[..., Any])


class IntervalClock:
    """Tells when the interval since the last save is over, the same on all ranks: the first clock counts.

    Args:
        interval: Time between two saves. ``None`` is never over.
    """

    __slots__ = ("interval_s", "started_at")

    def __init__(self, interval: timedelta | None) -> None:
        self.interval_s = float("inf") if interval is None else interval.total_seconds()
        self.restart()

    def restart(self) -> None:
        """Begin an interval now."""
        self.started_at = monotonic()

    def is_due(self, trainer: Trainer, name: str) -> bool:
        """Whether the interval is over. All ranks must call it after each batch.

        Args:
            trainer: Of the run.
            name: Tells this clock from those of other callbacks.
        """
        is_over = monotonic() - self.started_at >= self.interval_s
        return trainer.agree(f"save {name}", is_over)


def is_epoch_due(trainer: Trainer, every_n_epochs: int) -> bool:
    """Whether the running epoch is one to save at the end of. 0 is never."""
    return every_n_epochs >= 1 and (trainer.current_epoch + 1) % every_n_epochs == 0


def saves_on_train_epoch_end(trainer: Trainer, choice: bool | None) -> bool:
    """Whether an epoch's save belongs to the end of training rather than of validation.

    Args:
        trainer: Of the run.
        choice: What the user has said. ``None``: validation, where it does not run exactly once an epoch.
    """
    if choice is not None:
        return choice
    if not isinstance(trainer.val_check_interval, (int, float)) or trainer.check_val_every_n_epoch != 1:
        return False
    return not has_validation(trainer) or trainer.val_check_interval == 1.0


def has_validation(trainer: Trainer) -> bool:
    """Whether the run validates at all."""
    return bool(trainer.enable_validation) and sum(trainer.num_val_batches) > 0


def validation_follows(trainer: Trainer, batch_idx: int) -> bool:
    """Whether validation runs right after this training batch, as far as can be told from outside."""
    every_n_epochs, every_n_batches = trainer.check_val_every_n_epoch, trainer.val_check_batch
    if not trainer.enable_validation or every_n_epochs is None or (trainer.current_epoch + 1) % every_n_epochs:
        return False
    if not isinstance(every_n_batches, int):
        return bool(trainer.is_last_batch)
    return (batch_idx + 1) % every_n_batches == 0


def not_counted_as_override(base: Callable[..., Any]) -> Callable[[Method], Method]:
    """Make `fulgur.hooks.overrides` see a method as the base's own.

    The loop then calls it only for an instance that asks for it, while a subclass that overrides it can still call
    ``super()``.
    """

    def mark(method: Method) -> Method:
        method.__wrapped__ = base  # type: ignore[attr-defined]
        return method

    return mark
