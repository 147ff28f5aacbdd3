"""OnExceptionCheckpoint: what was trained is kept when a run breaks."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from fulgur.callbacks.checkpoint import Checkpoint
from fulgur.checkpoint.location import canonical, join
from fulgur.errors import CheckpointError
from fulgur.rank import rank_zero_warn

if TYPE_CHECKING:
    from fulgur.module import LightningModule
    from fulgur.trainer import Trainer


class OnExceptionCheckpoint(Checkpoint):
    """Saves a checkpoint when an exception, Ctrl-C included, ends fit; removes it after a run that went well.

    With this callback in the list, `trainer.fit(model)` resumes from the file by itself.

    Args:
        dirpath: Directory or URL to save in.
        filename: Name of the file, without the extension.

    Raises:
        ValueError: `filename` is empty.
    """

    FILE_EXTENSION = ".ckpt"

    def __init__(self, dirpath: str | os.PathLike[str], filename: str = "on_exception") -> None:
        if not filename:
            raise ValueError("filename='' names no file. Leave it out for 'on_exception', or pass a name.")
        self.dirpath = os.fspath(dirpath)
        self.filename = filename
        self._has_failed = False

    @property
    def ckpt_path(self) -> str:
        """Where the checkpoint is, or would be."""
        return join(canonical(self.dirpath), self.filename + self.FILE_EXTENSION)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._has_failed = False

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._has_failed = True
        if trainer.state.fn != "fit" or trainer.fast_dev_run:
            return
        try:
            trainer.save_checkpoint(self.ckpt_path)
        except CheckpointError as error:
            # The exception that ended the run is the one to be seen.
            rank_zero_warn(f"No checkpoint was saved on {type(exception).__name__}: {error}")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # After an exception teardown runs too, and the file is there to stay.
        if stage == "fit" and not self._has_failed:
            trainer.strategy.remove_checkpoint(self.ckpt_path)
