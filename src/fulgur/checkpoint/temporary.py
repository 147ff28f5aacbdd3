"""Names of files that are being written, and what to do with those that a killed run has left behind."""

from __future__ import annotations

import os
import posixpath
import re
import shutil
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]

_NAME = re.compile(r"\..{1,80}\.[0-9a-f]{12}\.tmp", re.DOTALL)
LOCK_FILE = ".lock"
"""In a directory that is being written: locked for as long."""

_OF_SHARDS = re.compile(r"\.lock|\.metadata|meta\.pt|__\d+_\d+\.distcp")
_UNLOCKED_AGE_S = 60.0  # a writer locks its file at once, and writes to it all the time
_UNKNOWN_AGE_S = 24 * 3600.0  # where there are no locks


def temporary_name(name: str) -> str:
    """A new name for a file that is to become `name`.

    Hidden, and without the extension, so that nobody who looks for checkpoints finds it. Cut, because a name may be as
    long as the disk allows; without characters that fsspec takes for a pattern.
    """
    return f".{re.sub(r'[][*?]', '_', name[:80])}.{os.urandom(6).hex()}.tmp"


def mark_as_written(file: IO[bytes]) -> None:
    """Lock `file` for as long as it is open, which ends with the process, whatever ends it."""
    if fcntl is not None:
        with suppress(OSError):  # not every network disk has locks
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)


def remove_leftovers(directory: Path) -> None:
    """Delete temporary files in `directory` that nobody writes to any more. What cannot be deleted stays."""
    with suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            if _NAME.fullmatch(entry.name):
                with suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        _remove_directory(entry.path)
                    elif _is_abandoned(entry.path):
                        os.unlink(entry.path)


def remove_remote_leftovers(filesystem: Any, directory: str) -> None:
    """Delete temporary files of a store that are a day old."""
    with suppress(Exception):  # whatever a store may raise: this is not what the caller came for
        for path in filesystem.ls(directory, detail=False):
            is_own = _NAME.fullmatch(posixpath.basename(path)) is not None
            if is_own and time.time() - filesystem.modified(path).timestamp() > _UNKNOWN_AGE_S:
                filesystem.rm_file(path)


def _remove_directory(path: str) -> None:
    """Delete a directory of shards that nobody writes to, or that somebody was about to delete."""
    with os.scandir(path) as entries:
        written = {entry.name: entry.stat().st_mtime for entry in entries}
    is_own = any(_OF_SHARDS.fullmatch(name) for name in written)
    is_old = time.time() - max([os.lstat(path).st_mtime, *written.values()]) > _UNLOCKED_AGE_S
    if is_own and is_old and (LOCK_FILE not in written or _is_abandoned(os.path.join(path, LOCK_FILE))):
        shutil.rmtree(path)


def _is_abandoned(path: str) -> bool:
    status = os.lstat(path)
    age = time.time() - status.st_mtime
    if fcntl is None or not stat.S_ISREG(status.st_mode):
        return age > _UNKNOWN_AGE_S
    if age < _UNLOCKED_AGE_S:
        return False
    with open(path, "rb") as file:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return age > _UNKNOWN_AGE_S
    return True
