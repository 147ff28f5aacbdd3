"""Optimization hooks in the signatures of 1.x, which also took the optimizer's index.

They are recognised by the argument ``optimizer_idx`` and become, once, functions in today's form.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from fulgur.optim.configure import LRSchedulerConfig

# What 1.x passed besides, by the values of one CPU or GPU.
_FLAGS = {"on_tpu": False, "using_native_amp": False, "using_lbfgs": False}


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
