"""The learning rate range test: train with a rate that rises from step to step, and see where the loss falls fastest.

Reading order: `find_lr` -> `RateSweep` (sets rates, records losses) -> `LRFinder.suggestion`.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from fulgur.errors import MisconfigurationException, MissingExtraError
from fulgur.hooks import Callback
from fulgur.rank import rank_zero_only
from fulgur.tuner.shown import Shown, shown

if TYPE_CHECKING:
    from fulgur.module import LightningModule
    from fulgur.trainer import Trainer
    from fulgur.trials import Trial

Mode = Literal["exponential", "linear"]

_log = logging.getLogger("fulgur")

_SMOOTHING = 0.98
_UNSETTLED = 10
"""Steps whose smoothed loss is a mean of too few to be compared with: with small batches one is four times another."""


class LRFinder:
    """What a range test has measured.

    Args:
        mode: How the rate rose: by a constant factor ("exponential") or a constant amount ("linear") each step.
        lr_min, lr_max: Between which rates.
        num_training: In how many steps, unless the loss went off before.

    Attributes:
        results: ``"lr"``, the rate of each step, and ``"loss"``, the smoothed loss of it.

    Source:
        Smith, arXiv:1506.01186, section 3.3.
    """

    def __init__(self, mode: str, lr_min: float, lr_max: float, num_training: int) -> None:
        self.mode, self.lr_min, self.lr_max, self.num_training = mode, lr_min, lr_max, num_training
        self.results: dict[str, list[float]] = {"lr": [], "loss": []}

    def rate(self, index: int) -> float:
        """The learning rate of the step `index`, from 0."""
        part = index / self.num_training
        if self.mode == "linear":
            return self.lr_min + (self.lr_max - self.lr_min) * part
        return float(self.lr_min * (self.lr_max / self.lr_min) ** part)

    def suggestion(self, skip_begin: int = 10, skip_end: int = 1) -> float | None:
        """The rate at which the loss fell fastest.

        Args:
            skip_begin: Steps at the beginning that do not count: the mean of the losses is not settled there. >= 0.
            skip_end: Steps at the end that do not count. >= 0.

        Returns:
            The learning rate; None, and a line in the log, where less than two finite losses are left.
        """
        index = self._steepest(skip_begin, skip_end)
        return self.results["lr"][index] if index is not None else None

    def _steepest(self, skip_begin: int, skip_end: int) -> int | None:
        losses = self.results["loss"]
        kept = [i for i in range(skip_begin, len(losses) - skip_end) if math.isfinite(losses[i])]
        if len(kept) < 2:
            if rank_zero_only.rank == 0:
                _log.error(
                    f"No learning rate can be suggested: of {len(losses)} steps, without the first {skip_begin} and "
                    f"the last {skip_end}, {len(kept)} have a finite loss. Raise num_training, or lower max_lr."
                )
            return None
        values = torch.tensor([losses[i] for i in kept], dtype=torch.float64)
        places = torch.tensor(kept, dtype=torch.float64)  # rates are evenly spaced by them, on the axis of the mode
        (slopes,) = torch.gradient(values, spacing=(places,))
        return kept[int(slopes.argmin())]

    def plot(self, suggest: bool = False, show: bool = False, ax: Any = None) -> Any:
        """Draw losses over rates.

        Args:
            suggest: Mark the suggestion.
            show: Open a window.
            ax: matplotlib's axes to draw on; None makes a figure.

        Returns:
            The figure.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        try:
            import matplotlib.pyplot as plt
        except ModuleNotFoundError:
            raise MissingExtraError("plot() of a learning rate finder", "matplotlib", "plot") from None
        figure: Any
        figure, ax = plt.subplots() if ax is None else (ax.figure, ax)
        ax.plot(self.results["lr"], self.results["loss"])
        if self.mode == "exponential":
            ax.set_xscale("log")
        ax.set_xlabel("Learning rate")
        ax.set_ylabel("Loss")
        index = self._steepest(10, 1) if suggest else None
        if index is not None:
            ax.plot(self.results["lr"][index], self.results["loss"][index], markersize=10, marker="o", color="red")
        if show:
            plt.show()
        return figure


