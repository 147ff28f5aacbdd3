"""Getting a checkpoint to its place whole or not at all.

A checkpoint is written under a temporary name in the directory it belongs to and renamed when all of it is on the
disk. Whoever looks sees the earlier file or the new one, never a part, whatever instant the process is killed at.
"""

from __future__ import annotations

import os
import pickle
import posixpath
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import torch

from fulgur.checkpoint.location import is_remote, local_path, open_filesystem
from fulgur.checkpoint.seal import SealingFile, describe
from fulgur.checkpoint.temporary import (
    mark_as_written,
    remove_leftovers,
    remove_remote_leftovers,
    temporary_name,
)
from fulgur.errors import CheckpointError
from fulgur.rank import rank_zero_info

T = TypeVar("T")

# What no second try helps: the content cannot be stored, or the place is none for a file.
_HOPELESS = (
    pickle.PicklingError,
    TypeError,
    AttributeError,
    ValueError,
    ImportError,
    IsADirectoryError,
    NotADirectoryError,
)


def write_checkpoint(
    checkpoint: dict[str, Any],
    path: str | os.PathLike[str],
    *,
    storage_options: dict[str, Any] | None = None,
    num_tries: int = 1,
    pause_s: float = 1.0,
) -> None:
    """Write `checkpoint` to `path`, with a checksum, so that it is there completely, or not at all.

    Directories on the way are created, and temporary files removed that a killed run has left beside `path`. An
    earlier file at `path` is replaced in the instant in which the new one is safe. Copies from the device: waits for
    it. Call on one process.

    Args:
        checkpoint: What to store; anything `torch.save` takes.
        path: A local path, or a URL of any filesystem fsspec knows.
        storage_options: Arguments for the fsspec filesystem of a URL: keys, endpoints. Unused for local paths.
        num_tries: How often to try when a disk or a store fails. >= 1.
        pause_s: Time before the second try; it doubles with each.

    Raises:
        CheckpointError: It could not be written. Nothing has changed at `path`, and no temporary file is left.
    """
    location = os.fspath(path)
    failure = f"The checkpoint {location!r} could not be written"
    try:
        _try(lambda: _write(checkpoint, location, storage_options), failure, num_tries, pause_s)
    except CheckpointError as error:
        raise CheckpointError(f"{error} Earlier checkpoints are untouched.") from error.__cause__


def _try(call: Callable[[], T], failure: str, num_tries: int, pause_s: float) -> T:
    for i_try in range(1, num_tries):
        try:
            return call()
        except Exception as error:
            cause = _root_cause(error)
            if isinstance(cause, _HOPELESS):
                raise _failed(failure, cause, i_try) from error
        rank_zero_info(f"{failure}: {type(cause).__name__}: {cause}. Trying again in {pause_s:g} s.")
        time.sleep(pause_s)
        pause_s *= 2
    try:
        return call()
    except Exception as error:
        raise _failed(failure, _root_cause(error), num_tries) from error


def _failed(failure: str, cause: BaseException, n_tries: int) -> CheckpointError:
    tries = f" in {n_tries} tries" if n_tries > 1 else ""
    return CheckpointError(f"{failure}{tries}: {type(cause).__name__}: {cause}.")


def _write(checkpoint: dict[str, Any], location: str, storage_options: dict[str, Any] | None) -> None:
    if is_remote(location):
        return _write_remote(checkpoint, location, storage_options)
    target = Path(local_path(location))
    make_directory(target.parent)
    remove_leftovers(target.parent)
    _replace(target, lambda temporary: _write_synced(checkpoint, temporary))


def remove_checkpoint(path: str | os.PathLike[str], *, storage_options: dict[str, Any] | None = None) -> None:
    """Delete the checkpoint at `path`: a file, a link (not what it points to), or a directory of shards.

    Does nothing when there is none. Call on one process.

    Raises:
        CheckpointError: It is there and cannot be deleted.
    """
    location = os.fspath(path)
    try:
        if is_remote(location):
            _remove_remote(location, storage_options)
        else:
            _remove_local(_out_of_sight(Path(local_path(location))))
    except FileNotFoundError:
        pass
    except Exception as error:
        raise CheckpointError(
            f"The checkpoint {location!r} could not be deleted: {type(error).__name__}: {error}."
        ) from error


