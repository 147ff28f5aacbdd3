"""Watches the processes that a program has started: if one fails, all end, and its message stands last."""

from __future__ import annotations

import logging
import os
import re
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fulgur.errors import RankFailedError
from fulgur.launch.family import Layout

_TAIL_BYTES = 8000
_MOMENT_S = 1.0
"""How long to look for a failure of another rank that came before one of this rank."""
_LOSS_S = 5.0
"""The same for an error that the loss of another rank may have caused: that one may still be ending."""
_LEAVE_S = 4.0
"""How long this process has to end by itself, after another one has failed."""
_TERMINATE_S = 2.0
"""How long a process has to end after SIGTERM."""
_STOP_S = 30.0
"""How long the others have to end after this one has: they may be saving."""
_STOP_CODES = (130, 143, -signal.SIGINT, -signal.SIGTERM)
"""How a program ends that was asked to."""


@dataclass(slots=True, eq=False)
class Child:
    """A process that was started.

    Attributes:
        local_rank: Which one.
        process: It.
        tail: The end of what it wrote to stderr.
        is_dismissed: Whether it was asked to end, so that its end is no failure.
    """

    local_rank: int
    process: subprocess.Popen[bytes]
    tail: bytearray = field(default_factory=bytearray)
    is_dismissed: bool = False

    def relay(self) -> bool:
        """Pass on what it has written to stderr. Returns whether there may be more."""
        assert self.process.stderr is not None
        chunk = os.read(self.process.stderr.fileno(), 65536)
        with suppress(OSError):
            os.write(2, chunk)
        self.tail += chunk
        del self.tail[:-_TAIL_BYTES]
        return bool(chunk)

    def text(self) -> str:
        """The traceback at the end of its stderr, or the last lines."""
        text = self.tail.decode(errors="replace").strip()
        text = re.sub(r"^\[rank\d+\]: ?", "", text, flags=re.MULTILINE)  # torch marks tracebacks so
        return text[max(text.rfind("Traceback (most recent call last):"), 0) :]

    def send(self, signum: int) -> None:
        """Send a signal to it, and SIGKILL to everything it has started, too."""
        if self.process.poll() is None:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(self.process.pid, signum)
        if signum == signal.SIGKILL:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signum)


class Family:
    """The processes that this program has started, and a thread that watches them.

    Args:
        layout: Of the world they belong to.
        store: The store where all ranks meet; kept open until the program ends.
    """

    def __init__(self, layout: Layout, store: Any) -> None:
        self.layout, self.store = layout, store
        self.children: list[Child] = []
        self.failed: Child | None = None
        self._failure, self._is_leaving = threading.Event(), threading.Event()
        self._is_over = self._is_stopped = False

    def add(self, child: Child) -> None:
        """Watch `child`."""
        self.children.append(child)
        threading.Thread(target=self._follow, args=(child,), name=f"rank {child.local_rank}", daemon=True).start()

    def watch(self, function: Callable[[], Any], has_failed_everywhere: Callable[[BaseException], bool]) -> Any:
        """Call `function`; an error that the loss of another rank has caused names that rank."""
        if self.failed is not None:
            raise self._explain(self.failed)
        try:
            return function()
        except (KeyboardInterrupt, SystemExit):
            self._is_stopped = True
            self._let_end(_STOP_S)
            raise
        except BaseException as error:
            moment_s = _LOSS_S if isinstance(error, RuntimeError) else _MOMENT_S
            if self._turns_true(
                partial(has_failed_everywhere, error), moment_s
            ):  # the program may go on from it everywhere
                raise
            self._is_leaving.set()
            self._dismiss(self.children)
            failed = self.failed
            if failed is None or _is_same(error, failed):
                raise
            raise self._explain(failed) from error

    def send(self, signum: int) -> None:
        """Send a signal to all of them."""
        for child in self.children:
            child.send(signum)

    def end_of_program(self) -> None:
        """The program of this process is over: wait for the others, then see to it that they are gone."""
        self._is_leaving.set()
        if not hasattr(sys, "last_value"):  # set where an exception has ended the program
            self._let_end(_STOP_S)
        self._dismiss(self.children)
        if self.failed is not None and not self._is_stopped and not hasattr(sys, "last_value"):
            self._leave(self.failed)

    # ------------------------------------------------------------------------------------------- in the threads

    def _follow(self, child: Child) -> None:
        """Until `child` is gone. Its stderr ends with it, or later if something that it has started still runs."""
        self._relay(child)
        code = child.process.wait()
        if code == 0 or child.is_dismissed or self._is_over:
            return
        if self.failed is None:
            self.failed = child
            self._failure.set()
        if self.failed is child:
            is_stop = code in _STOP_CODES  # all of them stop, and this one may be saving
            if not is_stop:
                self._dismiss([other for other in self.children if other is not child])
            if not self._is_leaving.wait(_STOP_S if is_stop else _LEAVE_S):
                self._leave(child)

    def _relay(self, child: Child) -> None:
        assert child.process.stderr is not None
        with selectors.DefaultSelector() as selector, suppress(OSError, ValueError):
            selector.register(child.process.stderr, selectors.EVENT_READ)
            while child.process.poll() is None:
                if selector.select(timeout=0.5) and not child.relay():
                    return
            while selector.select(timeout=0) and child.relay():
                pass

    # ------------------------------------------------------------------------------------------------- the end

    def _turns_true(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Whether it does within a moment, and before another rank is seen to have failed."""
        until = time.monotonic() + timeout_s
        while not self._failure.is_set() and time.monotonic() < until:
            if condition():
                return True
            time.sleep(0.02)
        return False

    def _let_end(self, timeout_s: float) -> None:
        """Wait until all of them have ended by themselves."""
        self._is_leaving.set()
        until = time.monotonic() + timeout_s
        for child in self.children:
            with suppress(subprocess.TimeoutExpired):
                child.process.wait(max(0.0, until - time.monotonic()))

    def _dismiss(self, children: list[Child]) -> None:
        """End them: those that do not follow SIGTERM are killed."""
        for child in children:
            if child.process.poll() is None:
                child.is_dismissed = True
                child.send(signal.SIGTERM)
        until = time.monotonic() + _TERMINATE_S
        for child in children:
            with suppress(subprocess.TimeoutExpired):
                child.process.wait(max(0.0, until - time.monotonic()))
            child.send(signal.SIGKILL)

    def _explain(self, child: Child) -> RankFailedError:
        code = child.process.returncode
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        text = child.text()
        message = f"Local rank {child.local_rank} failed first: it {how}."
        return RankFailedError(f"{message} It said:\n{text}" if text else message, child.local_rank, code)

    def _leave(self, child: Child) -> None:
        """End this process at once: it waits for a rank that is gone."""
        self._is_over = True
        with suppress(Exception):
            sys.stdout.flush()
        with suppress(Exception):
            logging.shutdown()
        text = f"\n{type(self._explain(child)).__name__}: {self._explain(child)}\n"
        with suppress(Exception):
            sys.stderr.flush()
        os.write(2, text.encode(errors="replace"))
        os._exit(1)


def _is_same(error: BaseException, child: Child) -> bool:
    """Whether the other rank has raised what this one has."""
    last = child.text()
    return last.endswith(str(error).strip()) and type(error).__name__ in last