class RateSweep(Callback):
    """Gives each step its rate, and records the loss.

    Args:
        finder: Takes the results.
        optimizer: Whose rate it is.
        early_stop_threshold: End once the smoothed loss is more than this many times the best one, of which the first
            ten steps are none; None never.
        bar: Told of each step.
    """

    def __init__(self, finder: LRFinder, optimizer: Any, early_stop_threshold: float | None, bar: Shown) -> None:
        self.finder, self.optimizer, self.threshold, self.bar = finder, optimizer, early_stop_threshold, bar
        self._sum, self._count = 0.0, 0
        self._mean = 0.0
        self._best = math.inf

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        set_rates(self.optimizer, self.finder.rate(len(self.finder.results["lr"])))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any) -> None:
        loss = outputs.get("loss") if outputs else None
        if loss is not None:
            scale = trainer.fit_loop.plan.updates[0].divisor  # by which each loss of a window was divided
            self._sum, self._count = self._sum + scale * float(loss), self._count + 1  # waits for the device
        if trainer.fit_loop.updated:
            self._record(trainer)

    def _record(self, trainer: Trainer) -> None:
        window = torch.tensor([self._sum, self._count], dtype=torch.float64, device=trainer.strategy.root_device)
        total, count = trainer.strategy.reduce(window, reduce_op="sum").tolist()  # all ranks must reach this
        self._sum, self._count = 0.0, 0
        results, loss = self.finder.results, total / max(count, 1)
        results["lr"].append(self.finder.rate(len(results["lr"])))
        self._mean = _SMOOTHING * self._mean + (1 - _SMOOTHING) * loss
        smoothed = self._mean / (1 - _SMOOTHING ** len(results["lr"]))
        results["loss"].append(smoothed)
        self.bar.advance()
        if self._is_off(smoothed):
            trainer.fit_loop.should_stop = True  # on all ranks, for all have the same losses
        if len(results["lr"]) > _UNSETTLED:
            self._best = min(self._best, smoothed)

    def _is_off(self, smoothed: float) -> bool:
        if self.threshold is None:
            return False
        if math.isinf(self._best):
            return not math.isfinite(smoothed)
        # Losses below 0 have no multiples that are worse: what counts is the distance, in units of the best one.
        bound = self._best + (self.threshold - 1) * abs(self._best)
        return not math.isfinite(smoothed) or smoothed > bound


def find_lr(
    trial: Trial,
    *,
    min_lr: float,
    max_lr: float,
    num_training: int,
    mode: str,
    early_stop_threshold: float | None,
) -> LRFinder:
    """Run a range test in `trial`.

    Args:
        trial: What trains.
        min_lr, max_lr: Between which rates. > 0 where `mode` is "exponential".
        num_training: Steps of the optimizer. >= 1.
        mode: "exponential" or "linear".
        early_stop_threshold: See `RateSweep`.

    Raises:
        MisconfigurationException: The module optimizes manually, or has not one optimizer.
        ValueError: A value is out of range.
    """
    check_rates(min_lr, max_lr, num_training, mode)
    module, optimizers = trial.trainer.lightning_module, trial.setup.optimizers
    if not module.automatic_optimization:
        raise MisconfigurationException(
            f"The learning rate finder sets the rate of each step, and {type(module).__name__} steps its optimizers "
            "itself (automatic_optimization = False). Set the rate by hand."
        )
    if len(optimizers) != 1:
        raise MisconfigurationException(
            f"The learning rate finder works with one optimizer, for a loss that several share says nothing of each; "
            f"configure_optimizers of {type(module).__name__} returned {len(optimizers)}. Set their rates by hand."
        )
    finder = LRFinder(mode, min_lr, max_lr, num_training)
    with shown(trial.bar, "Finding best initial lr", num_training) as bar:
        trial.train(num_training, callback=RateSweep(finder, optimizers[0], early_stop_threshold, bar))
    return finder


def check_rates(min_lr: float, max_lr: float, num_training: int, mode: str) -> None:
    """Refuse a range test that cannot be run.

    Raises:
        ValueError: A value is out of range.
    """
    if mode not in ("exponential", "linear"):
        raise ValueError(f"mode={mode!r} is unknown. Use 'exponential' or 'linear'.")
    if num_training < 1:
        raise ValueError(f"num_training={num_training} leaves no step to learn from. Use 100, for example.")
    if not 0 < min_lr < max_lr:
        raise ValueError(f"min_lr={min_lr} and max_lr={max_lr} are no range of rates. Use 0 < min_lr < max_lr.")


def set_rates(optimizer: Any, lr: float) -> None:
    """Give all groups of `optimizer` the rate `lr`."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def start_from(lr: float, optimizers: list[Any], schedulers: list[Any]) -> None:
    """Let optimizers and schedulers go on as if `lr` were what they had been made with.

    A group that a scheduler has scaled keeps its factor: a warmup that begins at a tenth begins at a tenth of `lr`.
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            initial = group.get("initial_lr")
            factor = float(group["lr"]) / float(initial) if initial else 1.0
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr * factor)
            else:
                group["lr"] = lr * factor
            if initial is not None:
                group["initial_lr"] = lr
    for config in schedulers:
        _rebase(config.scheduler, lr)


def _rebase(scheduler: Any, lr: float) -> None:
    if hasattr(scheduler, "base_lrs"):
        scheduler.base_lrs = [lr] * len(scheduler.base_lrs)
        scheduler._last_lr = [float(group["lr"]) for group in scheduler.optimizer.param_groups]
    for inner in getattr(scheduler, "_schedulers", ()):
        _rebase(inner, lr)
