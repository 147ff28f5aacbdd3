"""Worker processes started by `multiprocessing` import the old names too.

A forked worker has everything already. A spawned one, or one of a fork server, begins with a fresh interpreter and
what `multiprocessing` prepares for it, which is read before the program's own modules are imported: the order to
install goes along with it. A ``sitecustomize`` on the path would do it too, and every other Python that is started
from here would find it.
"""

from __future__ import annotations

import functools
import os
import sys
from importlib import import_module
from typing import Any

import fulgur

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(fulgur.__file__)))
_IN_CHILD = """
import sys
if {root!r} not in sys.path:  # the parent's path is set later
    sys.path.append({root!r})
import fulgur.compat
fulgur.compat.install(version={version!r})
"""


class _Order:
    """Unpickled, it installs; what comes out is None."""

    def __init__(self, version: str) -> None:
        self.version = version

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (_IN_CHILD.format(root=_ROOT, version=self.version), {})


def follow(*, now: bool = False) -> None:
    """Send the order along with every worker. Waits until `multiprocessing.spawn` is loaded, unless `now`."""
    if now:
        import_module("multiprocessing.spawn")
    spawn: Any = sys.modules.get("multiprocessing.spawn")
    if spawn is None or hasattr(spawn.get_preparation_data, "of_fulgur"):
        return
    original = spawn.get_preparation_data

    @functools.wraps(original)
    def get_preparation_data(name: str) -> dict[str, Any]:
        from fulgur.compat import installed_version

        data: dict[str, Any] = original(name)
        version = installed_version()
        return data if version is None else {**data, "fulgur.compat": _Order(version)}

    get_preparation_data.of_fulgur = original  # type: ignore[attr-defined]
    spawn.get_preparation_data = get_preparation_data


def unfollow() -> None:
    """Send nothing along any more."""
    spawn: Any = sys.modules.get("multiprocessing.spawn")
    original = getattr(getattr(spawn, "get_preparation_data", None), "of_fulgur", None)
    if original is not None:
        spawn.get_preparation_data = original
