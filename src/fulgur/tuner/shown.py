"""How far a search is, drawn as the progress bar of the Trainer draws."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any


class Shown:
    """One bar. Draws nothing where there is nothing to draw on.

    Args:
        display: Of the Trainer's bar; None for none.
        label: Text in front of the bar.
        total: Steps.
    """

    def __init__(self, display: Any, label: str, total: int) -> None:
        self._display, self._next_draw = display, 0.0
        if display is not None:
            from fulgur.callbacks.displays import Task

            self._task = Task(label, total)
            self._next_draw = monotonic() + display.interval_s

    def advance(self) -> None:
        """One step is done."""
        if self._display is None:
            return
        self._task.done += 1
        if self._display.is_live and monotonic() >= self._next_draw:
            self._display.draw([self._task])
            self._next_draw = monotonic() + self._display.interval_s

    def close(self) -> None:
        """Draw a last time; that stays."""
        if self._display is not None:
            self._display.draw([self._task])
            self._display.close()


@contextmanager
def shown(bar: Any, label: str, total: int) -> Iterator[Shown]:
    """A `Shown` on the display of a Trainer's bar, which may be None."""
    open_display = getattr(bar, "open_display", None)  # a bar of the user's own has none
    result = Shown(open_display() if open_display is not None else None, label, total)
    try:
        yield result
    finally:
        result.close()
