"""A new directory in the place of what was there, in one instant."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sys
from pathlib import Path

from fulgur.checkpoint.temporary import temporary_name

_AT_FDCWD = -100
_EXCHANGE = 2
_NOT_HERE = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)


def put_in_place(source: Path, target: Path) -> None:
    """Rename the directory `source` to `target`; what was there is deleted afterwards.

    Whoever looks sees the earlier checkpoint or the new one. Where the system cannot exchange two names at once (other
    systems than Linux, some network disks) the earlier one is renamed first, and for an instant there is none.
    """
    if not os.path.lexists(target):
        os.replace(source, target)
        return
    earlier = source
    if not _exchange(source, target):
        earlier = target.with_name(temporary_name(target.name))
        os.replace(target, earlier)
        os.replace(source, target)
    if earlier.is_dir() and not earlier.is_symlink():
        shutil.rmtree(earlier)
    else:
        earlier.unlink()


def _exchange(first: Path, second: Path) -> bool:
    """Let two names change places in one instant. False where the system cannot."""
    if sys.platform != "linux":
        return False
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    if rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NOT_HERE:
        return False
    raise OSError(number, os.strerror(number), str(first), None, str(second))
