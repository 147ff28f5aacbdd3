"""Ctrl-C: the first stops at the next step boundary, the second at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from fulgur.rank import rank_zero_info


class InterruptHandler:
    """Within its ``with`` block SIGINT is noted, and raised by the loops between two steps.

    Does nothing outside of the main thread, or where the user has a handler of his own.

    Args:
        loops: Whose attribute `interrupt` is set when the signal comes.
    """

    def __init__(self, *loops: Any) -> None:
        self.loops = loops
        self._previous: Any = None

    def __enter__(self) -> InterruptHandler:
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._previous = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None
        for loop in self.loops:
            loop.interrupt = None

    def _note(self, signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for loop in self.loops:
            loop.interrupt = _raise_interrupt
        rank_zero_info("Stopping at the next step. Press Ctrl-C again to stop at once.")


def _raise_interrupt() -> None:
    raise KeyboardInterrupt
