"""LearningRateFinder: a learning rate range test at the beginning of a fit, or wherever a subclass wants one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fulgur.errors import MisconfigurationException
from fulgur.hooks import Callback
from fulgur.rank import rank_zero_info
from fulgur.tuner.attributes import Attribute, find_attribute
from fulgur.tuner.lr_finder import LRFinder, check_rates, find_lr, start_from

if TYPE_CHECKING:
    from fulgur.module import LightningModule
    from fulgur.trainer import Trainer


class LearningRateFinder(Callback):
    """Find a learning rate before training begins, and train with it.

    Trains for `num_training_steps` with a rate that rises from `min_lr` to `max_lr`, takes the one at which the loss
    fell fastest, and puts everything else back to the same bits. A resumed run keeps the rate that was found first. To
    look for another one later, override `on_fit_start` to do nothing and call `lr_find` from another hook. All ranks
    take part and find the same. Does nothing under ``fast_dev_run``.

    Args:
        min_lr, max_lr: The range. 0 < min_lr < max_lr.
        num_training_steps: Steps of the optimizer. >= 1.
        mode: "exponential" multiplies the rate in each step, "linear" adds to it.
        early_stop_threshold: End once the smoothed loss is more than this many times the best one; None never.
        update_attr: Whether the module's (and datamodule's) attribute or hyperparameter is set, and with it the
            optimizer. If not, the result is only kept in `optimal_lr`.
        attr_name: Its name; "" means ``lr``, or else ``learning_rate``.

    Attributes:
        optimal_lr: What was measured, with ``suggestion()`` and ``plot()``; None before.

    Raises:
        ValueError: A value is out of range.

    Source:
        Smith, arXiv:1506.01186, section 3.3.
    """

    is_tuner = True

    def __init__(
        self,
        min_lr: float = 1e-8,
        max_lr: float = 1,
        num_training_steps: int = 100,
        mode: str = "exponential",
        early_stop_threshold: float | None = 4.0,
        update_attr: bool = True,
        attr_name: str = "",
    ) -> None:
        check_rates(min_lr, max_lr, num_training_steps, mode)
        self._min_lr, self._max_lr, self._num_training_steps = min_lr, max_lr, num_training_steps
        self._mode, self._early_stop_threshold = mode, early_stop_threshold
        self._update_attr, self._attr_name = update_attr, attr_name
        self.optimal_lr: LRFinder | None = None
        self._found: float | None = None

    def lr_find(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look for a rate now, at the beginning of a fit or of an epoch, and take it. All ranks must reach this.

        Raises:
            MisconfigurationException: The module optimizes manually, has not one optimizer, or no such attribute.
        """
        attribute = self._attribute(trainer, pl_module)
        with trainer.trial() as trial:
            self.optimal_lr = find_lr(
                trial,
                min_lr=self._min_lr,
                max_lr=self._max_lr,
                num_training=self._num_training_steps,
                mode=self._mode,
                early_stop_threshold=self._early_stop_threshold,
            )
        self._found = self.optimal_lr.suggestion()
        if attribute is not None and self._found is not None:
            attribute.set(self._found)
            start_from(self._found, trainer.optimizers, trainer.lr_scheduler_configs)
            rank_zero_info(f"Learning rate set to {self._found}.")

    def _attribute(self, trainer: Trainer, pl_module: LightningModule) -> Attribute | None:
        return find_lr_attribute(self._attr_name, [pl_module, trainer.datamodule]) if self._update_attr else None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.fast_dev_run:
            rank_zero_info("fast_dev_run: no learning rate is looked for.")
            return
        if trainer.ckpt_path is None or self._found is None:
            self.lr_find(trainer, pl_module)
            return
        attribute = self._attribute(trainer, pl_module)
        if attribute is not None:  # the optimizer's is in the checkpoint
            attribute.set(self._found)

    def state_dict(self) -> dict[str, Any]:
        return {"found": self._found}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._found = state_dict["found"]


def find_lr_attribute(name: str, owners: list[Any]) -> Attribute:
    """Where the learning rate is kept.

    Raises:
        MisconfigurationException: Nowhere; it is an AttributeError, too.
    """
    found = find_attribute((name,) if name else ("lr", "learning_rate"), owners)
    if found is None:
        where = " or ".join(type(owner).__name__ for owner in owners if owner is not None)
        wanted = repr(name) if name else "'lr' or 'learning_rate'"
        raise NoLearningRateError(
            f"{where} has no attribute or hyperparameter {wanted} for the learning rate that is found. Add one and use "
            "it in configure_optimizers, name yours with attr_name, or pass update_attr=False."
        )
    return found


class NoLearningRateError(MisconfigurationException, AttributeError):
    """Nothing holds the learning rate that is to be set."""
