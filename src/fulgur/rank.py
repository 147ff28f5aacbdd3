"""Who speaks: things that only the first process of a run does, and the lines it prints.

Before a run has set up its processes, the rank comes from what the launcher put into the environment; afterwards from
``rank_zero_only.rank``, which the strategy sets.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar, overload

P = ParamSpec("P")
T = TypeVar("T")

_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")

_log = logging.getLogger("fulgur")
_announced_deprecations: set[str] = set()


def find_launcher_rank() -> int | None:
    """Rank that the launcher gave this process through the environment. None without a launcher.

    Reads ``RANK``, ``LOCAL_RANK``, ``SLURM_PROCID`` and ``JSM_NAMESPACE_RANK``, in this order.
    """
    for variable in _RANK_VARIABLES:
        value = os.environ.get(variable, "")
        if value.isdecimal():
            return int(value)
    return None


class _RankZeroOnly:
    """Decorator: on every process but the first, the function is not run and `default` is returned.

    Example:
        >>> @rank_zero_only
        ... def announce(text):
        ...     print(text)
        >>> announce("once")
        once
    """

    __slots__ = ("_rank",)

    def __init__(self) -> None:
        self._rank: int | None = None

    @property
    def rank(self) -> int:
        """Global rank of this process: what was set, else what the environment says, else 0."""
        return (find_launcher_rank() or 0) if self._rank is None else self._rank

    @rank.setter
    def rank(self, rank: int | None) -> None:
        self._rank = rank

    @overload
    def __call__(self, function: Callable[P, T]) -> Callable[P, T | None]: ...
    @overload
    def __call__(self, function: Callable[P, T], default: T) -> Callable[P, T]: ...
    def __call__(self, function: Callable[P, T], default: T | None = None) -> Callable[P, T | None]:
        @functools.wraps(function)
        def on_rank_zero(*args: P.args, **kwargs: P.kwargs) -> T | None:
            return function(*args, **kwargs) if self.rank == 0 else default

        return on_rank_zero


rank_zero_only = _RankZeroOnly()


def rank_zero_info(message: object, *args: object) -> None:
    """Log a line of the logger ``fulgur`` at INFO, on rank 0 only.

    Where the program configures no logging, the line goes to stderr as it is.
    """
    if rank_zero_only.rank == 0:
        _show_info_lines()
        _log.info(message, *args, stacklevel=2)


def rank_zero_debug(message: object, *args: object) -> None:
    """Log a line of the logger ``fulgur`` at DEBUG, on rank 0 only."""
    if rank_zero_only.rank == 0:
        _log.debug(message, *args, stacklevel=2)


def rank_zero_warn(message: str, category: type[Warning] = UserWarning, stacklevel: int = 2) -> None:
    """Issue a warning on rank 0 only.

    Args:
        message: What may be wrong, and what to do about it.
        category: Class of the warning.
        stacklevel: As in `warnings.warn` called in this place: 1 is the line that calls this function, 2 the caller
            of the function around it.
    """
    if rank_zero_only.rank == 0:
        warnings.warn(message, category, stacklevel=stacklevel + 1)


def rank_zero_deprecation(
    message: str, stacklevel: int = 2, *, category: type[DeprecationWarning] = DeprecationWarning
) -> None:
    """Announce on rank 0 that something is deprecated: once a process for each text.

    Args:
        message: What is deprecated and what to write instead.
        stacklevel: As in `rank_zero_warn`.
        category: Class of the warning.
    """
    if message not in _announced_deprecations:
        _announced_deprecations.add(message)
        rank_zero_warn(message, category, stacklevel + 1)


class _StderrLines(logging.Handler):
    """Writes to what ``sys.stderr`` is at the moment, as long as the root logger has no handler of its own."""

    def emit(self, record: logging.LogRecord) -> None:
        if not logging.getLogger().handlers:
            sys.stderr.write(self.format(record) + "\n")


def _show_info_lines() -> None:
    if _log.level == logging.NOTSET:
        _log.setLevel(logging.INFO)
    if not _log.handlers and not logging.getLogger().handlers:
        _log.addHandler(_StderrLines())
