"""A rank that was asked to end, and waits for one that is gone."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

from fulgur.launch.failing import ask

_PATIENCE_S = 8.0
"""How long the other ranks have to answer, whatever they do; torchrun kills those that are left after 30 s."""


class DesertedWatch:
    """Within its block SIGTERM ends the process where other ranks are gone, though the main thread may wait for them.

    The handler of a signal runs between two instructions of Python, and so never in a process that waits within a
    collective for a rank that was killed. Python also writes the number of a signal to a pipe, at once: a thread reads
    it, asks the other ranks for a sign of life, and leaves if one of them gives none. If all do, nothing happens: the
    run ends at a step boundary.

    Does nothing outside of the main thread, or where the program has a use of its own for that pipe.

    Args:
        rank: Of this process.
        find_silent: Asks all ranks, and returns those that have not answered after so many seconds.
    """

    def __init__(self, rank: int, find_silent: Callable[[float], list[int]]) -> None:
        self.rank, self._find_silent = rank, find_silent
        self._writing: int | None = None
        self._is_done = threading.Event()

    def __enter__(self) -> DesertedWatch:
        if threading.current_thread() is not threading.main_thread() or os.name == "nt":
            return self
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        previous = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        if previous != -1:
            signal.set_wakeup_fd(previous)
            os.close(reading)
            os.close(writing)
            return self
        self._writing = writing
        threading.Thread(target=self._watch, args=(reading,), name="fulgur-deserted", daemon=True).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._is_done.set()
        if self._writing is not None:
            signal.set_wakeup_fd(-1)
            os.close(self._writing)  # the thread comes to the end of its pipe

    def _watch(self, reading: int) -> None:
        with open(reading, "rb", buffering=0) as pipe:
            while received := pipe.read(1):
                if received[0] == signal.SIGTERM:
                    self._leave_if_deserted()

    def _leave_if_deserted(self) -> None:
        unanswered: list[int] | None = None
        silent = ask(lambda: self._find_silent(_PATIENCE_S), unanswered, _PATIENCE_S + 1.0)
        if silent == [] or self._is_done.is_set():
            return
        who = "store of the ranks is" if silent is None else f"ranks {silent} are"
        with suppress(Exception):
            sys.stdout.flush()
        text = f"Rank {self.rank} got SIGTERM and ends at once: the {who} gone, and no step comes to its end.\n"
        os.write(2, text.encode())
        os._exit(128 + signal.SIGTERM)
