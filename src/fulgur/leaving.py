"""What is saved when a signal ends a run, so that the next one goes on from there."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from fulgur import slurm
from fulgur.checkpoint.io import AsyncCheckpointIO
from fulgur.checkpoint.location import canonical, is_inside, join, list_files
from fulgur.checkpoint.write import name_again
from fulgur.errors import CheckpointError
from fulgur.interrupt import InterruptHandler
from fulgur.loops.resume import find_metric_objects
from fulgur.rank import rank_zero_info, rank_zero_warn
from fulgur.rng import plain_rng, restore_rng, snapshot_rng
from fulgur.saving import find_saved
from fulgur.states import RunningStage, TrainerFn

if TYPE_CHECKING:
    from fulgur.agreement import Agreement
    from fulgur.trainer import Trainer

_INTERRUPTED = re.compile(r"interrupted-epoch=\d+-step=\d+\.ckpt")


@contextmanager
def watch_signals(trainer: Trainer, *loops: Any) -> Iterator[None]:
    """Within the block `loops` leave at a step boundary where a signal asks for it, and fit saves first.

    On several ranks they do so together, and agree on what else only one of them wants. All ranks must reach this.
    """
    agreement = _build_agreement(trainer, loops) if trainer.strategy.is_distributed else None
    handler = InterruptHandler(
        *loops,
        received=trainer._signals,
        save=partial(_save_interrupted, trainer),
        requeue=partial(_requeue, trainer) if slurm.is_managed() else None,
        agreement=agreement,
    )
    with handler:
        if agreement is None:
            yield
            return
        from fulgur.launch.deserted import DesertedWatch

        _connect_agreement(trainer, agreement)
        with DesertedWatch(trainer.global_rank, agreement.find_silent):
            try:
                yield
            finally:
                _disconnect_agreement(trainer, agreement)


def _build_agreement(trainer: Trainer, loops: Sequence[Any]) -> Agreement:
    from fulgur.agreement import Agreement

    strategy, fit_loop = trainer.strategy, trainer.fit_loop
    evaluation = loops[-1]
    evaluation.n_marks = 0
    fit_loop.passed = fit_loop.progress.batches_total

    def clock() -> tuple[float, ...]:
        n_marks = evaluation.n_marks
        return (fit_loop.passed, n_marks, *(evaluation.current if n_marks % 2 else ()))

    return Agreement(
        strategy.open_stores,
        rank=strategy.global_rank,
        world_size=strategy.world_size,
        loops=loops,
        clock=clock,
        timeout=getattr(strategy, "timeout", timedelta(minutes=30)),
    )


def _connect_agreement(trainer: Trainer, agreement: Agreement) -> None:
    loop = trainer.fit_loop
    trainer._agreement = agreement
    agreement.on_agreed["stop"] = lambda payloads: loop.stop()
    if trainer.state.fn is TrainerFn.FITTING:
        metrics = trainer.metrics
        agreement.on_agreed["share steps"] = lambda payloads: setattr(metrics, "shares_steps", True)
        metrics.ask_to_share = partial(agreement.request, "share steps")
        loop.between, loop.agree = agreement.at_point, agreement.agree
        loop.plan.votes = trainer.strategy.build_votes(agreement)
        if loop.should_stop:
            loop.should_stop = False
            agreement.request("stop")


def _disconnect_agreement(trainer: Trainer, agreement: Agreement) -> None:
    loop = trainer.fit_loop
    loop.should_stop |= agreement.wishes("stop")
    trainer._agreement = loop.between = loop.agree = trainer.metrics.ask_to_share = None
    if trainer.state.fn is TrainerFn.FITTING:
        loop.plan.votes = None


def remove_interrupted(trainer: Trainer, *, except_for: str = "") -> None:
    """Delete the files that earlier interruptions of this run have left; never the one that it was resumed from."""
    directory = _directory(trainer)
    if directory is None or not trainer.ckpt_path or not trainer.is_global_zero:
        return
    resumed_from = canonical(trainer.ckpt_path)
    if not is_inside(resumed_from, directory):  # files of another run may lie here
        return
    for name in list_files(directory):
        path = join(directory, name)
        if _INTERRUPTED.fullmatch(name) and path != except_for and canonical(path) != resumed_from:
            try:
                trainer.strategy.remove_checkpoint(path)
            except CheckpointError as error:
                rank_zero_warn(str(error))


@dataclass(slots=True)
class BeforeValidation:
    """What a validation within fit changes: a run that it is broken off in goes on from its beginning."""

    rng: dict[str, Any]
    seen: list[int]
    fresh_metrics: list[Any]
    positions: list[Any]
    generators: list[list[Any]]

    @classmethod
    def take(cls, trainer: Trainer) -> BeforeValidation:
        metrics = find_metric_objects(trainer.lightning_module).values()
        return cls(
            rng=snapshot_rng(),
            seen=list(trainer._val_loop.seen),
            fresh_metrics=[metric for metric in metrics if not metric._update_count],
            positions=[logger.position() for logger in trainer.loggers],
            generators=trainer._feeds["val"].generators(),
        )

    def put_into(self, own: dict[str, Any]) -> None:
        """Let a checkpoint that is saved within the validation hold this."""
        own["rng"], own["seen"] = plain_rng(self.rng), list(self.seen)
        if "running" in own:
            own["running"]["val_generators"] = self.generators

    def restore(self, trainer: Trainer) -> None:
        restore_rng(self.rng)
        trainer._feeds["val"].set_generators(self.generators)
        trainer._val_loop.seen[:] = self.seen
        for metric in self.fresh_metrics:
            metric.reset()


def _save_interrupted(trainer: Trainer) -> None:
    directory = _directory(trainer)
    if directory is None or not _is_resumable(trainer):
        return
    path = join(directory, f"interrupted-epoch={trainer.current_epoch}-step={trainer.global_step}.ckpt")
    saved = find_saved(trainer)
    if saved is not None and is_inside(saved, directory):
        rank_zero_info(f"The run is saved as {saved}.")
        remove_interrupted(trainer, except_for=saved)
    elif _save(trainer, path):
        remove_interrupted(trainer, except_for=path)  # order matters: the new one is safe by now


def _requeue(trainer: Trainer) -> bool:
    if _is_resumable(trainer):
        _save(trainer, slurm.next_requeue_checkpoint(trainer.default_root_dir))
    for logger in trainer.loggers:
        logger.finalize("finished")
    return slurm.requeue_job() if trainer.is_global_zero else True


def _save(trainer: Trainer, path: str) -> bool:
    if trainer.state.stage is RunningStage.VALIDATING and trainer._before_validation is not None:
        trainer._before_validation.restore(trainer)
    try:
        saved = find_saved(trainer)
        if saved is None or not name_again(saved, path):
            trainer.save_checkpoint(path)
        if isinstance(trainer.strategy.checkpoint_io, AsyncCheckpointIO):
            trainer.strategy.checkpoint_io.wait()
    except CheckpointError as error:
        rank_zero_warn(f"The run is not saved as it ends: {error}")  # it has to end in any case
        return False
    rank_zero_info(f"The run is saved as {path}.")
    return True


def _is_resumable(trainer: Trainer) -> bool:
    """Whether there is something to save: in the check before training, nothing has happened yet."""
    if trainer._is_trial:
        return False
    return trainer.state.fn is TrainerFn.FITTING and not trainer.sanity_checking and not trainer.fast_dev_run


def _directory(trainer: Trainer) -> str | None:
    """Where ``ckpt_path="auto"`` looks: the directory of the first `ModelCheckpoint`."""
    found = (c.dirpath for c in trainer.checkpoint_callbacks if hasattr(c, "best_model_path"))
    return next(found, None) if not trainer.fast_dev_run else None
