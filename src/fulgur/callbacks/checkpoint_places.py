"""Where a `ModelCheckpoint` puts its files."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from fulgur.checkpoint.location import canonical, is_remote, join, list_files
from fulgur.errors import PossibleUserWarning
from fulgur.rank import rank_zero_warn

if TYPE_CHECKING:
    from fulgur.trainer import Trainer


def directory_of_run(trainer: Trainer, version: int | str | None) -> str:
    """The directory of a run's checkpoints, while its first logger has this version."""
    if not trainer.loggers:
        return canonical(join(trainer.default_root_dir, "checkpoints"))
    logger = trainer.loggers[0]
    parts = (
        str(logger.name) if logger.name else "",
        version if isinstance(version, str) else f"version_{version}",
        "checkpoints",
    )
    directory = os.fspath(logger.save_dir or trainer.default_root_dir)
    for part in filter(None, parts):
        directory = join(directory, part)
    return canonical(directory)


def find_obstacle(directory: str) -> str | None:
    """A file that lies where `directory`, or one that holds it, is to be; None where nothing does."""
    place = os.path.abspath(directory)
    while not is_remote(directory) and not os.path.lexists(place):
        place = os.path.dirname(place)
    return None if is_remote(directory) or os.path.isdir(place) else place


def warn_of_files(directory: str | None) -> None:
    """Say that a directory of new checkpoints is not empty."""
    if directory is not None and list_files(directory):
        rank_zero_warn(
            f"The checkpoint directory {directory!r} is not empty. Its files are kept, and new ones may get names "
            "with a version. To continue from them, pass ckpt_path to fit; otherwise choose another dirpath.",
            PossibleUserWarning,
        )
