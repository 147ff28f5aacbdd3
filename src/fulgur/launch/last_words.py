"""What a rank that torchrun has started leaves for torchrun's report, which is the last thing on the screen.

The agent gives each process the name of a file. It shows what is in that of the first failing one: without it, "To
enable traceback see …".
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from contextlib import suppress
from types import TracebackType

_FILE = "TORCHELASTIC_ERROR_FILE"
_GIVE_WAY_S = 2.0
"""How long a rank waits whose error may come of the loss of another: the agent sees that one first, and ends this."""

_is_installed = False


def leave_last_words() -> None:
    """Have the exception that ends this process written for the agent; without one nothing changes."""
    global _is_installed
    if _is_installed or not os.environ.get(_FILE):
        return
    _is_installed = True
    shown = sys.excepthook

    def show_and_tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        shown(kind, error, trace)
        if isinstance(error, Exception):
            if isinstance(error, RuntimeError):
                time.sleep(_GIVE_WAY_S)
            write_last_words(error)

    sys.excepthook = show_and_tell


def write_last_words(error: BaseException) -> None:
    """Write `error` in the agent's format, where there is an agent."""
    path = os.environ.get(_FILE)
    if not path:
        return
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    extra = {"py_callstack": text, "timestamp": str(int(time.time()))}
    told = {"message": {"message": f"{type(error).__name__}: {error}", "extraInfo": extra}}
    with suppress(OSError), open(path, "w") as file:
        json.dump(told, file)
