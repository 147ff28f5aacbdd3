"""Saving and loading a run: what `Trainer.save_checkpoint` and ``ckpt_path`` do."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

from fulgur import slurm
from fulgur.checkpoint import state as checkpoint_state
from fulgur.checkpoint.io import TorchCheckpointIO
from fulgur.checkpoint.load import require_weights
from fulgur.checkpoint.location import canonical, is_remote, modified_at
from fulgur.checkpoint.state import Contents
from fulgur.checkpoint.write import checkpoint_exists, name_again
from fulgur.continuing import find_own_checkpoint, positions_of, resume_loggers
from fulgur.loops.resume import capture_epoch
from fulgur.rank import rank_zero_info, rank_zero_warn
from fulgur.rng import capture_rng
from fulgur.sources import Call
from fulgur.states import RunningStage, TrainerFn

if TYPE_CHECKING:
    from fulgur.trainer import Trainer


def contents_of(trainer: Trainer) -> Contents:
    loop, module, feed = trainer.fit_loop, trainer.lightning_module, trainer._feeds.get("train")
    is_fitting = feed is not None and bool(feed.placed) and trainer.state.fn is TrainerFn.FITTING
    is_kept = not is_fitting and loop.kept_epoch is not None
    return Contents(
        module=module,
        trainer=trainer,
        datamodule=trainer.datamodule,
        callbacks=trainer.callbacks,
        optimizers=trainer.optimizers,
        schedulers=trainer.lr_scheduler_configs,
        precision=trainer.precision_plugin,
        progress=loop.progress,
        seen=trainer._val_loop.seen,
        capture_epoch=partial(_capture, trainer) if is_fitting or is_kept else None,
        rng=loop.kept_rng if is_kept else None,
        n_batches=loop.n_batches,
        is_automatic=loop.is_automatic,
        strategy=trainer.strategy,
    )


def _capture(trainer: Trainer) -> dict[str, Any]:
    """The state of the running epoch."""
    loop, feeds = trainer.fit_loop, trainer._feeds
    if loop.kept_epoch is not None:
        return dict(loop.kept_epoch)
    state = capture_epoch(loop, feeds["train"], trainer.lightning_module)
    state["loaded_at"] = dict(trainer._loaded_at)
    if loop.validate is not None and "val" in feeds:
        state["val_generators"] = feeds["val"].generators()
    elif trainer._val_loop.resumed_generators is not None:
        state["val_generators"] = trainer._val_loop.resumed_generators
    return state


def keep_training(trainer: Trainer, call: Call) -> None:
    """Before an evaluation that follows fit: what a later `save_checkpoint` needs for the training to go on."""
    loop, feed = trainer.fit_loop, trainer._feeds.get("train")
    model = getattr(call.model, "_orig_mod", call.model)
    if call.fn is TrainerFn.FITTING:
        return
    if model is not None and model is not trainer._module:  # another one: what was trained is not what is saved
        loop.kept_epoch = None
    elif trainer.state.fn is TrainerFn.FITTING and feed is not None and feed.placed and hasattr(loop, "fetch"):
        loop.kept_epoch, loop.kept_rng = _capture(trainer), capture_rng()  # waits for the device


def build_checkpoint(trainer: Trainer, *, weights_only: bool) -> dict[str, Any]:
    """The content of a checkpoint of the run as it stands."""
    checkpoint = checkpoint_state.build_checkpoint(contents_of(trainer), weights_only=weights_only)
    if not weights_only:
        # A resumed run begins a validation anew that was under way.
        is_validating = trainer.state.stage is RunningStage.VALIDATING and trainer.fit_loop.progress.phase == "batch"
        before = trainer._before_validation if is_validating else None
        if before is not None:
            before.put_into(checkpoint["fulgur"])
        checkpoint["fulgur"]["loggers"] = before.positions if before else positions_of(trainer.loggers)
        if trainer.strategy.is_distributed:
            from fulgur.loops.ranks import gather_ranks

            checkpoint["fulgur"]["ranks"] = gather_ranks(checkpoint["fulgur"], trainer.strategy)
    return checkpoint


def note_saved(trainer: Trainer, path: Any, *, is_full: bool) -> None:
    """Remember that the run as it stands is on the disk; see `find_saved`."""
    if is_full:
        trainer._saved = (os.fspath(path), _moment(trainer))
    elif trainer._saved is not None and canonical(path) == canonical(trainer._saved[0]):
        trainer._saved = None


def find_saved(trainer: Trainer) -> str | None:
    """The file that holds the run as it stood after the step behind; None where that was not saved.

    For a run that ends: what it has begun since is lost either way. On one process only.
    """
    writes_plainly = type(trainer.strategy.checkpoint_io) is TorchCheckpointIO  # a plugin may do more than write a file
    if trainer._saved is None or trainer.world_size > 1 or not writes_plainly:
        return None
    path, moment = trainer._saved
    is_same = moment == _moment(trainer)
    return path if is_same and not is_remote(path) and checkpoint_exists(path) else None


def _moment(trainer: Trainer) -> dict[str, Any]:
    """The counters, without the one that the beginning of a batch moves."""
    return trainer.fit_loop.progress.state_dict() | {"log_step": 0}


def is_saved_again(trainer: Trainer, path: Any) -> bool:
    """Where several callbacks save as an exception ends the run: `path` becomes a name of what the first has saved."""
    if not trainer.interrupted or trainer.state.stage is None:
        return False
    saved = find_saved(trainer)
    return saved is not None and name_again(saved, path)


def state_here(trainer: Trainer, own: dict[str, Any]) -> tuple[Any, Any]:
    """Of what a checkpoint holds under "fulgur": the running epoch for this rank's loaders, and its generators."""
    from fulgur.loops.ranks import rescale, say_if_unknown, state_of_rank

    strategy, feed = trainer.strategy, trainer._feeds["train"]
    running, rng = state_of_rank(own, strategy, trainer.lightning_module)
    say_if_unknown(own["running"], feed, len(own.get("ranks") or [0]), strategy.world_size)
    return rescale(running, feed, trainer.fit_loop), rng


