"""End a fit when a metric stops getting better."""

from __future__ import annotations

import logging
import math
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fulgur.errors import MisconfigurationException, nearest_name
from fulgur.hooks import Callback
from fulgur.rank import rank_zero_info

if TYPE_CHECKING:
    from fulgur.module import LightningModule
    from fulgur.trainer import Trainer

_log = logging.getLogger(__name__)


class EarlyStoppingReason(IntEnum):
    """Why `EarlyStopping` asked for the end at its last check."""

    NOT_STOPPED = 0
    STOPPING_THRESHOLD = 1
    DIVERGENCE_THRESHOLD = 2
    PATIENCE_EXHAUSTED = 3
    NON_FINITE_METRIC = 4


class EarlyStopping(Callback):
    """Ask for the end of a fit once `monitor` has not improved for `patience` checks in a row.

    The metric is read once a check: at the end of each training epoch if every epoch ends with one validation,
    otherwise at the end of each validation. A check waits for the device and is a collective: every rank gets the same
    answer. Nothing is checked outside of fit, in the sanity check, or under ``fast_dev_run``; nor where a limit cuts an
    epoch short, for a run that goes on from there comes to its end again. A fit goes on until ``min_epochs`` and
    ``min_steps`` are reached, whatever this callback asks for.

    Args:
        monitor: Name under which the metric is logged.
        min_delta: Smallest change that counts as an improvement, in units of the metric.
        patience: Checks without improvement after which to stop. 0 stops like 1: at the first of them.
        verbose: Log a line at each improvement and at the stop. A stop on a value that is not finite is always logged.
        mode: ``"min"`` if smaller is better, ``"max"`` if larger is. ``"auto"`` (1.x) means ``"max"`` for metrics
            with ``acc`` in their name and ``"min"`` for all others.
        strict: Raise if the metric is missing at a check; False skips the check.
        check_finite: Stop when the metric is NaN or infinite.
        stopping_threshold: Stop as soon as the metric is better than this.
        divergence_threshold: Stop as soon as the metric is worse than this.
        check_on_train_epoch_end: True checks at the end of training epochs, False at the end of validations.
            ``None`` decides at the first `setup`, for good.
        log_rank_zero_only: With `verbose`, log on rank 0 only.

    Attributes:
        wait_count: Checks since the last improvement.
        stopped_epoch: Epoch of the last stop; 0 before.
        best_score: Best value so far. Shape (), on the CPU.
        stopping_reason: Outcome of the last check.
        stopping_reason_message: The same in words; ``None`` if there was no reason to stop.

    Raises:
        MisconfigurationException: `mode` is unknown.
        RuntimeError: At a check, if `strict` and the metric was not logged.

    Example:
        >>> EarlyStopping("val_loss", patience=5).state_key
        "EarlyStopping{'monitor': 'val_loss', 'mode': 'min'}"
    """

    is_monitor = True

    def __init__(
        self,
        monitor: str = "early_stop_on",
        min_delta: float = 0.0,
        patience: int = 3,
        verbose: bool = False,
        mode: str = "min",
        strict: bool = True,
        check_finite: bool = True,
        stopping_threshold: float | None = None,
        divergence_threshold: float | None = None,
        check_on_train_epoch_end: bool | None = None,
        log_rank_zero_only: bool = False,
    ) -> None:
        self.monitor = monitor
        self.min_delta = min_delta
        self.patience = patience
        self.verbose = verbose
        self.mode = _resolve_mode(mode, monitor)
        self.strict = strict
        self.check_finite = check_finite
        self.stopping_threshold = stopping_threshold
        self.divergence_threshold = divergence_threshold
        self.log_rank_zero_only = log_rank_zero_only
        self._check_on_train_epoch_end = check_on_train_epoch_end

        self.wait_count = 0
        self.stopped_epoch = 0
        self.best_score = torch.tensor(math.inf if self.mode == "min" else -math.inf)
        self.stopping_reason = EarlyStoppingReason.NOT_STOPPED
        self.stopping_reason_message: str | None = None

    @property
    def state_key(self) -> str:
        return self._generate_state_key(monitor=self.monitor, mode=self.mode)

    def state_dict(self) -> dict[str, Any]:
        return {
            "wait_count": self.wait_count,
            "stopped_epoch": self.stopped_epoch,
            "best_score": self.best_score,
            "patience": self.patience,
            "stopping_reason": int(self.stopping_reason),
            "stopping_reason_message": self.stopping_reason_message,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what the state holds: in files of before version 0.10 of the layout not all of it."""
        self.wait_count = state_dict["wait_count"]
        self.stopped_epoch = state_dict.get("stopped_epoch", self.stopped_epoch)
        self.best_score = _on_cpu(state_dict.get("best_score", self.best_score))
        self.patience = state_dict["patience"]
        self.stopping_reason = EarlyStoppingReason(state_dict.get("stopping_reason", 0))
        self.stopping_reason_message = state_dict.get("stopping_reason_message")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._check_on_train_epoch_end is None:
            interval = trainer.val_check_interval
            # An int counts batches: 1 means a validation after every batch, not after every epoch.
            once_an_epoch = interval is None or (isinstance(interval, float) and interval == 1.0)
            self._check_on_train_epoch_end = once_an_epoch and trainer.check_val_every_n_epoch == 1

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A run resumed from an epoch cut short comes to the end of that epoch again.
        if self._check_on_train_epoch_end and not _is_check_skipped(trainer) and not trainer.fit_loop.is_epoch_cut:
            self._check(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._check_on_train_epoch_end or _is_check_skipped(trainer):
            return
        if not trainer.fit_loop.validates_only_to_stop:
            self._check(trainer)

    def _check(self, trainer: Trainer) -> None:
        current = self._find_metric(trainer.callback_metrics)
        if current is not None:
            self.stopping_reason, self.stopping_reason_message = self._judge(current)
            # A run that ends on a number that is none is not as it should be: that is said to everyone.
            is_broken = self.stopping_reason is EarlyStoppingReason.NON_FINITE_METRIC
            if self.stopping_reason_message is not None:
                self._report(f"{self.stopping_reason_message} Stopping.", trainer, always=is_broken)
        should_stop = current is not None and self.stopping_reason is not EarlyStoppingReason.NOT_STOPPED
        # all ranks must reach this
        if trainer.strategy.reduce_boolean_decision(should_stop, all=False):
            trainer.should_stop = True
            self.stopped_epoch = trainer.current_epoch
        elif current is not None and self.wait_count == 0:
            self._report(f"{self.monitor} improved to {current:.6g}.", trainer)

    def _find_metric(self, metrics: dict[str, Tensor]) -> Tensor | None:
        if self.monitor in metrics:
            return _on_cpu(metrics[self.monitor])  # waits for the device
        if not self.strict:
            return None
        names = ", ".join(repr(name) for name in sorted(metrics)) or "none"
        raise RuntimeError(
            f"EarlyStopping monitors {self.monitor!r}, which was not logged. Metrics there are: {names}."
            f"{nearest_name(self.monitor, metrics)} Log it with `self.log({self.monitor!r}, value)`, set `monitor` "
            f"to one of these, or use strict=False to skip checks without it."
        )

    def _judge(self, current: Tensor) -> tuple[EarlyStoppingReason, str | None]:
        """Decide on one value, and take it into the record of the best."""
        if self.check_finite and not bool(torch.isfinite(current)):
            reason = EarlyStoppingReason.NON_FINITE_METRIC
            return (
                reason,
                f"{self.monitor} = {current:.6g} is not finite; the best was {self.best_score:.6g}.",
            )
        if self.stopping_threshold is not None and self._is_better(current, self.stopping_threshold):
            reason = EarlyStoppingReason.STOPPING_THRESHOLD
            self.best_score = current if self._is_better(current, self.best_score) else self.best_score
            return (
                reason,
                f"{self.monitor} = {current:.6g} is better than the threshold {self.stopping_threshold}.",
            )
        if self.divergence_threshold is not None and self._is_better(self.divergence_threshold, current):
            reason = EarlyStoppingReason.DIVERGENCE_THRESHOLD
            return (
                reason,
                f"{self.monitor} = {current:.6g} is worse than the threshold {self.divergence_threshold}.",
            )
        return self._judge_improvement(current)

    def _judge_improvement(self, current: Tensor) -> tuple[EarlyStoppingReason, str | None]:
        margin = self.min_delta if self.mode == "max" else -self.min_delta
        if self._is_better(current - margin, self.best_score):
            self.best_score = current
            self.wait_count = 0
            return EarlyStoppingReason.NOT_STOPPED, None
        self.wait_count += 1
        if self.wait_count < self.patience:
            return EarlyStoppingReason.NOT_STOPPED, None
        return (
            EarlyStoppingReason.PATIENCE_EXHAUSTED,
            f"{self.monitor} = {current:.6g} did not improve in {self.wait_count} checks; "
            f"the best was {self.best_score:.6g}.",
        )

    def _is_better(self, value: Tensor | float, than: Tensor | float) -> bool:
        return bool(value < than if self.mode == "min" else value > than)

    def _report(self, message: str, trainer: Trainer, *, always: bool = False) -> None:
        if not (self.verbose or always):
            return
        if trainer.is_global_zero:
            rank_zero_info(f"EarlyStopping: {message}")
        elif not self.log_rank_zero_only:
            _log.info("[rank %d] EarlyStopping: %s", trainer.global_rank, message)


def _is_check_skipped(trainer: Trainer) -> bool:
    return trainer.state.fn != "fit" or trainer.sanity_checking or bool(trainer.fast_dev_run)


def _on_cpu(value: Tensor | float) -> Tensor:
    # A copy, because the logged tensor may be written to again.
    return torch.as_tensor(value).detach().to("cpu", copy=True).squeeze()


def _resolve_mode(mode: str, monitor: str) -> str:
    if mode == "auto":
        return "max" if "acc" in monitor else "min"
    if mode not in ("min", "max"):
        raise MisconfigurationException(
            f"EarlyStopping(mode={mode!r}) is not known. Use mode='min' if a smaller {monitor!r} is better, 'max' if a "
            "larger one is."
        )
    return mode
