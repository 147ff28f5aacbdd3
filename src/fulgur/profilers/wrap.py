"""Calls that a profiler measures: made at set-up, where there is a profiler, so that a run without one pays nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
        setattr(hooks, field.name, tuple(timed(profiler, name_of_hook(call, field.name), call) for call in calls))


def timed_batches(batches: Iterator[Any], *, profiler: Profiler, action_name: str) -> Iterator[Any]:
    """`batches`, with the wait for each measured."""
    while True:
        with profiler.profile(action_name):
            batch = next(batches, _END)
        if batch is _END:
            return
        yield batch


def name_of_hook(call: Callable[..., Any], hook: str = "") -> str:
    """``[LightningModule]Net.on_fit_start`` and the like: kind, owner and name of a hook, or of a collected one."""
    bound = call.func if isinstance(call, partial) else call
    bound = getattr(bound, "hook", bound)
    owner = getattr(bound, "__self__", None)
    name = getattr(bound, "__name__", hook)
    if owner is None:
        return f"[Callback]{name}" if isinstance(call, partial) else name
    kinds = {cls.__name__ for cls in type(owner).__mro__}
    if isinstance(call, partial) or "Callback" in kinds:
        return f"[Callback]{owner.state_key}.{name}"
    kind = "LightningDataModule" if "LightningDataModule" in kinds else "LightningModule"
    return f"[{kind}]{type(owner).__name__}.{name}"
