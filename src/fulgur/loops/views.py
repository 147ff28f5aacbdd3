"""Loops as programs of this API read them: ``trainer.fit_loop.epoch_loop.batch_progress.current.ready`` and the like.

Everything here is worked out from the counters when it is asked for; the loops do not know of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fulgur.loops.feed import Feed
    from fulgur.loops.fit import FitLoop
    from fulgur.loops.limits import Limits
    from fulgur.metrics import MetricLog
    from fulgur.progress import Progress


class Counts:
    """How far batches, or epochs, have come. `current` of the running pass, `total` of all."""

    def __init__(self, *, ready: int, processed: int, completed: int) -> None:
        self.ready = self.started = ready
        self.processed = processed
        self.completed = completed

    def __repr__(self) -> str:
        return f"Counts(ready={self.ready}, processed={self.processed}, completed={self.completed})"


class BatchProgressView:
    """Batches of the running epoch, and of all epochs."""

    def __init__(self, *, current: Counts, total: Counts, is_last_batch: bool) -> None:
        self.current, self.total, self.is_last_batch = current, total, is_last_batch


class EpochCounts:
    """Epochs. Assigning `completed` or `processed` makes the next epoch another one."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    @property
    def ready(self) -> int:
        """Epochs begun."""
        return self._progress.epoch + (self._progress.phase != "start")

    started = ready

    @property
    def completed(self) -> int:
        """Epochs ended."""
        return self._progress.epoch

    @completed.setter
    def completed(self, epoch: int) -> None:
        self._progress.epoch = epoch

    @property
    def processed(self) -> int:
        """Epochs whose batches are done."""
        return self._progress.epoch + (self._progress.phase in ("cut", "ended"))

    @processed.setter
    def processed(self, epoch: int) -> None:
        self._progress.epoch = epoch


class EpochProgressView:
    """Epochs of this run and of all runs, which is the same."""

    def __init__(self, progress: Progress) -> None:
        self.current = self.total = EpochCounts(progress)


class EpochLoopView:
    """The running epoch of a fit."""

    def __init__(self, loop: FitLoop) -> None:
        self._loop = loop

    @property
    def batch_progress(self) -> BatchProgressView:
        """How far the epoch has come."""
        loop, done = self._loop, self._loop.progress
        metrics: MetricLog | None = getattr(loop, "metrics", None)
        is_within = metrics is not None and metrics.batch is not None
        ends = is_within and metrics is not None and metrics.scope is loop.plan.scopes.batch_end
        begun, ended = int(is_within and not ends), int(ends)
        counts = [Counts(ready=n + begun, processed=n, completed=n - ended) for n in (done.batch, done.batches_total)]
        fetch = getattr(loop, "fetch", None)
        is_last = fetch is not None and bool(fetch.is_last)
        return BatchProgressView(current=counts[0], total=counts[1], is_last_batch=is_last)

    @property
    def batch_idx(self) -> int:
        """Index of the batch that runs or ran last; -1 before the first."""
        return self.batch_progress.current.ready - 1

    @property
    def total_batch_idx(self) -> int:
        """The same counted over all epochs."""
        return self.batch_progress.total.ready - 1

    @property
    def global_step(self) -> int:
        """Training batches, or accumulation windows, that updated anything."""
        return self._loop.progress.global_step

    @property
    def _batches_that_stepped(self) -> int:
        return self._loop.progress.log_step

    @property
    def max_steps(self) -> int:
        """Limit of `global_step`; -1 for none. A new one takes effect with the next epoch."""
        return self._loop.max_steps

    @max_steps.setter
    def max_steps(self, max_steps: int) -> None:
        self._loop.max_steps = max_steps

    @property
    def min_steps(self) -> int | None:
        """Steps before `should_stop` takes effect."""
        return self._loop.min_steps

    @property
    def val_loop(self) -> Any:
        """The loop that validates in fit."""
        return self._loop.val_loop

    @property
    def is_last_batch(self) -> bool:
        """Whether the batch that runs, or ran last, is the epoch's last."""
        return self.batch_progress.is_last_batch

    def _should_accumulate(self) -> bool:
        accumulate, last = self._loop.accumulate, self.batch_progress
        return accumulate > 1 and (self.batch_idx + 1) % accumulate != 0 and not last.is_last_batch


class SourceView:
    """``loop._data_source``: where the loaders of a loop come from.

    Attributes:
        instance: What gives them: a datamodule or module by its hook, or the loaders themselves. None for nothing.
    """

    def __init__(self, source: tuple[str, Any] | None) -> None:
        give: Callable[[], Any] | None = None if source is None else source[1]
        owner = getattr(give, "__self__", None)
        self.instance: Any = give() if give is not None and owner is None else owner

    def is_defined(self) -> bool:
        """Whether there are any."""
        return self.instance is not None


