"""What a `ModelCheckpoint` does to files: writes, links and deletes them, at once or while training goes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from fulgur.callbacks.background_saves import BackgroundSaves
from fulgur.checkpoint.io import AsyncCheckpointIO
from fulgur.checkpoint.location import canonical, is_inside
from fulgur.checkpoint.write import link_checkpoint
from fulgur.errors import CheckpointError
from fulgur.rank import rank_zero_warn

if TYPE_CHECKING:
    from fulgur.callbacks.model_checkpoint import ModelCheckpoint
    from fulgur.trainer import Trainer

# What a save changes in its callback, besides the callback's state.
_NOTED = ("_last_global_step_saved", "_last_checkpoint_saved")


class Saves:
    """The files of one callback.

    Methods that take the Trainer must be called on all ranks.

    Args:
        callback: Whose notes of what has been saved are kept right when a save fails.
    """

    def __init__(self, callback: ModelCheckpoint) -> None:
        self._callback = callback
        self._background: BackgroundSaves | None = None
        self._resumed_from = ""

    def begin(self, trainer: Trainer) -> None:
        """When fit begins."""
        # Resolved now: a link may point elsewhere by the time something is deleted.
        self._resumed_from = canonical(trainer.ckpt_path) if trainer.ckpt_path else ""
        if self._callback.async_save or isinstance(trainer.strategy.checkpoint_io, AsyncCheckpointIO):
            self._background = BackgroundSaves(trainer, on_failure=partial(self.settle, trainer))

    def end(self, trainer: Trainer) -> None:
        """When the run is torn down: all files are there, and memory is given back."""
        background = self._background
        if background is not None:
            try:
                self.settle(trainer)
            finally:
                self._background = None
                background.release()

    def together(self) -> AbstractContextManager[None]:
        """What is saved within the block is saved at one moment."""
        return nullcontext() if self._background is None else self._background.together()

    @contextmanager
    def errors_as_told(self) -> Iterator[None]:
        """Pass the error of a save on, or not, as `on_save_error` says."""
        try:
            yield
        except CheckpointError as error:
            if self._callback.on_save_error == "stop":
                raise
            rank_zero_warn(f"{error} Training goes on (on_save_error='continue').")

    def settle(self, trainer: Trainer) -> None:
        """Wait for the files that are being written; take back what was noted of one that failed, and report it."""
        if self._background is None:
            return
        outcome = self._background.settle(trainer)
        if outcome.before is not None:
            self._take_back(outcome.before)
        if outcome.num_saved and trainer.is_global_zero:
            self._tell_loggers(trainer)
        if outcome.failure is not None:
            with self.errors_as_told():
                raise outcome.failure

    def noted(self) -> dict[str, Any]:
        """What a save changes, for `save` to take back."""
        return self._callback.state_dict() | {name: getattr(self._callback, name) for name in _NOTED}

    def save(self, trainer: Trainer, path: str, before: dict[str, Any]) -> None:
        """Write a file, or begin to.

        Args:
            trainer: Of the run.
            path: Where to.
            before: From `noted`, before the callback has noted the file. The ranking is changed before the save,
                because the file holds it, and back if there is no file.
        """
        try:
            self._write(trainer, path, before)
        except BaseException:
            self._take_back(before)
            raise

    def link(self, trainer: Trainer, target: str, path: str) -> None:
        """Make `path` lead to the file `target`, once that is there."""
        if trainer.is_global_zero:
            link = link_checkpoint if self._background is None else self._background.link
            link(target, path)

    def prune(self, trainer: Trainer, path: str) -> None:
        """Delete a file that has been replaced, unless it is not the callback's or the run was resumed from it."""
        if not path or not self._may_delete(trainer, path):
            return
        try:
            if self._background is None:
                trainer.strategy.remove_checkpoint(path)
            elif trainer.is_global_zero:
                self._background.remove(path)
        except CheckpointError as error:
            # The new file is safe: one file too many is no reason to end a run.
            rank_zero_warn(str(error))

    def _write(self, trainer: Trainer, path: str, before: dict[str, Any]) -> None:
        callback = self._callback
        if self._background is not None:
            self._background.save(trainer, path, weights_only=callback.save_weights_only, before=before)
        else:
            trainer.save_checkpoint(path, callback.save_weights_only)
        callback._last_global_step_saved = trainer.global_step
        callback._last_checkpoint_saved = path
        if self._background is None and trainer.is_global_zero:
            self._tell_loggers(trainer)

    def _take_back(self, before: dict[str, Any]) -> None:
        for name, value in before.items():
            setattr(self._callback, name, value)

    def _tell_loggers(self, trainer: Trainer) -> None:
        for logger in trainer.loggers:
            logger.after_save_checkpoint(self._callback)

    def _may_delete(self, trainer: Trainer, path: str) -> bool:
        place, dirpath = canonical(path), self._callback.dirpath
        resumed_from = {self._resumed_from, canonical(trainer.ckpt_path) if trainer.ckpt_path else ""}
        return place not in resumed_from and dirpath is not None and is_inside(path, dirpath)
