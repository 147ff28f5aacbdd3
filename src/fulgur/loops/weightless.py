"""Batches that let a rank take part in a step of others, and count nowhere."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

from fulgur.loops.resume import find_metric_objects
from fulgur.metrics import MetricLog


class Uncounted:
    """Keeps what a batch logs, and what it adds to metric objects, out of the numbers.

    Args:
        metrics: Where `self.log` writes.
        stage: Whose values are left out: "train", "validate" or "test".
    """

    def __init__(self, metrics: MetricLog, stage: str) -> None:
        self.metrics, self.stage = metrics, stage
        self._kept: list[tuple[Any, dict[str, Any]]] | None = None
        self._log: Any = None

    def begin(self) -> None:
        """From now on nothing counts."""
        if self._kept is not None:
            return
        found = find_metric_objects(self.metrics.module).values()
        self._kept = [(metric, copy.deepcopy(_state(metric))) for metric in found]
        self._log = self.metrics.__dict__.get("log")
        self.metrics.__dict__["log"] = partial(self._log_others, self.metrics.log)

    def end(self) -> None:
        """From now on everything counts again."""
        if self._kept is None:
            return
        for metric, state in self._kept:
            metric.__dict__.update(state)
        self._kept = None
        if self._log is None:
            del self.metrics.__dict__["log"]
        else:
            self.metrics.__dict__["log"] = self._log

    def _log_others(self, log: Callable[..., None], *args: Any) -> None:
        """What a validation within the batch logs does count."""
        scope = self.metrics.scope
        if scope is None or scope.stage != self.stage:
            log(*args)


def _state(metric: Any) -> dict[str, Any]:
    names = (*metric._defaults, "_update_count", "_computed", "_forward_cache")
    return {name: metric.__dict__[name] for name in names if name in metric.__dict__}
