"""Files, wherever they are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def get_filesystem(path: str | os.PathLike[str], **kwargs: Any) -> Any:
    """The fsspec filesystem of a path or URL."""
    from fsspec.core import url_to_fs

    return url_to_fs(str(path), **kwargs)[0]


def load(path_or_url: Any, map_location: Any = None, weights_only: bool | None = None) -> Any:
    """Read a checkpoint from a path, URL or file, without executing anything from it unless `weights_only` is False."""
    from fulgur.checkpoint.load import load_checkpoint

    return load_checkpoint(path_or_url, map_location=map_location, weights_only=weights_only)


def atomic_save(checkpoint: dict[str, Any], filepath: str | os.PathLike[str]) -> None:
    """Write a checkpoint: the file is there in full, or not at all."""
    from fulgur.checkpoint.io import TorchCheckpointIO

    TorchCheckpointIO().save_checkpoint(checkpoint, filepath)


def is_shared_filesystem(strategy: Any, path: str | os.PathLike[str] | None = None, timeout: int = 3) -> bool:
    """Whether all ranks see the same files. All ranks must call it.

    Args:
        strategy: Whose ranks.
        path: A folder; None is the working directory. What a URL names is shared.
        timeout: Seconds that a rank waits for the file of rank 0.
    """
    import tempfile
    import time

    place = os.fspath(path) if path is not None else os.getcwd()
    if "://" in place or strategy.world_size == 1:
        return True
    probe: str | None = None
    if strategy.is_global_zero:
        probe = tempfile.mkdtemp(prefix=".shared-", dir=place)
    probe = strategy.broadcast(probe)  # all ranks must reach this
    deadline = time.monotonic() + timeout
    while not os.path.exists(str(probe)) and time.monotonic() < deadline:
        time.sleep(0.1)
    is_seen = strategy.reduce_boolean_decision(os.path.exists(str(probe)), all=True)
    if strategy.is_global_zero and probe is not None:
        os.rmdir(probe)
    return bool(is_seen)


@contextmanager
def pl_legacy_patch() -> Iterator[None]:
    """For the length of a ``with`` block, old files find the classes they name. They do anyway, while installed."""
    yield
