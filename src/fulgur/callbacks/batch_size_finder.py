"""BatchSizeFinder: the largest batch size that fits into memory, at the beginning of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fulgur.errors import MisconfigurationException
from fulgur.hooks import Callback
from fulgur.rank import rank_zero_info
from fulgur.tuner.attributes import Attribute, find_attribute
from fulgur.tuner.batch_size import check_search, find_batch_size, free_memory

if TYPE_CHECKING:
    from fulgur.module import LightningModule
    from fulgur.trainer import Trainer


class BatchSizeFinder(Callback):
    """Find the largest batch size that fits into memory, and go on with it.

    Runs a few steps with each size, and puts everything but the size back to the same bits. Works at the beginning of
    `fit`, `validate`, `test` and `predict`. A resumed fit keeps the size that was found first. To look for another one
    later, override `on_fit_start` to do nothing and call `scale_batch_size` from another hook. On several ranks each
    tries by itself, and what is too much for one is too much for all. Does nothing under ``fast_dev_run``.

    Args:
        mode: "power" doubles until memory is at its end. "binsearch" then halves the range in between, and leaves
            `margin`.
        steps_per_trial: Steps, or batches of an evaluation, with each size. >= 1.
        init_val: The first size. >= 1.
        max_trials: Sizes tried at most. >= 1.
        batch_arg_name: Attribute or hyperparameter of module or datamodule that their loaders are made with.
        margin: Fraction by which "binsearch" stays below what fits. 0 to 1, without 1.
        max_val: Largest size that is tried, as is the length of the dataset.

    Attributes:
        optimal_batch_size: What was found; before, `init_val`.

    Raises:
        ValueError: A value is out of range.
    """

    is_tuner = True

    def __init__(
        self,
        mode: str = "power",
        steps_per_trial: int = 3,
        init_val: int = 2,
        max_trials: int = 25,
        batch_arg_name: str = "batch_size",
        margin: float = 0.05,
        max_val: int = 8192,
    ) -> None:
        check_search(mode, steps_per_trial, init_val, max_trials, margin)
        self._mode, self._steps_per_trial, self._init_val = mode, steps_per_trial, init_val
        self._max_trials, self._batch_arg_name = max_trials, batch_arg_name
        self._margin, self._max_val = margin, max_val
        self.optimal_batch_size: int | None = init_val
        self._has_found = False

    def scale_batch_size(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look for a size now, at the beginning of a run or of an epoch, and take it. All ranks must reach this.

        Raises:
            MisconfigurationException: The loaders were passed as such, are several, or have no attribute to be made
                with; or the ranks cannot try by themselves.
            RuntimeError: One sample is too much for the memory.
        """
        attribute = find_batch_size_attribute(self._batch_arg_name, [pl_module, trainer.datamodule])
        with trainer.trial() as trial:
            size = find_batch_size(
                trial,
                attribute=attribute,
                mode=self._mode,
                steps_per_trial=self._steps_per_trial,
                init_val=self._init_val,
                max_trials=self._max_trials,
                margin=self._margin,
                max_val=self._max_val,
            )
        self.optimal_batch_size, self._has_found = size, True
        attribute.set(size)
        free_memory()
        trial.load_anew()
        rank_zero_info(f"Batch size set to {size}.")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.ckpt_path is not None and self._has_found:
            find_batch_size_attribute(self._batch_arg_name, [pl_module, trainer.datamodule]).set(
                self.optimal_batch_size
            )
            trainer.trial().load_anew()
        else:
            self._scale(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._scale(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._scale(trainer, pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._scale(trainer, pl_module)

    def _scale(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.fast_dev_run:
            rank_zero_info("fast_dev_run: no batch size is looked for.")
        else:
            self.scale_batch_size(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {"optimal_batch_size": self.optimal_batch_size, "has_found": self._has_found}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.optimal_batch_size, self._has_found = state_dict["optimal_batch_size"], state_dict["has_found"]


def find_batch_size_attribute(name: str, owners: list[Any]) -> Attribute:
    """Where the batch size is kept.

    Raises:
        MisconfigurationException: Nowhere.
    """
    found = find_attribute((name,), owners)
    if found is None:
        where = " or ".join(type(owner).__name__ for owner in owners if owner is not None)
        raise MisconfigurationException(
            f"{where} has no attribute or hyperparameter {name!r} to set the batch size with. Add one and make the "
            "loaders with it, or name yours with batch_arg_name."
        )
    return found
