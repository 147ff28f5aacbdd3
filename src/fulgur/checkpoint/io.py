"""How checkpoints get to their place and back: a plugin of the Trainer.

`TorchCheckpointIO` is what is used unless told otherwise. ``Trainer(plugins=[AsyncCheckpointIO()])`` writes while
training goes on. For anything else subclass `CheckpointIO`.
"""

from __future__ import annotations

import os
import queue
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from fulgur.checkpoint.load import MapLocation, load_checkpoint
from fulgur.checkpoint.location import is_remote
from fulgur.checkpoint.write import remove_checkpoint, write_checkpoint
from fulgur.errors import CheckpointError
from fulgur.rank import rank_zero_warn


class CheckpointIO(ABC):
    """Writes, reads and deletes checkpoints. Subclass it to do so in a way of your own.

    Each method is called on rank 0 only, except `load_checkpoint`, which is called on all ranks. Do not keep what
    `save_checkpoint` is given: its tensors change afterwards.
    """

    @abstractmethod
    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write `checkpoint` to `path`, whole or not at all.

        Raises:
            CheckpointError: It could not be written. What any other class of exception says is not handled.
        """

    @abstractmethod
    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: MapLocation = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The checkpoint at `path`, with its tensors where `map_location` says."""

    @abstractmethod
    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Delete the checkpoint at `path`, if there is one."""

    def teardown(self) -> None:
        """Called at the end of every run: finish what is under way."""


class TorchCheckpointIO(CheckpointIO):
    """One file of `torch.save` for each checkpoint, on a disk or on any store that fsspec knows.

    A file appears whole or not at all, carries a checksum, and is verified before it is opened.

    Args:
        storage_options: Arguments for the fsspec filesystem of URLs: keys, endpoints.
        num_tries: How often to try when a disk or a store fails before the error is raised. >= 1.
        pause_s: Time before the second try; it doubles with each.

    Raises:
        ValueError: `num_tries` is less than 1.
    """

    def __init__(
        self, *, storage_options: dict[str, Any] | None = None, num_tries: int = 3, pause_s: float = 1.0
    ) -> None:
        if num_tries < 1:
            raise ValueError(f"num_tries={num_tries} would never write anything. Use 1 or more.")
        self.storage_options = storage_options
        self.num_tries = num_tries
        self.pause_s = pause_s

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write `checkpoint` to `path`; see `fulgur.checkpoint.write.write_checkpoint`.

        Raises:
            CheckpointError: It could not be written in `num_tries` tries. Earlier checkpoints are untouched.
            TypeError: There are `storage_options`, and `path` is a local one.
        """
        if storage_options is not None and not is_remote(path):
            raise TypeError(
                f"storage_options={storage_options!r} is for URLs, and {os.fspath(path)!r} is a local path. Leave it "
                "out, or use a CheckpointIO of your own that takes it."
            )
        write_checkpoint(
            checkpoint,
            path,
            storage_options=self.storage_options if storage_options is None else storage_options,
            num_tries=self.num_tries,
            pause_s=self.pause_s,
        )

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: MapLocation = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return load_checkpoint(
            path,
            map_location=map_location,
            weights_only=weights_only,
            storage_options=self.storage_options,
            needs_hparams=weights_only is not None,
        )

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        remove_checkpoint(path, storage_options=self.storage_options)


