"""RayTrainReportCallback: what Ray Train is told of a run."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal

from fulgur.errors import MissingExtraError
from fulgur.hooks import Callback

if TYPE_CHECKING:
    from fulgur.module import LightningModule
    from fulgur.trainer import Trainer


class RayTrainReportCallback(Callback):
    """Reports the metrics to Ray Train, with a checkpoint, at the end of each training epoch.

    The metrics are `trainer.callback_metrics`, ``"epoch"`` and ``"step"``. The checkpoint is a folder that holds the
    file `CHECKPOINT_NAME`; after a failure Ray gives it back by ``ray.train.get_checkpoint()``. All ranks must have it
    in their list: Ray waits for the report of each.

    Args:
        on: When to report: "epoch_end", or "validation_end" for each validation within fit.

    Raises:
        MissingExtraError: ray is not installed.
        ValueError: `on` is neither.
    """

    CHECKPOINT_NAME = "checkpoint.ckpt"
    is_monitor = True

    def __init__(self, on: Literal["epoch_end", "validation_end"] = "epoch_end") -> None:
        if on not in ("epoch_end", "validation_end"):
            raise ValueError(f"on={on!r} is unknown. Use 'epoch_end' or 'validation_end'.")
        _import_train()
        self.on = on

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.on == "epoch_end":
            self._report(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.on == "validation_end" and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._report(trainer)

    def _report(self, trainer: Trainer) -> None:
        train = _import_train()
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        metrics |= {"epoch": trainer.current_epoch, "step": trainer.global_step}
        with ExitStack() as files:
            folder = None
            if trainer.is_global_zero:
                folder = files.enter_context(tempfile.TemporaryDirectory(prefix="fulgur-ray-"))
            folder = trainer.strategy.broadcast(folder)  # all ranks must reach this
            trainer.save_checkpoint(os.path.join(folder, self.CHECKPOINT_NAME))
            checkpoint = train.Checkpoint.from_directory(folder) if trainer.is_global_zero else None
            train.report(metrics, checkpoint=checkpoint)  # waits for the ranks, and until the folder is copied


def _import_train() -> Any:
    from importlib import import_module

    try:
        return import_module("ray.train")
    except ModuleNotFoundError as error:
        raise MissingExtraError("RayTrainReportCallback", "ray[train]", "ray") from error
