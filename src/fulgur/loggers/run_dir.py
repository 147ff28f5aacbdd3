"""Where a logger's files lie: ``save_dir/name/version_N``, on local disks and behind fsspec URLs."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_VERSION = re.compile(r"version_([0-9]+)(?:_.*)?")


def expand_path(path: str | os.PathLike[str]) -> str:
    """`path` as a string, with ``~`` and environment variables replaced."""
    return os.path.expanduser(os.path.expandvars(os.fspath(path)))


def is_remote(path: str) -> bool:
    """Whether `path` is a URL, to be reached through fsspec."""
    return "://" in path


def join_path(path: str, *parts: str) -> str:
    """`path` and those of `parts` that are not empty, joined."""
    parts = tuple(part for part in parts if part)
    return "/".join((path.rstrip("/"), *parts)) if is_remote(path) else os.path.join(path, *parts)


def version_dir(version: int | str) -> str:
    """Name of a version's directory: ``version_N`` for an int, a string as it is."""
    return version if isinstance(version, str) else f"version_{version}"


def find_next_version(root_dir: str) -> int:
    """The number after the highest ``version_N`` in `root_dir`; 0 if there is none."""
    return next(iter(find_versions(root_dir)), -1) + 1


def find_versions(root_dir: str) -> list[int]:
    """The numbers of all ``version_N`` in `root_dir`, highest first."""
    matches = map(_VERSION.fullmatch, _list_names(root_dir))
    return sorted({int(match[1]) for match in matches if match}, reverse=True)


def claim_version(root_dir: str) -> int:
    """Create the directory of the next version in `root_dir` and return its number.

    Two processes that do this at the same time on a local disk get different numbers.
    """
    while True:
        version = find_next_version(root_dir)
        path = join_path(root_dir, version_dir(version))
        if is_remote(path):
            make_dir(path)
            return version
        os.makedirs(root_dir, exist_ok=True)
        try:
            os.mkdir(path)
        except FileExistsError:
            continue
        return version


def make_dir(path: str) -> None:
    """Create a directory and its parents, unless it exists."""
    if is_remote(path):
        fs, fs_path = split_url(path)
        fs.makedirs(fs_path, exist_ok=True)
    else:
        os.makedirs(path, exist_ok=True)


def write_text(path: str, text: str) -> None:
    """Write a whole file. On a local disk a reader, or a kill, sees the old file or the new one."""
    if is_remote(path):
        fs, fs_path = split_url(path)
        fs.pipe_file(fs_path, text.encode())
        return
    temporary = f"{path}.tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(temporary, path)


def exists(path: str) -> bool:
    """Whether there is a file or directory at `path`."""
    if is_remote(path):
        fs, fs_path = split_url(path)
        return bool(fs.exists(fs_path))
    return os.path.exists(path)


def move_aside(path: str) -> str:
    """Rename a file ``x.csv`` to the first free one of ``x_0.csv``, ``x_1.csv``, … and return its new path."""
    stem, extension = os.path.splitext(path)
    number = 0
    while exists(target := f"{stem}_{number}{extension}"):
        number += 1
    if is_remote(path):
        fs, fs_path = split_url(path)
        fs.mv(fs_path, split_url(target)[1])
    else:
        os.rename(path, target)
    return target


def split_url(url: str) -> tuple[AbstractFileSystem, str]:
    """The filesystem of a URL and the path in it."""
    from fsspec.core import url_to_fs

    fs, path = url_to_fs(url)
    return fs, path


def _list_names(path: str) -> list[str]:
    try:
        if is_remote(path):
            fs, fs_path = split_url(path)
            fs.invalidate_cache(fs_path)
            return [entry.rstrip("/").rsplit("/", 1)[-1] for entry in fs.ls(fs_path, detail=False)]
        return os.listdir(path)
    except FileNotFoundError:
        return []


def choose_save_dir(cls: type, save_dir: Any, root_dir: Any) -> str | os.PathLike[str]:
    """The one that was given of `save_dir` and its name in Fabric's loggers.

    Raises:
        TypeError: Both were given, or neither.
    """
    if (save_dir is None) == (root_dir is None):
        raise TypeError(f"{cls.__name__} got save_dir={save_dir!r} and root_dir={root_dir!r}. Give one: save_dir.")
    chosen: str | os.PathLike[str] = root_dir if save_dir is None else save_dir
    return chosen
