"""Calls that a profiler measures: made at set-up, where there is a profiler, so that a run without one pays nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from functools import partial
from typing import Any

from fulgur.profilers.profiler import Profiler

_END = object()


def timed(profiler: Profiler, action_name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """`call`, measured as `action_name`."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with profiler.profile(action_name):
            return call(*args, **kwargs)

    return run


def time_hooks(hooks: Any, profiler: Profiler) -> None:
    """Measure every hook in a record of tuples of hooks, each under its owner's name."""
    for field in fields(hooks):
        calls = getattr(hooks, field.name)
        setattr(hooks, field.name, tuple(timed(profiler, _action_name(call, field.name), call) for call in calls))


class TimedBatches:
    """A loader, with the wait for each batch measured."""

    def __init__(self, loader: Iterable[Any], profiler: Profiler, action_name: str) -> None:
        self.loader, self.profiler, self.action_name = loader, profiler, action_name

    def __iter__(self) -> Iterator[Any]:
        # Begins at once, as an iterator of the loader itself would: it draws random numbers.
        return self._batches(iter(self.loader))

    def _batches(self, batches: Iterator[Any]) -> Iterator[Any]:
        while True:
            with self.profiler.profile(self.action_name):
                batch = next(batches, _END)
            if batch is _END:
                return
            yield batch


def _action_name(call: Callable[..., Any], hook: str) -> str:
    bound = call.func if isinstance(call, partial) else call
    bound = getattr(bound, "hook", bound)
    owner = getattr(bound, "__self__", None)
    name = getattr(bound, "__name__", hook)
    if not isinstance(call, partial):
        return f"[LightningModule]{type(owner).__name__}.{name}" if owner is not None else name
    return f"[Callback]{owner.state_key}.{name}" if owner is not None else f"[Callback]{name}"
