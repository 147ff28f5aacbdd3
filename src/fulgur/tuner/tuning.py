"""Tuner: a learning rate or a batch size found before a run, without one."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from fulgur.errors import MisconfigurationException
from fulgur.rank import rank_zero_info
from fulgur.tuner.attributes import Attribute
from fulgur.tuner.batch_size import check_search, find_batch_size, free_memory, why_not_alone
from fulgur.tuner.lr_finder import LRFinder, check_rates, find_lr

if TYPE_CHECKING:
    from fulgur.datamodule import LightningDataModule
    from fulgur.module import LightningModule
    from fulgur.trainer import Trainer

_LOADERS = {"fit": "train", "validate": "val", "test": "test", "predict": "predict"}


class Tuner:
    """Finds settings for runs of a Trainer. Afterwards Trainer, module and datamodule are as before, to the same bits.

    Nothing is written to disk. The Trainer's callbacks and loggers take no part: where a callback decides what is
    trained (as `BackboneFinetuning` does), use the callbacks `LearningRateFinder` and `BatchSizeFinder`.

    Args:
        trainer: Whose settings (devices, precision, accumulation, …) count.

    Example:
        >>> tuner = Tuner(trainer)
        >>> tuner.scale_batch_size(model, mode="binsearch")
        >>> finder = tuner.lr_find(model)
        >>> finder.suggestion()
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def lr_find(
        self,
        model: LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
        method: str = "fit",
        min_lr: float = 1e-8,
        max_lr: float = 1,
        num_training: int = 100,
        mode: str = "exponential",
        early_stop_threshold: float | None = 4.0,
        update_attr: bool = True,
        attr_name: str = "",
    ) -> LRFinder | None:
        """Train with a rising learning rate, and see where the loss falls fastest. All ranks must reach this.

        Args:
            model: What to train.
            train_dataloaders, val_dataloaders, datamodule: As for `Trainer.fit`.
            dataloaders: Accepted for compatibility; None.
            method: "fit"; nothing else has a learning rate.
            min_lr, max_lr: The range. 0 < min_lr < max_lr.
            num_training: Steps of the optimizer. >= 1.
            mode: "exponential" multiplies the rate in each step, "linear" adds to it.
            early_stop_threshold: End once the smoothed loss is more than this many times the best one; None never.
            update_attr: Whether the attribute or hyperparameter of module and datamodule is set to the suggestion.
            attr_name: Its name; "" means ``lr``, or else ``learning_rate``.

        Returns:
            What was measured, with ``results``, ``suggestion()`` and ``plot()``; None under ``fast_dev_run``.

        Raises:
            MisconfigurationException: `method` is another one, the module optimizes manually, or has not one
                optimizer.
            AttributeError: Nothing has the attribute that is to be set.
            ValueError: A value is out of range, or the Trainer has a `LearningRateFinder`.
        """
        from fulgur.callbacks.lr_finder import LearningRateFinder, find_lr_attribute

        if method != "fit":
            raise MisconfigurationException(f"method={method!r} trains nothing. A learning rate is found with 'fit'.")
        check_rates(min_lr, max_lr, num_training, mode)
        self._refuse_callback(LearningRateFinder, "lr_find")
        train_dataloaders, datamodule = split_datamodule(train_dataloaders, datamodule)
        attribute = find_lr_attribute(attr_name, [own_module(model), datamodule]) if update_attr else None
        if self._trainer.fast_dev_run:
            rank_zero_info("fast_dev_run: no learning rate is looked for.")
            return None
        look = partial(
            find_lr,
            min_lr=min_lr,
            max_lr=max_lr,
            num_training=num_training,
            mode=mode,
            early_stop_threshold=early_stop_threshold,
        )
        loaders = {"train": train_dataloaders, "val": val_dataloaders}
        finder: LRFinder = self._trainer.search("fit", look, model=model, loaders=loaders, datamodule=datamodule)
        suggestion = finder.suggestion() if attribute is not None else None
        if attribute is not None and suggestion is not None:
            attribute.set(suggestion)
            rank_zero_info(f"Learning rate set to {suggestion}.")
        return finder

    def scale_batch_size(
        self,
        model: LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
        method: str = "fit",
        mode: str = "power",
        steps_per_trial: int = 3,
        init_val: int = 2,
        max_trials: int = 25,
        batch_arg_name: str = "batch_size",
        margin: float = 0.05,
        max_val: int = 8192,
    ) -> int | None:
        """Find the largest batch size that fits into memory, and set it. All ranks must reach this.

        Args:
            model: What to run.
            train_dataloaders, val_dataloaders, dataloaders: Refused where they are what the size is looked for: they
                are made already.
            datamodule: Where loaders come from.
            method: "fit", "validate", "test" or "predict".
            mode: "power" doubles until memory is at its end. "binsearch" then halves the range in between, and leaves
                `margin`.
            steps_per_trial: Steps, or batches of an evaluation, with each size. >= 1.
            init_val: The first size. >= 1.
            max_trials: Sizes tried at most. >= 1.
            batch_arg_name: Attribute or hyperparameter of module or datamodule that their loaders are made with.
            margin: Fraction by which "binsearch" stays below what fits. 0 to 1, without 1.
            max_val: Largest size that is tried, as is the length of the dataset (its part, on several ranks).

        Returns:
            The batch size; None under ``fast_dev_run``.

        Raises:
            MisconfigurationException: The loaders were passed as such, are several, or have no attribute to be made
                with; or `method` is unknown.
            ValueError: A value is out of range, the Trainer has a `BatchSizeFinder`, or the ranks cannot try by
                themselves.
            RuntimeError: One sample is too much for the memory.
        """
        from fulgur.callbacks.batch_size_finder import BatchSizeFinder, find_batch_size_attribute

        if method not in _LOADERS:
            raise MisconfigurationException(f"method={method!r} is unknown. Use one of {', '.join(_LOADERS)}.")
        check_search(mode, steps_per_trial, init_val, max_trials, margin)
        self._refuse_callback(BatchSizeFinder, "scale_batch_size")
        refused = why_not_alone(self._trainer.strategy)
        if refused:
            raise ValueError(refused)
        train_dataloaders, datamodule = split_datamodule(train_dataloaders, datamodule)
        dataloaders, datamodule = split_datamodule(dataloaders, datamodule)
        attribute = find_batch_size_attribute(batch_arg_name, [own_module(model), datamodule])
        if self._trainer.fast_dev_run:
            rank_zero_info("fast_dev_run: no batch size is looked for.")
            return None
        loaders = {"train": train_dataloaders, "val": val_dataloaders}
        if method != "fit":
            loaders = {_LOADERS[method]: dataloaders}
        look = partial(
            _find_batch_size_in,
            attribute_of=partial(_attribute_in, batch_arg_name),
            mode=mode,
            steps_per_trial=steps_per_trial,
            init_val=init_val,
            max_trials=max_trials,
            margin=margin,
            max_val=max_val,
        )
        size: int = self._trainer.search(method, look, model=model, loaders=loaders, datamodule=datamodule)
        free_memory()
        attribute.set(size)
        rank_zero_info(f"Batch size set to {size}.")
        return size

    def _refuse_callback(self, kind: type, method: str) -> None:
        if any(isinstance(callback, kind) for callback in self._trainer.callbacks):
            raise ValueError(
                f"The Trainer has a {kind.__name__}, which looks for the same at the beginning of a run. Leave it out, "
                f"or do not call Tuner.{method}()."
            )


def own_module(model: Any) -> Any:
    """The module itself, of what `torch.compile` may have made of it."""
    return getattr(model, "_orig_mod", model)


def split_datamodule(loaders: Any, datamodule: Any) -> tuple[Any, Any]:
    """A datamodule may stand in the place of loaders."""
    if datamodule is None and hasattr(loaders, "prepare_data"):
        return None, loaders
    return loaders, datamodule


def _attribute_in(name: str, trainer: Trainer) -> Attribute:
    """Looked for again where it is set: other processes have a module of their own."""
    from fulgur.callbacks.batch_size_finder import find_batch_size_attribute

    return find_batch_size_attribute(name, [trainer.lightning_module, trainer.datamodule])


def _find_batch_size_in(trial: Any, *, attribute_of: Any, **options: Any) -> int:
    return find_batch_size(trial, attribute=attribute_of(trial.trainer), **options)
