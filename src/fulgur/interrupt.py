"""Signals that end a run: noted when they come, followed at the next step boundary."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING, Any

from fulgur.errors import RequeueException, SIGTERMException
from fulgur.rank import rank_zero_info

if TYPE_CHECKING:
    from fulgur.agreement import Agreement

_REQUEUE_SIGNALS = tuple(getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name))


class InterruptHandler:
    """Within its ``with`` block signals are noted, and the loops leave between two steps.

    Ctrl-C ends in a `KeyboardInterrupt`; the second one at once. SIGTERM ends in a `SIGTERMException`; more of them
    change nothing. With `requeue` SIGUSR1 and SIGUSR2 ask for the job to be queued again. A signal that comes after
    the last step is followed at the end of the block.

    Outside of the main thread nothing is noted. The user's own handler of SIGINT stays in the place of this one; his
    handlers of the others are called after the signal has been noted. A signal that is ignored stays so.

    Args:
        loops: Whose attribute `interrupt` is set when a signal comes.
        received: Where the numbers of the signals are noted.
        save: Called before the `SIGTERMException`, between two steps.
        requeue: Saves and queues the job again; tells whether that went well. None leaves SIGUSR1 and SIGUSR2 alone.
        agreement: With it, all ranks follow a signal that came to any of them, at the same boundary.
    """

    def __init__(
        self,
        *loops: Any,
        received: set[int] | None = None,
        save: Callable[[], None] | None = None,
        requeue: Callable[[], bool] | None = None,
        agreement: Agreement | None = None,
    ) -> None:
        self.loops = loops
        self.received = set() if received is None else received
        self._save, self._requeue = save, requeue
        self._agreement = agreement
        self._previous: dict[int, Any] = {}
        self._pid = os.getpid()

    def __enter__(self) -> InterruptHandler:
        self.received.clear()
        if self._agreement is not None:
            self._agreement.on_agreed["signal"] = self._follow
            self._agreement.start()
        if threading.current_thread() is not threading.main_thread():
            return self
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._previous[signal.SIGINT] = signal.signal(signal.SIGINT, self._note)
        for signum in (signal.SIGTERM, *(_REQUEUE_SIGNALS if self._requeue is not None else ())):
            if signal.getsignal(signum) not in (signal.SIG_IGN, None):  # None: a handler that is not Python's
                self._previous[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, kind: object, *exc_info: object) -> None:
        try:
            if self._agreement is not None:
                left = self._agreement.close(is_clean=kind is None)  # all ranks must reach this
                self.received.update(signum for name, signum in left if name == "signal")
            if kind is None and self.received:
                self._leave()
        finally:
            for signum, previous in self._previous.items():
                signal.signal(signum, previous)
            self._previous.clear()
            for loop in self.loops:
                loop.interrupt = None

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            return self._pass_on(signum)
        is_first = signum not in self.received
        self.received.add(signum)
        if self._agreement is not None:
            self._agreement.note("signal", signum)
        else:
            for loop in self.loops:
                loop.interrupt = self._leave
        if signum == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if is_first:
            with suppress(RuntimeError):  # the signal came in the middle of another line's output
                rank_zero_info(_announcement(signum))
        previous = self._previous.get(signum)
        if callable(previous) and previous is not signal.default_int_handler:
            previous(signum, frame)

    def _pass_on(self, signum: int) -> None:
        """In a child that was forked within the block: what concerns the run is its parent's affair."""
        if signum == signal.SIGTERM:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)

    def _follow(self, signums: list[int]) -> None:
        self.received.update(signums)
        self._leave()

    def _leave(self) -> None:
        for loop in self.loops:
            loop.interrupt = None
        if self._requeue is not None and self.received.intersection(_REQUEUE_SIGNALS):
            raise RequeueException if self._requeue() else SIGTERMException
        if signal.SIGTERM in self.received:
            if self._save is not None:
                self._save()
            raise SIGTERMException
        raise KeyboardInterrupt


def _announcement(signum: int) -> str:
    if signum == signal.SIGINT:
        return "Stopping at the next step. Press Ctrl-C again to stop at once."
    return f"{signal.Signals(signum).name} received: stopping at the next step."