class AsyncCheckpointIO(CheckpointIO):
    """Writes while training goes on: the loop waits only for a copy to the host's memory.

    The file holds the state of the moment of the save. One write is under way at a time: the next save waits for it.
    What goes wrong is raised at the next save, or when a run ends; `on_failure` tells sooner. Deleting waits for the
    writes before it, and is left out if one of them fails. Takes as much of the host's memory as a checkpoint is large,
    from the first save to the end of the run.

    Args:
        checkpoint_io: What does the writing, in a thread. ``None`` is a `TorchCheckpointIO`.

    Attributes:
        on_failure: Called in that thread when a write has failed; None for nobody.
    """

    def __init__(self, checkpoint_io: CheckpointIO | None = None) -> None:
        self.checkpoint_io = TorchCheckpointIO() if checkpoint_io is None else checkpoint_io
        self.on_failure: Callable[[], None] | None = None
        from fulgur.checkpoint.stage import HostStage

        self._stage = HostStage()
        self._lock = threading.Lock()
        self._tasks: deque[Callable[[], None]] = deque()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._is_together = self._has_begun = False

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Copy `checkpoint` to the host, and begin to write it.

        Raises:
            CheckpointError: An earlier write has failed, or there can be no copy; this one has not begun.
        """
        save = self.checkpoint_io.save_checkpoint
        self.begin(checkpoint, lambda copied: save(copied, path, storage_options), os.fspath(path))

    def begin(self, content: Any, write: Callable[[Any], None], path: str) -> None:
        """Copy `content` to the host, and have `write` called with the copy in the thread.

        Args:
            content: Nested containers with tensors.
            write: Does not keep what it is given.
            path: For messages.

        Raises:
            CheckpointError: As for `save_checkpoint`.
        """
        self.settle()
        if not self._has_begun:
            self._stage.take_back()
        copied: queue.SimpleQueue[Any] = queue.SimpleQueue()
        # order matters: a thread that starts keeps the interpreter busy; this one then waits for the copy
        self._put(partial(self._write, copied, write))
        staged = None
        try:
            staged = self._copy(content, path)
        finally:
            copied.put(staged)
        self._has_begun = self._is_together
        if not self._is_together:
            self._stage.forget_sources()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Take all saves in the ``with`` block for saves of one moment, between which nothing is trained.

        Tensors that they share are copied once, and none of them waits for the other.
        """
        self._is_together = True
        try:
            yield
        finally:
            self._is_together = self._has_begun = False
            self._stage.forget_sources()

    @property
    def has_begun(self) -> bool:
        """Whether within `together` a save has begun."""
        return self._has_begun

    def settle(self) -> None:
        """Wait for the writes of earlier moments, and raise what went wrong with them."""
        if not self._has_begun:
            self.wait()

    def wait(self) -> None:
        """Wait for all writes, and raise what went wrong with them."""
        self._join()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def after_writes(self, call: Callable[[], None]) -> None:
        """Have `call` made once everything before it is written; not if a write fails. At once if nothing is."""
        if self._thread is None and self._error is None:
            call()
        else:
            self._put(call)

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: MapLocation = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        self._join()
        return self.checkpoint_io.load_checkpoint(path, map_location=map_location, weights_only=weights_only)

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Delete the checkpoint at `path`, once everything before is written."""
        self.after_writes(partial(self._remove, path))

    def teardown(self) -> None:
        """Wait for all writes, and give the memory back.

        Raises:
            CheckpointError: A write has failed.
        """
        try:
            self.wait()
        finally:
            self.release()
            self.checkpoint_io.teardown()

    def release(self) -> None:
        """Wait for all writes, and give the memory of the copies back."""
        self._join()
        self._stage.release()

    def _copy(self, content: Any, path: str) -> Any:
        try:
            return self._stage.copy(content)
        except Exception as error:
            raise CheckpointError(
                f"The checkpoint {path!r} could not be copied to the host, and was not written: "
                f"{type(error).__name__}: {error}. Earlier checkpoints are untouched."
            ) from error

    # ---- in the thread --------------------------------------------------------------------------------------------

    def _put(self, task: Callable[[], None]) -> None:
        with self._lock:
            self._tasks.append(task)
            if self._thread is None:
                # Not a daemon: the interpreter waits for it, so that even a program that just ends has its last save.
                self._thread = threading.Thread(target=self._work, name="fulgur-checkpoint")
                self._thread.start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if self._error is not None:
                    self._tasks.clear()
                if not self._tasks:
                    self._thread = None
                    break
                task = self._tasks.popleft()
            try:
                task()
            except BaseException as error:
                self._error = error
                if self.on_failure is not None:
                    self.on_failure()
            del task  # and with it the copies

    def _join(self) -> None:
        thread = self._thread
        if thread is not None:
            thread.join()

    def _write(self, copied: queue.SimpleQueue[Any], write: Callable[[Any], None]) -> None:
        staged = copied.get()
        if staged is not None:
            self._stage.wait()
            write(staged)

    def _remove(self, path: str | os.PathLike[str]) -> None:
        try:
            self.checkpoint_io.remove_checkpoint(path)
        except CheckpointError as error:
            # The new file is safe: one file too many is no reason to end a run.
            rank_zero_warn(str(error))
