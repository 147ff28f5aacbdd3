"""Find the batches at which the loss jumps."""

from __future__ import annotations

import json
import math
import os
from typing import TYPE_CHECKING, Any, Literal

import torch

from fulgur.errors import FulgurError, MisconfigurationException
from fulgur.hooks import Callback

if TYPE_CHECKING:
    from fulgur.module import LightningModule
    from fulgur.trainer import Trainer


class TrainingSpikeException(FulgurError, RuntimeError):
    """The loss jumped. A run that is started again may leave out the batches that led to it.

    Attributes:
        batch_idx: Index of the batch at which it did.
    """

    def __init__(self, batch_idx: int, message: str = "") -> None:
        super().__init__(message or f"The loss jumped at batch {batch_idx}.")
        self.batch_idx = batch_idx


class SpikeDetection(Callback):
    """End the training at a batch whose loss is far from the mean of those before, and note that batch in a file.

    The file is JSON, a list of batch indices: this one and the one before, whose update may be the cause. The mean is
    that of the last `window` losses. On several ranks the loss is the mean over all of them, so that all end together.
    Reads the loss after each batch, which waits for the device.

    Args:
        mode: "min" for a loss, where higher is worse; "max" for the contrary.
        window: Losses in the mean. >= 1.
        warmup: Batches before it looks. >= 0.
        atol: Least distance from the mean, in units of the loss, for a spike. None for any.
        rtol: Least distance from the mean, as a multiple of the mean. None for any.
        exclude_batches_path: The file; None is ``skip_batches.json`` in the Trainer's `default_root_dir`.
        finite_only: Whether NaN and infinity are spikes.

    Raises:
        MisconfigurationException: `mode` is unknown, a number is out of range, or neither `atol` nor `rtol` is given.
        TrainingSpikeException: The loss jumped.

    Example:
        >>> trainer = Trainer(callbacks=[SpikeDetection(rtol=3.0)])
    """

    def __init__(
        self,
        mode: Literal["min", "max"] = "min",
        window: int = 10,
        warmup: int = 1,
        atol: float | None = None,
        rtol: float | None = 2.0,
        exclude_batches_path: str | os.PathLike[str] | None = None,
        finite_only: bool = True,
    ) -> None:
        if mode not in ("min", "max"):
            raise MisconfigurationException(f"SpikeDetection(mode={mode!r}) is unknown. Use 'min' or 'max'.")
        if window < 1 or warmup < 0:
            raise MisconfigurationException(
                f"SpikeDetection(window={window}, warmup={warmup}): use a window of 1 or more, a warmup of 0 or more."
            )
        if atol is None and rtol is None:
            raise MisconfigurationException("SpikeDetection(atol=None, rtol=None) finds nothing. Give one of them.")
        self.mode, self.window, self.warmup, self.atol, self.rtol = mode, window, warmup, atol, rtol
        self.finite_only = finite_only
        self.exclude_batches_path = None if exclude_batches_path is None else os.fspath(exclude_batches_path)
        self.last_val: float = 0.0
        self.running: list[float] = []
        self.bad_batches: list[int] = []

    @property
    def running_mean(self) -> float:
        """Mean of the last losses; 0 before the first."""
        return sum(self.running) / len(self.running) if self.running else 0.0

    def state_dict(self) -> dict[str, Any]:
        return {
            "last_val": self.last_val,
            "mode": self.mode,
            "warmup": self.warmup,
            "atol": self.atol,
            "rtol": self.rtol,
            "bad_batches": list(self.bad_batches),
            "bad_batches_path": self.exclude_batches_path,
            "running": list(self.running),
            "mean": self.running_mean,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.last_val, self.bad_batches = state_dict["last_val"], list(state_dict["bad_batches"])
        running = state_dict["running"]
        self.running = list(running) if isinstance(running, (list, tuple)) else []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self.last_val, self.running = 0.0, []
            if self.exclude_batches_path is None:
                self.exclude_batches_path = os.path.join(trainer.default_root_dir, "skip_batches.json")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        number = math.nan if loss is None else float(loss)  # waits for the device
        if trainer.world_size > 1:
            number = _shared(number, loss is not None, trainer)
        elif loss is None:  # the batch was skipped
            return
        if loss is None and math.isnan(number):
            return
        if batch_idx >= self.warmup and self._is_spike(number):
            self._end(number, batch_idx, trainer)
        self.last_val = number
        self.running = [*self.running, number][-self.window :]

    def _is_spike(self, number: float) -> bool:
        if not math.isfinite(number):
            return self.finite_only
        if not self.running:
            return False
        mean = self.running_mean
        distance = number - mean if self.mode == "min" else mean - number
        if distance <= 0:
            return False
        is_far = self.atol is None or distance >= abs(self.atol)
        return is_far and (self.rtol is None or distance >= abs(self.rtol * mean))

    def _end(self, number: float, batch_idx: int, trainer: Trainer) -> None:
        assert self.exclude_batches_path is not None
        self.bad_batches += [index for index in (batch_idx - 1, batch_idx) if index >= 0]
        if trainer.is_global_zero:
            os.makedirs(os.path.dirname(os.path.abspath(self.exclude_batches_path)), exist_ok=True)
            with open(self.exclude_batches_path, "w", encoding="utf-8") as file:
                json.dump(self.bad_batches, file, indent=4)
        raise TrainingSpikeException(
            batch_idx,
            f"The loss is {number} at batch {batch_idx} of epoch {trainer.current_epoch}, after a mean of "
            f"{self.running_mean} over {len(self.running)} batches. Batches to leave out next time are in "
            f"{self.exclude_batches_path!r}.",
        )


def _shared(number: float, is_there: bool, trainer: Trainer) -> float:
    """Mean over the ranks that have a loss; NaN where none has."""
    device = trainer.strategy.root_device
    own = torch.tensor([number if is_there else 0.0, float(is_there)], device=device)
    total, count = trainer.strategy.reduce(own, reduce_op="sum").tolist()  # all ranks must reach this
    return total / count if count else math.nan
