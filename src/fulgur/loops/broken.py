"""What a batch has logged that an exception breaks off: it is run again, and must not count twice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from fulgur.loops.resume import find_metric_objects

if TYPE_CHECKING:
    from fulgur.metrics import MetricLog
    from fulgur.progress import Progress


class SumsBefore:
    """The sums of the running epoch as they were before the batch that runs.

    Taken at every batch, so only where a callback saves on exceptions: a copy of each total that is logged, and of each
    state of a metric object.

    Args:
        metrics: Where `self.log` writes.
        progress: Tells one batch from the others.
    """

    def __init__(self, metrics: MetricLog, progress: Progress) -> None:
        self.metrics, self.progress = metrics, progress
        self._n_before = -1
        self._objects = find_metric_objects(metrics.module)
        self._entries: dict[int, dict[str, Any]] = {}
        self._states: dict[str, dict[str, Any]] = {}

    def take(self, *batch: Any) -> None:
        """Before a batch; the first of its hooks."""
        self._n_before = self.progress.batches_total
        self._entries = {id(entry): _values_of(entry) for entry in self.metrics.entries("train") if entry.is_live}
        self._states = {name: _mark(metric) for name, metric in self._objects.items()}

    @property
    def is_within_batch(self) -> bool:
        """Whether that batch has not come to its end."""
        return self._n_before == self.progress.batches_total

    def sums(self) -> dict[str, Any]:
        """What a checkpoint keeps of them, in the form of `capture_sums`."""
        return {
            "entries": self.metrics.state_dict(with_sums=True, before=self._entries)["entries"],
            "metric_objects": {name: _unmarked(state) for name, state in self._states.items()},
        }


def _values_of(entry: Any) -> dict[str, Any]:
    entry.is_free = False  # the value is kept here: the next one goes to another place
    names = ("step", "is_fresh", "host_total", "weight")
    total = entry.total
    return {name: getattr(entry, name) for name in names} | {"total": None if total is None else total.clone()}


def _mark(metric: Any) -> dict[str, Any]:
    states = {name: getattr(metric, name) for name in metric._defaults}
    # A list only grows: its length tells what it was, without a copy that takes longer with every batch.
    marked = {key: value.clone() if isinstance(value, Tensor) else (value, len(value)) for key, value in states.items()}
    return {"count": metric._update_count, "states": marked}


def _unmarked(mark: dict[str, Any]) -> dict[str, Any]:
    states = {k: v if isinstance(v, Tensor) else v[0][: v[1]] for k, v in mark["states"].items()}
    return {"count": mark["count"], "states": states}
