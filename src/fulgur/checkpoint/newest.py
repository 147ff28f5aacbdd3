"""The checkpoint to go on from: the newest of a directory that is whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from fulgur.checkpoint.load import load_checkpoint
from fulgur.checkpoint.location import canonical, is_remote, join, list_files, local_path, modified_at, open_filesystem
from fulgur.checkpoint.seal import describe
from fulgur.checkpoint.verify import verify_checkpoint
from fulgur.errors import CheckpointError
from fulgur.rank import rank_zero_info

EXTENSION = ".ckpt"


@dataclass(frozen=True, slots=True)
class _Candidate:
    path: str
    is_full: bool
    rank: tuple[int, int, float]


def find_newest(directory: str | os.PathLike[str], *, depth: int = 1) -> str | None:
    """The newest checkpoint in `directory` that is whole and that training can go on from.

    The newest is the one with the most steps, then with the most batches, then the one that was written last. A line is
    logged for each file that is passed over, with the reason. Of a file, no more is read than its end, until it is the
    one; that is read whole.

    Args:
        directory: A local path, or a URL of any filesystem fsspec knows.
        depth: How deep to look: 1 for the files in it, 2 for those in its directories too, as names with a slash make
            them.

    Returns:
        Path or URL. None if there is no such file.
    """
    candidates = [candidate for path in _find_files(os.fspath(directory), depth) for candidate in _look_at(path)]
    for candidate in sorted(candidates, key=lambda candidate: candidate.rank, reverse=True):
        if not candidate.is_full:
            _tell(candidate.path, "holds weights only: training cannot go on from it")
            continue
        reason = _find_flaw(candidate.path)
        if reason is None:
            return candidate.path
        _tell(candidate.path, reason)
    return None


def _find_files(directory: str, depth: int) -> Iterator[str]:
    """Files by name; one that several links lead to comes once, under its own name."""
    found: dict[str, str] = {}
    for path in _walk(directory, depth):
        place = canonical(path)
        if place not in found or not os.path.islink(path):
            found[place] = path
    yield from found.values()


def _walk(directory: str, depth: int) -> Iterator[str]:
    for name in list_files(directory):
        path = join(directory, name)
        if name.endswith(EXTENSION):
            yield path
        elif depth > 1 and _is_directory(path):
            yield from _walk(path, depth - 1)


def _is_directory(path: str) -> bool:
    if not is_remote(path):
        return os.path.isdir(local_path(path))
    filesystem, inner = open_filesystem(path)
    return bool(filesystem.isdir(inner))


def _look_at(path: str) -> Iterator[_Candidate]:
    """What can be told from the ends of a file; nothing if it is none to go on from."""
    try:
        verdict = verify_checkpoint(path, reads_all=False)
        if not verdict.is_usable:
            return _tell(path, verdict.reason)
        if verdict.seal is not None:
            yield _candidate(path, verdict.seal.global_step, verdict.seal.batches_total, verdict.seal.is_full)
            return
        content = describe(load_checkpoint(path, map_location="meta", mmap=True, needs_hparams=False))
        yield _candidate(path, content.get("global_step"), content.get("batches_total"), content["is_full"])
    except (CheckpointError, OSError) as error:
        _tell(path, f"cannot be read: {error}")


def _candidate(path: str, global_step: int | None, batches_total: int | None, is_full: bool) -> _Candidate:
    steps, batches = (-1 if number is None else number for number in (global_step, batches_total))
    return _Candidate(path, is_full, (steps, batches, modified_at(path)))


def _find_flaw(path: str) -> str | None:
    try:
        verdict = verify_checkpoint(path)
    except OSError as error:
        return f"cannot be read: {error}"
    return None if verdict.is_usable else verdict.reason


def _tell(path: str, reason: str) -> None:
    rank_zero_info(f"{path} is passed over: it {reason}.")