def warn_of_refused_hparams(trainer: Trainer) -> None:
    """Name the hyperparameters of module and datamodule that no checkpoint will hold."""
    for owner in (trainer._module, trainer.datamodule):
        checkpoint_state.warn_of_refused_hparams(owner)


def choose_own(trainer: Trainer, call: Call) -> None:
    """For ``ckpt_path="auto"`` find the file, and let the loggers go on with its version, before they open theirs.

    Raises:
        ValueError: The call is not to fit.
    """
    if given_path(trainer, call) != "auto":
        return
    if call.fn is not TrainerFn.FITTING:
        raise ValueError(
            f"trainer.{call.fn}(ckpt_path='auto'): a training goes on from its newest checkpoint, an evaluation has "
            "nothing to go on with. Pass 'best', 'last' or a path."
        )
    path, version = trainer.strategy.broadcast(find_own_checkpoint(trainer))  # all ranks must reach this
    trainer._loaded_ckpt_path = path
    if path is None:
        rank_zero_info("ckpt_path='auto': there is no checkpoint of this run to go on from. It begins anew.")
        return
    rank_zero_info(f"ckpt_path='auto': going on from {path}.")
    resume_loggers(trainer, path, version, weights_only=call.weights_only)


def load(trainer: Trainer, call: Call) -> dict[str, Any] | None:
    """Load weights and callback states from the file that the call means, if any."""
    path = _choose(trainer, call)
    trainer._loaded_ckpt_path = path
    if path is None:
        return None
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"ckpt_path={path!r:.80} is no path. Pass a str or a Path, 'best' or 'last'.")
    checkpoint = trainer.strategy.load_checkpoint(path, weights_only=call.weights_only)
    require_weights(checkpoint, path)
    module = trainer.lightning_module
    contents = contents_of(trainer)
    checkpoint_state.restore_model(checkpoint, contents, source=path, strict=module.strict_loading)
    if call.fn is not TrainerFn.FITTING and checkpoint.get("global_step") != trainer.global_step:
        trainer.fit_loop.kept_epoch = None  # the weights are those of another step by now
    return checkpoint