class FitLoopView:
    """What `FitLoop` shows of itself beyond what it works with."""

    limits: Limits
    progress: Progress
    n_batches: float
    val_loop: Any = None
    """The loop that validates in fit; set by the Trainer."""
    restarting: bool = False
    verbose: bool = True

    epoch_loop = property(EpochLoopView, doc="The running epoch.")

    @property
    def epoch_progress(self) -> EpochProgressView:
        """How many epochs have come to which point."""
        return EpochProgressView(self.progress)

    @property
    def is_epoch_cut(self) -> bool:
        """Whether the epoch that ends is one that a limit cuts short; a run resumed from here goes on with it."""
        return self.progress.phase == "cut"

    @property
    def validates_only_to_stop(self) -> bool:
        """Whether the validation is there only because the run stops; a run that is not stopped has none here."""
        from fulgur.loops.epoch import is_validation_only_for_stop

        loop: Any = self
        return is_validation_only_for_stop(loop)

    @property
    def max_epochs(self) -> int | None:
        """Epochs counted from the very first; assign a higher number to go on with a second fit."""
        return self.limits.max_epochs

    @max_epochs.setter
    def max_epochs(self, max_epochs: int | None) -> None:
        if max_epochs is not None and (not isinstance(max_epochs, int) or max_epochs < -1):
            raise ValueError(f"max_epochs={max_epochs!r} is no number of epochs. Use an int, or -1 for no limit.")
        self.limits.max_epochs = max_epochs

    @property
    def min_epochs(self) -> int:
        """Epochs before `should_stop` takes effect."""
        return self.limits.min_epochs

    @min_epochs.setter
    def min_epochs(self, min_epochs: int | None) -> None:
        self.limits.min_epochs = min_epochs or 0

    @property
    def max_steps(self) -> int:
        """Limit of `global_step`; -1 for none. A new one takes effect with the next epoch."""
        return -1 if math.isinf(self.limits.max_steps) else int(self.limits.max_steps)

    @max_steps.setter
    def max_steps(self, max_steps: int) -> None:
        self.limits.max_steps = math.inf if max_steps == -1 else max_steps

    @property
    def min_steps(self) -> int | None:
        """Steps before `should_stop` takes effect."""
        return self.limits.min_steps or None

    @min_steps.setter
    def min_steps(self, min_steps: int | None) -> None:
        self.limits.min_steps = min_steps or 0

    @property
    def max_batches(self) -> int | float:
        """Batches in an epoch; ``inf`` if unknown."""
        return self.n_batches

    @property
    def batch_idx(self) -> int:
        """Index of the batch that runs or ran last; -1 before the first."""
        return int(self.epoch_loop.batch_idx)

    @property
    def total_batch_idx(self) -> int:
        """The same counted over all epochs."""
        return int(self.epoch_loop.total_batch_idx)

    @property
    def current_epoch(self) -> int:
        """Completed epochs: during an epoch its index."""
        return self.progress.epoch

    @current_epoch.setter
    def current_epoch(self, epoch: int) -> None:
        self.progress.epoch = epoch

    @property
    def global_step(self) -> int:
        """Training batches, or accumulation windows, that updated anything."""
        return self.progress.global_step


class EvaluationLoopView:
    """What the loops of validation, test and prediction show of themselves."""

    feed: Feed
    current: tuple[int, int]
    verbose: bool = True
    restarting: bool = False
    source: tuple[str, Any] | None = None
    """Where the loaders of the call come from, in words, and what gives them; set by the Trainer."""

    @property
    def _data_source(self) -> SourceView:
        return SourceView(self.source)

    @staticmethod
    def _print_results(results: list[dict[str, Any]], stage: str) -> None:
        from fulgur.loops.results import print_results

        values = [{key: float(value) for key, value in result.items()} for result in results]
        print_results(values, "Test metric" if str(stage) == "test" else "Validate metric")

    @property
    def num_dataloaders(self) -> int:
        """Loaders of the running or latest run; 0 before the first."""
        return len(self.feed.loaders) if hasattr(self, "feed") else 0

    @property
    def max_batches(self) -> list[int | float]:
        """Batches of each loader; empty before the first run."""
        return list(self.feed.n_batches) if hasattr(self, "feed") else []

    @property
    def current_dataloader_idx(self) -> int:
        """Which loader the batch that runs, or ran last, is from."""
        return self.current[0]

    @property
    def batch_idx(self) -> int:
        """Index of that batch in its loader."""
        return self.current[1]

    @property
    def batch_progress(self) -> BatchProgressView:
        """How far the loader has come, by the batches that began."""
        n_begun = self.current[1] + 1
        counts = Counts(ready=n_begun, processed=n_begun - 1, completed=n_begun - 1)
        lengths = self.max_batches
        is_last = bool(lengths) and n_begun >= lengths[self.current[0]]
        return BatchProgressView(current=counts, total=counts, is_last_batch=is_last)
