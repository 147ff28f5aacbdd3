"""What the tests of checkpoints have in common."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import fsspec
import pytest

from fulgur.checkpoint.io import TorchCheckpointIO


@pytest.fixture
def store() -> Iterator[str]:
    """URL of a store in memory, emptied at the end."""
    filesystem = fsspec.filesystem("memory")
    yield "memory://runs"
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]


class HeldCheckpointIO(TorchCheckpointIO):
    """Writes when it is let go; notes what it does, and can be made to fail."""

    def __init__(self) -> None:
        super().__init__(num_tries=1)
        self.done: list[tuple[str, str]] = []
        self.fails: Exception | None = None
        self._may_go = threading.Event()
        self._may_go.set()

    def hold(self) -> None:
        self._may_go.clear()

    def let_go(self) -> None:
        self._may_go.set()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        assert self._may_go.wait(timeout=60)
        if self.fails is not None:
            raise self.fails
        super().save_checkpoint(checkpoint, path, storage_options)
        self.done.append(("write", str(path)))

    def remove_checkpoint(self, path: Any) -> None:
        super().remove_checkpoint(path)
        self.done.append(("remove", str(path)))


@pytest.fixture
def held() -> Iterator[HeldCheckpointIO]:
    checkpoint_io = HeldCheckpointIO()
    yield checkpoint_io
    checkpoint_io.let_go()