def _choose(trainer: Trainer, call: Call) -> Any:
    """The file to load: the call's, the Trainer's, or the best one where neither model nor file is passed."""
    callbacks = trainer.checkpoint_callbacks
    given = given_path(trainer, call)
    _forget_sticky_path(trainer, call)
    if given == "auto":
        return trainer._loaded_ckpt_path
    if given is None and call.fn is TrainerFn.FITTING:
        requeued = slurm.find_requeue_checkpoint(trainer.default_root_dir) if slurm.is_managed() else None
        return requeued or _left_by_exception(trainer)
    if given == "hpc":
        requeued = slurm.find_requeue_checkpoint(trainer.default_root_dir)
        if requeued is None:
            raise ValueError(
                f"trainer.{call.fn}(ckpt_path='hpc'): there is no hpc_ckpt_<number>.ckpt in "
                f"{trainer.default_root_dir!r}. They are saved there before SLURM requeues a job. Pass a path, or None."
            )
        return requeued
    if given is None:
        best = next((c.best_model_path for c in callbacks if getattr(c, "best_model_path", "")), None)
        return best if call.model is None else None
    if given == "best":
        best = next((c.best_model_path for c in callbacks if hasattr(c, "best_model_path")), None)
        if not best:
            raise ValueError(
                f"trainer.{call.fn}(ckpt_path='best'): no checkpoint has been saved"
                + (" yet." if callbacks else ", for there is no ModelCheckpoint callback.")
                + " Pass a path, or leave it out to use the weights as they are."
            )
        return best
    if given == "last":
        candidates = [path for c in callbacks for path in _last_candidates(trainer, c)]
        if not candidates:
            rank_zero_warn(f"trainer.{call.fn}(ckpt_path='last'): no last checkpoint was found; nothing is loaded.")
            return None
        return max(candidates, key=modified_at)
    return given


def given_path(trainer: Trainer, call: Call) -> Any:
    """What the call says, or else the Trainer; to fit also the 1.x argument."""
    if call.ckpt_path is not None:
        return call.ckpt_path
    legacy = trainer._legacy.resume_from_checkpoint if call.fn is TrainerFn.FITTING else None
    return trainer._ckpt_path if trainer._ckpt_path is not None else legacy


def _forget_sticky_path(trainer: Trainer, call: Call) -> None:
    if call.ckpt_path is None or trainer._ckpt_path is None:
        return
    rank_zero_warn(
        f"trainer.{call.fn}(ckpt_path={str(call.ckpt_path)!r}) takes the place of trainer.ckpt_path="
        f"{str(trainer._ckpt_path)!r}, which is forgotten. Set trainer.ckpt_path = None first if that is meant."
    )
    trainer._ckpt_path = None


def _left_by_exception(trainer: Trainer) -> Any:
    """Where `OnExceptionCheckpoint` has left a file, the newest of that and the last checkpoints; else None."""
    callbacks = trainer.checkpoint_callbacks
    if not any(_last_candidates(trainer, c) for c in callbacks if hasattr(c, "ckpt_path")):
        return None
    return max((path for c in callbacks for path in _last_candidates(trainer, c)), key=modified_at)


def _last_candidates(trainer: Trainer, callback: Any) -> list[str]:
    finder = getattr(callback, "find_last_checkpoints", None)
    if finder is not None:
        return list(finder(trainer))
    path = getattr(callback, "ckpt_path", None)  # of an OnExceptionCheckpoint
    return [path] if path is not None and checkpoint_exists(path) else []
