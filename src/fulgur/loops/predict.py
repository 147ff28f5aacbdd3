"""The prediction loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from copy import copy
from typing import Any

from torch.utils.data import DataLoader

from fulgur.data.fetch import iterator_steps
from fulgur.data.position import PlacedLoader
from fulgur.data.transfer import move_to_device
from fulgur.hooks import Calls
from fulgur.loops.evaluate import EvalPlan, modes_kept_on_error, put_in_eval_mode, restore_modes
from fulgur.loops.feed import Feed
from fulgur.loops.views import EvaluationLoopView
from fulgur.metrics import MetricLog
from fulgur.optim.gradients import submodules


class PredictLoop(EvaluationLoopView):
    """Predicts for each loader once, in order.

    Attributes:
        plan, feed, metrics: Connected by `run.py`.
        records_indices: Whether somebody asks which samples a batch holds.
        keeps_predictions: Whether predictions stay in memory.
        interrupt: Raises what a signal asked for; None while there was none.
        n_marks: Beginnings and ends of passes over all loaders so far: odd within one.
    """

    plan: EvalPlan
    feed: Feed
    metrics: MetricLog

    def __init__(self) -> None:
        self.records_indices = False
        self.keeps_predictions = True
        self.interrupt: Callable[[], None] | None = None
        self.current_batch_indices: list[int] = []
        self.current: tuple[int, int] = (0, 0)
        self.n_marks = 0
        self._predictions: list[list[Any]] = []
        self._indices: list[list[list[int]]] = []

    @property
    def predictions(self) -> list[Any]:
        """Predictions on the host: one per batch; with several loaders a list of such lists."""
        return self._predictions[0] if len(self._predictions) == 1 else self._predictions

    @property
    def predictions_by_loader(self) -> list[list[Any]]:
        """Predictions on the host, for each loader and batch."""
        return self._predictions

    @property
    def epoch_batch_indices(self) -> list[list[list[int]]]:
        """For each loader and batch whose prediction is kept, the indices of its samples; empty where unknown."""
        return self._indices

    def run(self, *, context: AbstractContextManager[Any]) -> list[Any]:
        """Predict, and return `predictions`."""
        plan = self.plan
        modes = [(module, module.training) for module in submodules(plan.module)]
        self._predictions, self._indices = [], []
        with context, modes_kept_on_error(modes):
            put_in_eval_mode(plan, modes)
            self._call(plan.hooks.start)
            self._call(plan.hooks.epoch_start)
            self.current = (0, 0)
            self.n_marks += 1
            for index in range(len(self.feed.loaders)):
                self._predictions.append([])
                self._indices.append([])
                self._batches(index)
            self.n_marks += 1
            self._call(plan.hooks.epoch_end)
            self._call(plan.hooks.end)
        restore_modes(modes)
        return self.predictions

    def _batches(self, index: int) -> None:
        plan, hooks = self.plan, self.plan.hooks
        extra = (index,) if plan.passes_loader_idx else ()
        fetch = self.feed.fetch(index, plan.transfers[index])
        recorded = None
        if self.records_indices and not plan.takes_iterator:
            fetch.loader, recorded = _recording(fetch.loader)
        for batch_idx, batch in enumerate(iterator_steps(fetch, index) if plan.takes_iterator else fetch):
            if not fetch.weight and not plan.takes_iterator:  # other ranks need this one for their step
                plan.step(batch, batch_idx, *extra)
                continue
            self.current = (index, batch_idx)
            self.current_batch_indices = recorded.pop(0) if recorded else []
            for hook in hooks.batch_start:
                hook(batch, batch_idx, *extra)
            prediction = plan.step(batch, batch_idx, *extra)
            for hook in hooks.batch_end:
                hook(prediction, batch, batch_idx, *extra)
            if self.keeps_predictions:
                self._predictions[index].append(move_to_device(prediction, "cpu"))  # waits for the device
            batch = prediction = None  # their memory is free while the next batch is loaded and predicted
            if self.records_indices and self.keeps_predictions:
                self._indices[index].append(self.current_batch_indices)
            if self.interrupt is not None:
                self.interrupt()

    def _call(self, calls: Calls) -> None:
        self.metrics.scope = None
        for hook in calls:
            hook()


class _RecordingBatches:
    """A batch sampler that notes what it hands out, in order; workers may be several batches ahead of the loop."""

    def __init__(self, batch_sampler: Any) -> None:
        self.batch_sampler = batch_sampler
        self.recorded: list[list[int]] = []

    def __iter__(self) -> Iterator[Any]:
        for indices in self.batch_sampler:
            self.recorded.append(list(indices))
            yield indices

    def __len__(self) -> int:
        return len(self.batch_sampler)


def _recording(loader: Any) -> tuple[Any, list[list[int]] | None]:
    """A copy of `loader` that notes the indices of its batches, and the list of them; None where it has none."""
    if isinstance(loader, PlacedLoader):
        return loader, loader.record()
    if not isinstance(loader, DataLoader) or loader.batch_sampler is None:
        return loader, None
    recording = _RecordingBatches(loader.batch_sampler)
    result = copy(loader)
    result.__dict__.update(batch_sampler=recording, _iterator=None)
    return result, recording.recorded
