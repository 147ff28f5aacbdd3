"""The files of a `ModelCheckpoint` that are written while training goes on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from fulgur.checkpoint.io import AsyncCheckpointIO
from fulgur.checkpoint.write import link_checkpoint
from fulgur.errors import CheckpointError

if TYPE_CHECKING:
    from fulgur.trainer import Trainer


@dataclass(frozen=True, slots=True)
class Outcome:
    """What has become of earlier saves.

    Attributes:
        num_saved: How many files are there by now.
        failure: Why the others are not; None if there are no others.
        before: What was passed to `save` with the first of those.
    """

    num_saved: int = 0
    failure: CheckpointError | None = None
    before: dict[str, Any] | None = None


class BackgroundSaves:
    """Writes through what the Trainer writes with, in a thread, and keeps account of what is not there yet.

    Methods that take the Trainer must be called on all ranks.

    Args:
        trainer: Of the run.
        on_failure: Called between two steps after a write has failed.
    """

    def __init__(self, trainer: Trainer, on_failure: Callable[[], None]) -> None:
        inner = trainer.strategy.checkpoint_io
        self._writer = AsyncCheckpointIO(inner.checkpoint_io if isinstance(inner, AsyncCheckpointIO) else inner)
        self._num_started = 0
        self._unwritten: deque[dict[str, Any]] = deque()
        if trainer.world_size == 1:  # several ranks learn of it together, at the next save
            self._writer.on_failure = partial(trainer.fit_loop.call_soon, on_failure)

    def together(self) -> AbstractContextManager[None]:
        """See `AsyncCheckpointIO.together`."""
        return self._writer.together()

    def save(self, trainer: Trainer, path: str, *, weights_only: bool, before: dict[str, Any]) -> None:
        """Begin to write; `before` is for `Outcome`."""
        trainer.save_checkpoint(path, weights_only, checkpoint_io=self._writer)
        self._num_started += 1
        self._unwritten.append(before)
        if trainer.is_global_zero:
            self._writer.after_writes(self._note_written)

    def link(self, target: str, link: str) -> None:
        """Make a link once everything so far is written. On rank 0."""
        self._writer.after_writes(partial(link_checkpoint, target, link))

    def remove(self, path: str) -> None:
        """Delete a file once everything so far is written; not if that fails. On rank 0."""
        self._writer.remove_checkpoint(path)

    def settle(self, trainer: Trainer) -> Outcome:
        """Wait for all saves, except within `together` for those of its own."""
        if self._writer.has_begun:
            return Outcome()
        failure: CheckpointError | None = None
        if trainer.is_global_zero:
            try:
                self._writer.settle()
            except CheckpointError as error:
                failure = error
        found = (failure, len(self._unwritten))
        failure, n_left = trainer.strategy.broadcast(found)  # all ranks must reach this
        before = self._unwritten[-n_left] if n_left else None
        outcome = Outcome(self._num_started - n_left, failure, before)
        self._num_started = 0
        self._unwritten.clear()
        return outcome

    def release(self) -> None:
        """Give back the memory of the copies. Call it after `settle`."""
        self._writer.release()

    def _note_written(self) -> None:
        self._unwritten.popleft()
