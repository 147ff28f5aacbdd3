"""Who speaks: things that only the first process of a run does, and the lines it prints.

Before a run has set up its processes, the rank comes from what the launcher put into the environment; afterwards from
``rank_zero_only.rank``, which the strategy sets.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
import warnings
from collections.abc import Callable
from types import FrameType
from typing import ParamSpec, TypeVar, overload

from fulgur.errors import FulgurDeprecationWarning, PossibleUserWarning

P = ParamSpec("P")
T = TypeVar("T")

_OFF = ("0", "off")
_PASSED_OVER = (os.path.dirname(__file__) + os.sep, contextlib.__file__, functools.__file__, "<frozen ")
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
        set_up_lines()
        _log.info(message, *args, stacklevel=2)


def rank_zero_debug(message: object, *args: object) -> None:
    """Log a line of the logger ``fulgur`` at DEBUG, on rank 0 only."""
    if rank_zero_only.rank == 0:
        _log.debug(message, *args, stacklevel=2)


def rank_zero_warn(message: str, category: type[Warning] = UserWarning, stacklevel: int = 2) -> None:
    """Issue a warning on rank 0 only.

    One that fulgur itself issues names the line of the program that led to it, whatever lies in between.

    Args:
        message: What may be wrong, and what to do about it.
        category: Class of the warning.
        stacklevel: Where a program calls this function, as in `warnings.warn` called in this place: 1 is the line that
            calls it, 2 the caller of the function around it.
    """
    if issubclass(category, PossibleUserWarning) and os.environ.get("POSSIBLE_USER_WARNINGS", "").lower() in _OFF:
        return
    _warn(message, category, stacklevel + 1, caller=sys._getframe(1))


def _warn(message: str, category: type[Warning], stacklevel: int, caller: FrameType) -> None:
    if rank_zero_only.rank != 0:
        return
    line = _find_line_of_program(caller) if _is_passed_over(caller) else None
    if line is None:
        warnings.warn(message, category, stacklevel=stacklevel + 1)
        return
    names = line.f_globals
    registry = names.setdefault("__warningregistry__", {})
    module = names.get("__name__", "<unknown>")
    warnings.warn_explicit(message, category, line.f_code.co_filename, line.f_lineno, module, registry)


def _find_line_of_program(frame: FrameType | None) -> FrameType | None:
    """The innermost frame that is the program's own; None if all are fulgur's."""
    while frame is not None and _is_passed_over(frame):
        frame = frame.f_back
    return frame


def _is_passed_over(frame: FrameType) -> bool:
    """Whether a frame is fulgur's, or one through which fulgur's code calls itself and the program's."""
    name = frame.f_code.co_filename
    return name.startswith(_PASSED_OVER) or (frame.f_globals.get("__name__") or "").partition(".")[0] == "torch"


def rank_zero_deprecation(
    message: str, stacklevel: int = 2, *, category: type[DeprecationWarning] = FulgurDeprecationWarning
) -> None:
    """Announce on rank 0 that something is deprecated: once a process for each text.

    Args:
        message: What is deprecated and what to write instead.
        stacklevel: As in `rank_zero_warn`.
        category: Class of the warning.
    """
    if message not in _announced_deprecations:
        _announced_deprecations.add(message)
        _warn(message, category, stacklevel + 1, caller=sys._getframe(1))


class _StderrLines(logging.Handler):
    """Writes to what ``sys.stderr`` is at the moment, as long as the root logger has no handler of its own."""

    def emit(self, record: logging.LogRecord) -> None:
        if not logging.getLogger().handlers:
            sys.stderr.write(self.format(record) + "\n")


_stderr = _StderrLines()
_shown = _log  # whose level and handlers decide about the lines, unless the program sets others
_has_set_level = False


def show_lines_of(logger: logging.Logger) -> None:
    """Make lines seen where those of `logger` are, as far as the program has not set it up itself.

    Args:
        logger: ``fulgur``, or a logger that it propagates to.
    """
    global _shown, _has_set_level
    _shown.removeHandler(_stderr)
    if _has_set_level and _shown.level == logging.INFO:
        _shown.setLevel(logging.NOTSET)
    _shown, _has_set_level = logger, False


def set_up_lines() -> None:
    """Show lines of level INFO on stderr, where the program has set up nothing else."""
    global _has_set_level
    if _shown.level == logging.NOTSET:
        _shown.setLevel(logging.INFO)
        _has_set_level = True
    if not _shown.handlers and not logging.getLogger().handlers:
        _shown.addHandler(_stderr)
