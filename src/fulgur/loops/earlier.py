"""What 1.x had and today's API has not: an optimizer's index for hooks, and values to log in what a step returns.

Hooks are recognised by the argument ``optimizer_idx`` and become, once, functions in today's form.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from fulgur.logged import LogOptions
from fulgur.metrics import MetricLog
from fulgur.optim.configure import LRSchedulerConfig

# What 1.x passed besides, by the values of one CPU or GPU.
_FLAGS = {"on_tpu": False, "using_native_amp": False, "using_lbfgs": False}

# The defaults of `self.log`.
_OPTIONS = LogOptions(False, None, None, None, "mean", False, None, True, None, False)


def with_optimizer_idx(hook: Callable[..., Any], optimizers: Sequence[Any], *names: str) -> Callable[..., Any]:
    """`hook`, which may take an ``optimizer_idx``, as a function of today's arguments.

    Args:
        hook: A method of the module.
        optimizers: In the order of their indices.
        *names: Today's positional arguments; ``optimizer`` is among them.
    """
    parameters = inspect.signature(hook).parameters
    if "optimizer_idx" not in parameters:
        return hook
    flags = {name: value for name, value in _FLAGS.items() if name in parameters}

    def call(*args: Any, **more: Any) -> Any:
        given = dict(zip(names, args, strict=False)) | more
        bare = getattr(given["optimizer"], "optimizer", given["optimizer"])
        given["optimizer_idx"] = next(index for index, optimizer in enumerate(optimizers) if optimizer is bare)
        return hook(**{name: value for name, value in given.items() if name in parameters}, **flags)

    return call


def backward_of(hook: Callable[..., Any], optimizer: Any, optimizer_idx: int) -> Callable[..., Any]:
    """A module's ``backward``, which may take the optimizer and its index, as a function of the loss."""
    parameters = inspect.signature(hook).parameters
    if "optimizer_idx" not in parameters:
        return hook
    return partial(hook, optimizer=optimizer, optimizer_idx=optimizer_idx)


def scheduler_step_of(hook: Callable[..., Any], configs: Sequence[LRSchedulerConfig]) -> Callable[[Any, Any], Any]:
    """A module's ``lr_scheduler_step``, which may take the optimizer's index, as a function of scheduler and metric."""
    if "optimizer_idx" not in inspect.signature(hook).parameters:
        return hook

    def call(scheduler: Any, metric: Any) -> Any:
        index = next(config.opt_idx for config in configs if config.scheduler is scheduler)
        return hook(scheduler=scheduler, optimizer_idx=index, metric=metric)

    return call


def log_returned(metrics: MetricLog, returned: Mapping[str, Any], *, others: bool = False) -> None:
    """Log what a step or the end of an epoch returned under ``"log"`` and ``"progress_bar"``, as in 1.0.

    Args:
        metrics: Where values are kept.
        returned: What came back.
        others: Whether the other numbers in it are kept for callbacks too, as those of an epoch's end were.
    """
    logged, shown = dict(returned.get("log") or {}), dict(returned.get("progress_bar") or {})
    rest = {name: value for name, value in returned.items() if others and _is_number(value)}
    for name, value in {**rest, **shown, **logged}.items():
        metrics.log(name, value, _OPTIONS._replace(prog_bar=name in shown, logger=name in logged))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1)