def link_checkpoint(target: str | os.PathLike[str], link: str | os.PathLike[str]) -> None:
    """Make `link` point to `target` with a relative symbolic link, replacing what `link` was in one instant.

    Where the disk has no links, `target` is copied. Local paths only.

    Raises:
        ValueError: One of the two is a URL.
        CheckpointError: Neither a link nor a copy could be made.
    """
    if is_remote(target) or is_remote(link):
        raise ValueError(
            f"Links exist on local disks only; got target={os.fspath(target)!r}, link={os.fspath(link)!r}."
        )
    source, place = Path(local_path(target)), Path(local_path(link))
    try:
        make_directory(place.parent)
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        try:
            relative = os.path.relpath(source, os.path.realpath(place.parent))
            _replace(place, lambda temporary: os.symlink(relative, temporary, target_is_directory=source.is_dir()))
        except OSError:
            _replace(place, lambda temporary: _copy(source, temporary))
    except OSError as error:
        raise CheckpointError(f"{str(place)!r} could not be linked to {str(source)!r}: {error}.") from error


def name_again(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> bool:
    """Give the file at `source` a second name, `target`, in one instant: the two are one file, written once.

    Returns:
        Whether that could be done; it cannot for URLs, directories, and from one disk to another.
    """
    if is_remote(source) or is_remote(target):
        return False
    file, place = Path(local_path(source)), Path(local_path(target))
    if not file.is_file() or place.is_dir():
        return False
    try:
        if place.exists() and place.samefile(file):
            return True
        make_directory(place.parent)
        _replace(place, lambda temporary: os.link(file, temporary, follow_symlinks=True))
    except OSError:
        return False
    return True


def checkpoint_exists(path: str | os.PathLike[str], *, storage_options: dict[str, Any] | None = None) -> bool:
    """Whether there is a file or directory at `path`; a link that leads nowhere is none.

    Raises:
        CheckpointError: A store did not answer three times.
    """
    location = os.fspath(path)
    if not is_remote(location):
        return os.path.exists(local_path(location))

    def look() -> bool:
        filesystem, inner = open_filesystem(location, storage_options)
        return bool(filesystem.exists(inner))

    return _try(look, f"The store of {location!r} could not be asked for it", num_tries=3, pause_s=1.0)


def _replace(target: Path, build: Callable[[Path], None]) -> None:
    """Let `build` make a temporary file beside `target`, then put it in the place of `target`."""
    temporary = target.with_name(temporary_name(target.name))
    try:
        build(temporary)
        os.replace(temporary, target)
    except BaseException:
        _remove_local(temporary)
        raise
    sync_directory(target.parent)


def _write_synced(checkpoint: dict[str, Any], path: Path) -> None:
    with open(path, "x+b") as file:
        mark_as_written(file)
        _write_sealed(checkpoint, SealingFile(file, can_read=True))
        file.flush()
        os.fsync(file.fileno())


def _write_sealed(checkpoint: dict[str, Any], file: SealingFile) -> int:
    """Returns the size of the file in bytes."""
    torch.save(checkpoint, cast("IO[bytes]", file))  # waits for the device
    file.finish(describe(checkpoint))
    return file.size_bytes


def _write_remote(checkpoint: dict[str, Any], url: str, storage_options: dict[str, Any] | None) -> None:
    filesystem, path = open_filesystem(url, storage_options)
    parent, name = posixpath.split(path)
    filesystem.makedirs(parent, exist_ok=True)
    remove_remote_leftovers(filesystem, parent)
    temporary = posixpath.join(parent, temporary_name(name))
    try:
        with filesystem.open(temporary, "wb") as file:
            size = _write_sealed(checkpoint, SealingFile(file))
        if (found := filesystem.size(temporary)) not in (size, None):
            raise OSError(f"the store has {found} bytes, of {size} that were written")
        filesystem.mv(temporary, path)
    except BaseException:
        with suppress(Exception):  # a store that failed once may fail here too
            filesystem.rm_file(temporary)
        raise


def _remove_remote(url: str, storage_options: dict[str, Any] | None) -> None:
    filesystem, path = open_filesystem(url, storage_options)
    if filesystem.isdir(path):
        filesystem.rm(path, recursive=True)
    else:
        filesystem.rm_file(path)


def _out_of_sight(path: Path) -> Path:
    """A directory under a temporary name, so that a kill leaves no part of it under its own."""
    if not path.is_dir() or path.is_symlink():
        return path
    hidden = path.with_name(temporary_name(path.name))
    os.rename(path, hidden)
    return hidden


def _remove_local(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)


def make_directory(directory: Path) -> None:
    """Create `directory` and those above it, so that they are there after a crash too."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    for created in missing:
        sync_directory(created.parent)


def sync_directory(directory: Path) -> None:
    """Bring a rename or a new entry of `directory` to the disk."""
    if os.name == "nt":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _root_cause(error: BaseException) -> BaseException:
    """The operating system's error where torch's zip writer put one of its own in front of it."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return error
