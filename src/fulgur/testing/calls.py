"""How many Python functions of the framework run; a number that repeats exactly, on any machine."""

from __future__ import annotations

import gc
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from types import CodeType, FrameType
from typing import Any

_TESTING = os.path.dirname(os.path.abspath(__file__)) + os.sep


@dataclass(slots=True)
class CallCount:
    """Calls of Python functions.

    Attributes:
        by_function: Calls of each function that was called, as ``"file:function"``, most first. The file is relative
            to the package. Not whole numbers where they are means over steps.
    """

    by_function: dict[str, float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        """All of them."""
        return sum(self.by_function.values())

    def __str__(self) -> str:
        lines = [f"{count:8g}  {name}" for name, count in self.by_function.items()]
        return "\n".join([f"{self.total:g} calls", *lines])


@contextmanager
def count_calls(package: str = "fulgur") -> Iterator[CallCount]:
    """Count the calls of Python functions that a package defines, in this thread.

    A generator counts each time it goes on. Functions written in C do not count, and neither does `fulgur.testing`,
    whose models stand for the user's code. A profiler that was on pauses.

    Args:
        package: Its name.

    Yields:
        The count, filled when the block is left.

    Raises:
        ModuleNotFoundError: There is no such package.

    Example:
        >>> with count_calls() as calls:
        ...     pass
        >>> calls.total
        0
    """
    roots = _folders(package)
    counted: Counter[CodeType] = Counter()
    is_inside: dict[CodeType, bool] = {}

    def on_event(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            code = frame.f_code
            inside = is_inside.get(code)
            if inside is None:
                inside = is_inside[code] = _lies_in(code.co_filename, roots)
            if inside:
                counted[code] += 1

    result, previous = CallCount(), sys.getprofile()
    sys.setprofile(on_event)
    try:
        yield result
    finally:
        sys.setprofile(previous)
        names: Counter[str] = Counter()
        for code, count in counted.items():
            names[_name(code, roots)] += count
        result.by_function = dict(names.most_common())


def calls_per_step(fit: Callable[[int], object], *, n_batches: int = 16, package: str = "fulgur") -> CallCount:
    """Calls in one steady training step: what a run with twice the batches adds, divided by the batches it adds.

    What happens once a run, or once an epoch, cancels out. What happens every few steps counts in proportion, if
    `n_batches` is a multiple of the interval. `fit` runs three times, the first time to import what it needs.

    Args:
        fit: Trains one epoch of this many batches, the same way each time. Everything it builds must be new.
        n_batches: Batches of the shorter run. A power of two keeps the division exact.
        package: Whose calls.

    Example:
        >>> from fulgur import Trainer
        >>> from fulgur.testing import BoringModel
        >>> def fit(n_batches):
        ...     Trainer(max_epochs=1, limit_train_batches=n_batches, accelerator="cpu").fit(BoringModel())
        >>> calls_per_step(fit).total <= 12
        True
    """
    fit(n_batches)
    short = _count_run(fit, n_batches, package)
    long = _count_run(fit, 2 * n_batches, package)
    names = sorted(long | short, key=lambda name: short.get(name, 0) - long.get(name, 0))
    added = {name: (long.get(name, 0) - short.get(name, 0)) / n_batches for name in names}
    return CallCount({name: count for name, count in added.items() if count})


def _count_run(fit: Callable[[int], object], n_batches: int, package: str) -> dict[str, float]:
    """Count with the garbage collector off: what it finalizes, and when, is no part of a step."""
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        with count_calls(package) as calls:
            fit(n_batches)
    finally:
        if was_enabled:
            gc.enable()
    return calls.by_function


def _folders(package: str) -> tuple[str, ...]:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"package={package!r} cannot be found, or is a single module.", name=package)
    return tuple(os.path.abspath(folder) + os.sep for folder in spec.submodule_search_locations)


def _lies_in(path: str, folders: tuple[str, ...]) -> bool:
    return path.startswith(folders) and not path.startswith(_TESTING)


def _name(code: CodeType, folders: tuple[str, ...]) -> str:
    path = next((code.co_filename[len(f) :] for f in folders if code.co_filename.startswith(f)), code.co_filename)
    # Python < 3.11: code has no qualified name; drop when the minimum is 3.11.
    return f"{path}:{getattr(code, 'co_qualname', code.co_name)}"
