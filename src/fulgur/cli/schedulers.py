"""Optimizers and schedulers on a command line: types of arguments, and a scheduler that says what it watches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Union

from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler


class ReduceLROnPlateau(lr_scheduler.ReduceLROnPlateau):
    """torch's ReduceLROnPlateau that says itself which metric it watches, so that no code has to.

    Args:
        optimizer: Whose rates it lowers.
        monitor: Key of the logged metric.
        *args: As torch's has them.
        **kwargs: As torch's has them.
    """

    def __init__(self, optimizer: Optimizer, monitor: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(optimizer, *args, **kwargs)
        self.monitor = monitor


# Written with `Union` because they are looked at when a program runs, where `|` makes another object in Python 3.10.
OptimizerCallable = Callable[[Iterable[Any]], Optimizer]
"""Type of an argument that gets the parameters and returns the optimizer: ``--model.optimizer=SGD``."""
LRSchedulerTypeTuple = (LRScheduler, ReduceLROnPlateau)
LRSchedulerTypeUnion = Union[LRScheduler, ReduceLROnPlateau]  # noqa: UP007
LRSchedulerCallable = Callable[[Optimizer], LRSchedulerTypeUnion]
"""Type of an argument that gets the optimizer and returns the scheduler."""
ArgsType = Union[list[str], dict[str, Any], None]  # noqa: UP007
"""Type of ``LightningCLI(args=...)``; a Namespace of jsonargparse is taken too."""
