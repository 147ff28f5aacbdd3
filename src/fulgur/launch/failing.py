"""A rank that has failed while the others have not: it must not wait for them."""

from __future__ import annotations

import math
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from fulgur.launch.last_words import write_last_words

T = TypeVar("T")

_PATIENCE_S = 6.0
"""How long the hooks that follow an exception may take while other ranks still run."""
_ANSWER_S = 1.0
"""How long a store may take to answer."""


_ASKED = (signal.SIGABRT, signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class RankFailure:
    """How a rank failed, in a form that can be sent to its starter.

    Attributes:
        at: When, on the monotonic clock that all processes of a machine share.
        error: The pickled exception; None where there is none to raise again.
        text: Its traceback, or what happened instead.
    """

    at: float
    error: bytes | None
    text: str


def describe_error(error: BaseException) -> RankFailure:
    """What was raised on this rank; to be called where it is handled."""
    at, text = time.monotonic(), traceback.format_exc()
    try:
        pickled = pickle.dumps(error)
        pickle.loads(pickled)
    except Exception:  # not every exception can be sent; its text always can
        pickled = pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
    return RankFailure(at, pickled, text)


def describe_end(process: Any, sentence: str) -> RankFailure:
    """How a process ended that was to answer and did not, in a sentence with a gap: ``"it {}."``."""
    at = time.monotonic()
    process.join(5.0)
    code = process.exitcode
    is_signal = code is not None and code < 0
    how = f"was ended by {signal.Signals(-code).name}" if is_signal else f"ended with exit code {code}"
    return RankFailure(-math.inf if _comes_first(code) else at, None, sentence.format(how))


def _comes_first(exitcode: int | None) -> bool:
    """Whether a process that ended so did it by itself: the others see its end before its starter has noticed it.

    By a signal, that is; except those that ask a process to end, and the one by which NCCL ends a rank that has lost
    another.
    """
    return exitcode is not None and exitcode < 0 and -exitcode not in _ASKED


def ask(question: Callable[[], T], otherwise: T, patience_s: float = _ANSWER_S) -> T:
    """What `question` returns. Where it does not, in so many seconds, `otherwise`.

    The store of the ranks may lie behind a link that was cut: then it never answers, until TCP gives up after minutes.
    """
    answers: list[T] = []
    asking = threading.Thread(target=lambda: answers.append(question()), name="fulgur-asking", daemon=True)
    asking.start()
    asking.join(patience_s)
    return answers[0] if answers else otherwise


def have_all_failed(error: BaseException, store: Any, world_size: int) -> bool:
    """Whether every rank has failed in the place where `error` comes from; False where it cannot be told."""
    with suppress(Exception):
        count = int(store.add(_key(error), 0))
        return count > 0 and count % world_size == 0
    return False


def _key(error: BaseException) -> str:
    """The same on all ranks for a mistake that all make; another for the loss of a rank that has made one."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    place = f"{frame.tb_frame.f_code.co_filename}:{frame.tb_lineno}" if frame is not None else ""
    return f"fulgur/failed/{type(error).__name__}/{place}"


class FailureWatch:
    """After an exception on one rank, its hooks may wait for ranks that never come: ends the process if they do.

    Where all ranks have failed, as by a mistake in the program, hooks may take as long as they like: together.

    Args:
        error: What was raised.
        open_store: Opens a connection to the store that all ranks share.
        world_size: Number of ranks.
    """

    def __init__(self, error: BaseException, open_store: Callable[[], Any], world_size: int) -> None:
        self.error, self.world_size = error, world_size
        self._open_store, self._store = open_store, None
        self._is_done = threading.Event()

    def __enter__(self) -> FailureWatch:
        ask(self._tell, None)
        threading.Thread(target=self._watch, name="failure watch", daemon=True).start()
        return self

    def _tell(self) -> None:
        with suppress(Exception):
            store = self._open_store()
            store.add(_key(self.error), 1)
            self._store = store

    def __exit__(self, *exc_info: object) -> None:
        self._is_done.set()

    def _watch(self) -> None:
        if self._is_done.wait(_PATIENCE_S):
            return
        if ask(lambda: have_all_failed(self.error, self._store, self.world_size), False):
            return
        with suppress(Exception):
            sys.stdout.flush()
        text = "".join(traceback.format_exception(type(self.error), self.error, self.error.__traceback__))
        os.write(2, text.encode(errors="replace"))
        write_last_words(self.error)
        os._exit(1)
