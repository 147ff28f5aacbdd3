"""Where a checkpoint lies: a local path, or a URL of any filesystem fsspec knows."""

from __future__ import annotations

import os
import posixpath
import re
from typing import Any

META_FILE = "meta.pt"
"""In a sharded checkpoint: everything that is no shard."""

# Two characters at least, so that a Windows drive is no protocol.
_PROTOCOL = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.\-]+)://")


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is a URL of something else than the local disk.

    Example:
        >>> is_remote("s3://bucket/a.ckpt"), is_remote("/tmp/a.ckpt"), is_remote("file:///tmp/a.ckpt")
        (True, False, False)
    """
    found = _PROTOCOL.match(os.fspath(path))
    return found is not None and found[1] not in ("file", "local")


def local_path(path: str | os.PathLike[str]) -> str:
    """`path` as the operating system wants it: without ``file://``, with ``~`` expanded."""
    return os.path.expanduser(_PROTOCOL.sub("", os.fspath(path)))


def canonical(path: str | os.PathLike[str]) -> str:
    """One spelling for each place: absolute and with links resolved on the local disk, normalized in a URL."""
    if not is_remote(path):
        return os.path.realpath(local_path(path))
    protocol, rest = os.fspath(path).split("://", 1)
    return f"{protocol}://{posixpath.normpath(rest)}"


def join(directory: str | os.PathLike[str], name: str) -> str:
    """`name` inside `directory`, with the separator of the place."""
    if is_remote(directory):
        return f"{os.fspath(directory).rstrip('/')}/{name}"
    return os.path.join(os.fspath(directory), name)


def directory_of(path: str | os.PathLike[str]) -> str:
    """The directory that holds `path`; for a URL, with its protocol."""
    if not is_remote(path):
        return os.path.dirname(local_path(path)) or "."
    protocol, rest = os.fspath(path).split("://", 1)
    return f"{protocol}://{posixpath.dirname(rest)}"


def is_sharded(path: str | os.PathLike[str]) -> bool:
    """Whether there is a sharded checkpoint at `path`, whole or not: a directory, see `sharded.py`."""
    return not is_remote(path) and os.path.isfile(os.path.join(local_path(path), META_FILE))


def is_inside(path: str, directory: str) -> bool:
    """Whether `path` lies somewhere below `directory`; a link lies where it is, not where it leads."""
    separator = "/" if is_remote(directory) else os.sep
    holder, top = (canonical(place).rstrip(separator) + separator for place in (directory_of(path), directory))
    return holder.startswith(top)


def open_filesystem(url: str, storage_options: dict[str, Any] | None = None) -> tuple[Any, str]:
    """The fsspec filesystem of a URL, and the path to use with it."""
    from fsspec.core import url_to_fs

    filesystem, path = url_to_fs(url, **(storage_options or {}))
    return filesystem, path


def list_files(directory: str | os.PathLike[str]) -> list[str]:
    """Names of the entries of `directory`, sorted; empty when there is no such directory."""
    if not is_remote(directory):
        path = local_path(directory)
        return sorted(os.listdir(path)) if os.path.isdir(path) else []
    filesystem, path = open_filesystem(os.fspath(directory))
    if not filesystem.isdir(path):
        return []
    return sorted(posixpath.basename(entry.rstrip("/")) for entry in filesystem.ls(path, detail=False))


def modified_at(location: str) -> float:
    """When a file was written, in seconds since 1970; 0 where its store does not tell."""
    if not is_remote(location):
        return os.path.getmtime(local_path(location))
    filesystem, path = open_filesystem(location, None)
    try:
        return float(filesystem.modified(path).timestamp())
    except NotImplementedError:
        return 0.0
