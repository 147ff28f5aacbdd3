"""``ckpt_path="auto"``: which checkpoint a run goes on from, and its loggers with it.

Reading order: `find_own_checkpoint` -> `_directories` (of one version of the run after the other, newest first) ->
`_newest` -> `resume_loggers`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from fulgur import slurm
from fulgur.checkpoint.load import load_checkpoint
from fulgur.checkpoint.location import META_FILE, is_sharded, modified_at
from fulgur.checkpoint.verify import verify_checkpoint
from fulgur.checkpoint.write import checkpoint_exists
from fulgur.errors import PossibleUserWarning
from fulgur.loops.schedule import past_its_end
from fulgur.rank import rank_zero_info, rank_zero_warn
from fulgur.sources import estimate_steps

if TYPE_CHECKING:
    from fulgur.trainer import Trainer

Version = int | str
_DEPTH = 2  # a metric with a slash in a file's name makes a directory


def find_own_checkpoint(trainer: Trainer) -> tuple[str | None, Version | None]:
    """The newest whole checkpoint of this run, and the version of the first logger that it lies in.

    (None, None) where there is none. The version is None too where the directory does not depend on it. Each file
    that is passed over gets a line.
    """
    from fulgur.checkpoint.newest import find_newest

    if not trainer.checkpoint_callbacks or trainer.fast_dev_run:
        return None, None
    beside = list(_files_elsewhere(trainer))
    for version, directories in _directories(trainer):
        found = [find_newest(directory, depth=_DEPTH) for directory in directories]
        newest = _newest([*filter(None, found), *beside])
        if newest is not None:
            return newest, version
    return _newest(beside), None


def resume_loggers(trainer: Trainer, path: str, version: Version | None, *, weights_only: bool | None) -> None:
    """Let each logger go on where it stood when `path` was saved, in the same version.

    Args:
        version: Of the first logger, for a file that does not tell where the loggers stood.
        weights_only: As for `load_checkpoint`.
    """
    opened = os.path.join(path, META_FILE) if is_sharded(path) else path
    content = load_checkpoint(
        opened, map_location="cpu", weights_only=weights_only, mmap=True, needs_hparams=weights_only is not None
    )
    own = content.get("fulgur", {})
    step = own.get("progress", {}).get("log_step", -1)
    positions = own.get("loggers", [])
    if not positions and version is not None:
        positions = [{"version": version}]
    for logger, position in zip(trainer.loggers, positions, strict=False):
        if position and position.get("name", logger.name) == logger.name:
            logger.resume_at(position, step)


def say_complete(trainer: Trainer) -> None:
    """A resumed run has nothing left to do: say so, and what would let it go on."""
    limits = trainer.fit_loop.limits
    if trainer.global_step >= limits.max_steps:
        way = f"Raise max_steps={trainer.max_steps} to train on."
    elif trainer.should_stop:
        way = "It had stopped by itself; pass the path in the place of 'auto' to train on."
    elif limits.max_epochs not in (None, -1) and trainer.current_epoch >= limits.max_epochs:
        way = f"Raise max_epochs={limits.max_epochs} to train on."
    else:
        return
    rank_zero_info(
        f"The run of {trainer.ckpt_path} is complete, after {trainer.current_epoch} epochs and {trainer.global_step} "
        f"steps: nothing is left to do. {way}"
    )


def warn_of_short_schedules(trainer: Trainer) -> None:
    """Say before training, not days later, that it is longer than what a schedule was made for."""
    for config in trainer.lr_scheduler_configs:
        total = getattr(config.scheduler, "total_steps", None)
        if config.interval != "step" or not isinstance(total, int):
            continue
        if total * config.frequency < estimate_steps(trainer) < math.inf:
            rank_zero_warn(f"The run will end with an error: {past_its_end(config.scheduler)}", PossibleUserWarning)


def positions_of(loggers: Iterable[Any]) -> list[Mapping[str, Any]]:
    """Where the loggers of a run stand, for its checkpoint."""
    return [dict(position, name=logger.name) if (position := logger.position()) else {} for logger in loggers]


def _directories(trainer: Trainer) -> Iterator[tuple[Version | None, list[str]]]:
    callbacks: list[Any] = [c for c in trainer.checkpoint_callbacks if hasattr(c, "directory_of")]
    fixed = [c.dirpath for c in callbacks if c.dirpath is not None]
    versioned = [c for c in callbacks if c.dirpath is None]
    if not versioned or not trainer.loggers:
        yield None, _distinct([*fixed, *(c.directory_of(trainer, None) for c in versioned)])
        return
    for version in trainer.loggers[0].find_versions():
        yield version, _distinct([*fixed, *(c.directory_of(trainer, version) for c in versioned)])
    yield None, _distinct(fixed)


def _files_elsewhere(trainer: Trainer) -> Iterator[str]:
    """Whole files of this run that lie outside of the directories of its `ModelCheckpoint` callbacks."""
    requeued = slurm.find_requeue_checkpoint(trainer.default_root_dir) if slurm.is_managed() else None
    for path in (requeued, *(getattr(c, "ckpt_path", None) for c in trainer.checkpoint_callbacks)):
        if path is None or not checkpoint_exists(path):
            continue
        verdict = verify_checkpoint(path)
        if verdict.is_usable:
            yield path
        else:
            rank_zero_info(f"{path} is passed over: it {verdict.reason}.")


def _newest(paths: list[str]) -> str | None:
    return max(paths, key=modified_at, default=None)


def _distinct(directories: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(directories))
