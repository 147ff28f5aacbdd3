"""Launcher: what starts the other processes of a run."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any


class Launcher(ABC):
    """Starts the other processes and runs a function in all of them.

    Attributes:
        is_rank: Whether the process that starts the others is the first of them.
    """

    is_rank: bool = True

    @property
    @abstractmethod
    def is_interactive_compatible(self) -> bool:
        """Whether it works in a notebook, where there is no command that could be run again."""

    @abstractmethod
    def launch(self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        """Call ``function(*args, **kwargs)`` on all ranks.

        Args:
            function: What every rank does.
            *args: For the function.
            trainer: The Trainer that runs; it gets what the ranks have found out.
            **kwargs: For the function.

        Returns:
            What the function returned on the first rank of this machine.
        """

    @abstractmethod
    def kill(self, signum: int) -> None:
        """Send a signal to the processes that were started."""


def count_threads(n_processes: int) -> int:
    """Threads for each of `n_processes` that share this machine's cores. >= 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // n_processes)
