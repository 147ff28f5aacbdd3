"""Gives the loops of a Trainer everything they call: plans, hooks, loaders, loggers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from fulgur import slurm
from fulgur.checkpoint.io import AsyncCheckpointIO
from fulgur.errors import MisconfigurationException
from fulgur.hooks import (
    EvalHooks,
    collect,
    collect_stage,
    overrides,
    reads_outputs,
    takes_outputs,
)
from fulgur.leaving import BeforeValidation
from fulgur.loops.evaluate import EvalPlan, EvaluationLoop, grad_free_context
from fulgur.loops.feed import Feed, uncounted
from fulgur.loops.own_steps import run_step
from fulgur.loops.plan import StepPlan, build_plan, step_of, takes_iterator
from fulgur.module import LightningModule
from fulgur.optim.configure import OptimizerSetup
from fulgur.profilers.profiler import PassThroughProfiler, measured
from fulgur.sources import (
    Call,
    can_validate,
    eval_feed,
    train_feed,
    transfer_of,
)
from fulgur.states import RunningStage

if TYPE_CHECKING:
    from fulgur.loops.broken import SumsBefore
    from fulgur.strategies import Strategy
    from fulgur.trainer import Trainer

PREFIX = {"val": "validation", "test": "test", "predict": "predict"}


def connect_training(trainer: Trainer, call: Call, setup: OptimizerSetup) -> None:
    """Give the fit loop everything it calls."""
    module, loop = trainer.lightning_module, trainer.fit_loop
    loop.metrics = trainer.metrics
    loop.hooks = collect(trainer.callbacks, module, trainer, LightningModule)
    loop.is_automatic = module.automatic_optimization
    loop.monitors_may_log = any(c.is_monitor and not _is_ours(c) for c in trainer.callbacks)
    loop.sums_before = _sums_before(trainer)
    listens = bool(loop.hooks.on_before_zero_grad)
    loop.plan = build_plan(
        module,
        setup,
        strategy=trainer.strategy,
        precision=trainer.precision_plugin,
        metrics=trainer.metrics,
        clip_val=trainer.gradient_clip_val,
        clip_algorithm=trainer.gradient_clip_algorithm,
        reads_outputs=reads_outputs(loop.hooks),
        reads_epoch_outputs=any(takes_outputs(owner, "on_train_epoch_end") for owner in (*trainer.callbacks, module)),
        listens_to_zero_grad=listens,
    )
    if has_own_parts(trainer):
        _adapt_to_own_parts(trainer, loop.plan)
    trainer.strategy.adapt_plan(
        loop.plan,
        clip_val=trainer.gradient_clip_val,
        clip_algorithm=trainer.gradient_clip_algorithm,
        accumulate=trainer.accumulate_grad_batches,
    )
    loop.measure = None
    if is_profiled(trainer):
        _profile_training(trainer)
    if trainer.strategy.is_distributed:
        _connect_ranks(trainer, loop.plan)
    no_sync, of_user = trainer.strategy.no_grad_sync, None if loop.is_automatic else "optimizer_step"
    for update in loop.plan.updates:
        step: Any = partial(run_step, loop, update)
        update.wrapped.bind(
            measured(trainer.profiler, step, of_user) if of_user else step,
            optimizers=setup.optimizers,
            no_sync=no_sync,
        )
    loop.write_metrics = partial(_write_metrics, trainer, epoch=lambda: trainer.current_epoch)
    loop.recollect = partial(_recollect, trainer, list(trainer.callbacks))
    loop.load_epoch = partial(_load_epoch, trainer, call)
    loop.before_epochs = loop.validate = loop.kept_epoch = loop.kept_sums = loop.resumed_accumulate = None
    trainer._val_loop.resumed_generators = None
    loop.last_validation = time.monotonic()
    writer = trainer.strategy.checkpoint_io
    if isinstance(writer, AsyncCheckpointIO):
        writer.on_failure = partial(loop.call_soon, writer.wait)


def has_own_parts(trainer: Trainer) -> bool:
    """Whether the strategy or the precision is of the user's own making."""
    return any(type(p).__module__.partition(".")[0] != "fulgur" for p in (trainer.strategy, trainer.precision_plugin))


def _adapt_to_own_parts(trainer: Trainer, plan: StepPlan) -> None:
    from fulgur.own_parts import adapt_plan

    adapt_plan(
        plan,
        trainer.strategy,
        trainer.precision_plugin,
        trainer.lightning_module,
        clip_val=trainer.gradient_clip_val,
        clip_algorithm=trainer.gradient_clip_algorithm,
    )


def _sums_before(trainer: Trainer) -> SumsBefore | None:
    if trainer.fast_dev_run or not any(c.saves_on_exception for c in trainer.checkpoint_callbacks):
        return None
    from fulgur.loops.broken import SumsBefore

    return SumsBefore(trainer.metrics, trainer.fit_loop.progress)


def _is_ours(callback: Any) -> bool:
    return type(callback).__module__.startswith("fulgur.")


def is_profiled(trainer: Trainer) -> bool:
    """Whether somebody measures the run."""
    return not isinstance(trainer.profiler, PassThroughProfiler)


def _connect_ranks(trainer: Trainer, plan: StepPlan) -> None:
    """What a step needs of the other ranks beyond its wrapper."""
    strategy = trainer.strategy
    plan.schedulers.share = strategy.broadcast
    if not trainer.fit_loop.is_automatic:
        plan.set_grad_sync, plan.prepare_backward = None, strategy.prepare_backward
    if any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in plan.optimizers):
        plan.mean_loss = partial(_mean_over_ranks, strategy)


def _mean_over_ranks(strategy: Strategy, loss: Any) -> Any:
    """Mean over the ranks that have a loss; without it each rank's LBFGS would go on by its own."""
    own = torch.zeros(2, dtype=torch.float64) if loss is None else torch.tensor([float(loss), 1.0], dtype=torch.float64)
    total, count = strategy.reduce(own.to(strategy.root_device), reduce_op="sum").tolist()  # all ranks must reach this
    return torch.tensor(total / count, dtype=torch.float64) if count else None


def _profile_training(trainer: Trainer) -> None:
    """Measure hooks, steps, backward passes and optimizer steps; the latter hold the former two, as users know it."""
    from fulgur.profilers.wrap import time_hooks, timed

    module, plan, profiler = trainer.lightning_module, trainer.fit_loop.plan, trainer.profiler
    prefix = f"[Strategy]{type(trainer.strategy).__name__}"
    trainer.fit_loop.measure = partial(measured, profiler)
    time_hooks(trainer.fit_loop.hooks, profiler)
    plan.training_step = timed(profiler, f"{prefix}.training_step", plan.training_step)
    plan.backward = timed(profiler, f"{prefix}.backward", module.backward)
    for update in plan.updates:
        update.training_step = timed(profiler, f"{prefix}.training_step", update.training_step)
        update.backward = timed(profiler, f"{prefix}.backward", update.backward or module.backward)
    if module.automatic_optimization:
        own = f"[LightningModule]{type(module).__name__}.optimizer_step"
        plan.optimizer_step = timed(profiler, own, module.optimizer_step)


def _recollect(trainer: Trainer, known: list[Any]) -> None:
    """Callbacks that came or went during the run: looked at before and after each epoch, and before a validation."""
    if trainer.callbacks != known:
        known[:] = trainer.callbacks
        module, loop = trainer.lightning_module, trainer.fit_loop
        lend_log(trainer)
        loop.hooks = collect(known, module, trainer, LightningModule)
        loop.monitors_may_log = any(c.is_monitor and not _is_ours(c) for c in known)
        loop.plan.has_outputs |= reads_outputs(loop.hooks)
        loop.plan.is_zero_grad_first &= not loop.hooks.on_before_zero_grad
        if is_profiled(trainer):
            _time_hooks(loop.hooks, trainer)
        if "val" in trainer._feeds:
            plan = trainer._val_loop.plan
            plan.hooks = _stage_hooks(trainer, "validation", passes_loader_idx=plan.passes_loader_idx)


def lend_log(trainer: Trainer) -> None:
    """Callbacks log through the module."""
    module = trainer.lightning_module
    for callback in trainer.callbacks:
        callback.log, callback.log_dict = module.log, module.log_dict  # type: ignore[attr-defined]


def _stage_hooks(trainer: Trainer, prefix: str, *, passes_loader_idx: bool) -> EvalHooks:
    module, callbacks = trainer.lightning_module, trainer.callbacks
    hooks = collect_stage(prefix, callbacks, module, trainer, LightningModule, passes_loader_idx=passes_loader_idx)
    if is_profiled(trainer):
        _time_hooks(hooks, trainer)
    return hooks


def _time_hooks(hooks: Any, trainer: Trainer) -> None:
    from fulgur.profilers.wrap import time_hooks

    time_hooks(hooks, trainer.profiler)


def load_training(trainer: Trainer, call: Call) -> None:
    """Ask for the training loader, and settle everything that depends on its length."""
    loop, limits = trainer.fit_loop, trainer.fit_loop.limits
    feed = train_feed(trainer, call)
    _measure_batches(trainer, feed, "[_TrainingEpochLoop].train_dataloader_next")
    loop.fetch = feed.fetch(0, _transfer_of(trainer, 0) if not loop.plan.takes_iterator else None)
    trainer._loaded_at["train"] = trainer.current_epoch
    loop.n_batches, loop.is_sized = feed.n_batches[0], feed.is_sized[0]
    if is_profiled(trainer):
        trainer.profiler.prepare(trainer.lightning_module, _most_batches(loop))
    if loop.fetch.weigh is not None:
        loop.fetch.uncounted = uncounted(trainer.metrics, "train")
    for joined in feed.joined:
        joined.window = lambda: loop.accumulate
    loop.val_every = _validation_interval(limits, feed)
    if loop.validate is None and can_validate(trainer, call):
        loop.validate = partial(_validate_in_fit, trainer, call)


def _measure_batches(trainer: Trainer, feed: Feed, action_name: str) -> None:
    if is_profiled(trainer):
        from fulgur.profilers.wrap import timed_batches

        feed.measure = partial(timed_batches, profiler=trainer.profiler, action_name=action_name)


def _transfer_of(trainer: Trainer, dataloader_idx: int) -> Callable[[Any], Any]:
    name = f"[Strategy]{type(trainer.strategy).__name__}.batch_to_device"
    return measured(trainer.profiler, transfer_of(trainer, dataloader_idx), name)


def load_first_validation(trainer: Trainer, call: Call) -> None:
    """Ask for the validation loader before training starts, if the first epoch will need it."""
    every, epoch = trainer.check_val_every_n_epoch, trainer.current_epoch
    is_due = every is None or (epoch + 1) % every == 0
    if trainer.fit_loop.validate is not None and is_due and "val" not in trainer._feeds and not _is_stale(trainer):
        load_evaluation(trainer, call, "val", trainer._val_loop)
        trainer._loaded_at.setdefault("val", epoch)


def _is_stale(trainer: Trainer) -> bool:
    """Whether the loaders of validation, loaded in an earlier epoch, are to come anew with the next one."""
    every, epoch = trainer.reload_dataloaders_every_n_epochs, trainer.current_epoch
    return bool(every) and epoch - trainer._loaded_at.get("val", epoch) >= every


def resume_loading(trainer: Trainer, running: Mapping[str, Any]) -> None:
    """New loaders come at the epochs at which they would have come; those of validation draw as they would have."""
    trainer._loaded_at.update(running.get("loaded_at", {}))
    trainer._val_loop.resumed_generators = running.get("val_generators")


def resume_generators(trainer: Trainer) -> None:
    """Give the loaders of validation the states of their generators, as soon as they are there."""
    loop = trainer._val_loop
    if loop.resumed_generators is not None and "val" in trainer._feeds:
        trainer._feeds["val"].set_generators(loop.resumed_generators)
        loop.resumed_generators = None


def _validation_interval(limits: Any, feed: Feed) -> float:
    """Batches between two validations."""
    interval, n_batches = limits.val_check_interval, feed.n_batches[0]
    if isinstance(interval, timedelta):
        return math.inf
    if isinstance(interval, int):
        if limits.check_val_every_n_epoch is not None and interval > n_batches > 0:
            raise ValueError(
                f"val_check_interval={interval} is more than the {n_batches} training batches of an epoch, so that "
                "validation would never run. Lower it, or pass check_val_every_n_epoch=None to count across epochs."
            )
        return interval
    if math.isinf(n_batches):
        if interval != 1.0:
            raise MisconfigurationException(
                f"val_check_interval={interval} is a fraction of an epoch, and the training loader has no length. Use "
                "an int to validate every so many batches, or limit_train_batches=n."
            )
        return math.inf
    return max(1, int(n_batches * interval))


def _load_epoch(trainer: Trainer, call: Call, epoch: int) -> None:
    """Before an epoch: new loaders if they are due, and the epoch for samplers that want it."""
    every, is_resumed_midway = trainer.reload_dataloaders_every_n_epochs, trainer.fit_loop.progress.batch > 0
    if every and epoch - trainer._loaded_at["train"] >= every and not is_resumed_midway:
        del trainer._feeds["train"]
        load_training(trainer, call)
    trainer._feeds["train"].set_epoch(epoch)


def _validate_in_fit(trainer: Trainer, call: Call) -> None:
    """One validation between two training batches."""
    fit_loop, loop, module = trainer.fit_loop, trainer._val_loop, trainer.lightning_module
    fit_loop.recollect()
    is_first, is_stale = "val" not in trainer._loaded_at, _is_stale(trainer)
    previous, trainer.state.stage = trainer.state.stage, RunningStage.VALIDATING
    if not _holds_gradients(fit_loop, module):
        module.on_validation_model_zero_grad()
    if "val" not in trainer._feeds or is_stale or (is_first and trainer.reload_dataloaders_every_n_epochs):
        load_evaluation(trainer, call, "val", loop)
        if is_stale:
            loop.resumed_generators = None  # of the loaders before these
        resume_generators(trainer)
    if is_first or is_stale:
        trainer._loaded_at["val"] = trainer.current_epoch
    loop.feed.set_epoch(trainer.current_epoch)
    if not loop.feed.is_empty:
        saves = bool(trainer.checkpoint_callbacks) or slurm.is_managed()
        trainer._before_validation = BeforeValidation.take(trainer) if saves else None
        loop.run(context=torch.no_grad(), before_end=partial(setattr, fit_loop.progress, "phase", "validated"))
    trainer.state.stage = previous


def _holds_gradients(loop: Any, module: LightningModule) -> bool:
    """Whether gradients are still needed: within a window, and in manual optimization unless the module says so."""
    if not loop.is_automatic:
        return not overrides(module, "on_validation_model_zero_grad", LightningModule)
    return any(update.n_backward for update in loop.plan.updates)


def _most_batches(loop: Any) -> float:
    """Number of training batches that the limits of a run allow."""
    epochs = math.inf if loop.limits.max_epochs in (None, -1) else loop.limits.max_epochs
    by_epochs = loop.n_batches * epochs if loop.n_batches else 0
    return float(min(by_epochs, loop.limits.max_steps * loop.limits.accumulate))


def load_evaluation(trainer: Trainer, call: Call, name: str, loop: EvaluationLoop) -> Feed:
    """Ask for the loaders of an evaluation and connect its loop."""
    loop.metrics = trainer.metrics
    loop.feed = eval_feed(trainer, call, name)
    loop.plan = eval_plan(trainer, trainer.lightning_module, PREFIX[name], loop.feed)
    loop.write_metrics = partial(_write_metrics, trainer, epoch=lambda: trainer.current_epoch)
    loop.write_steps = partial(_write_metrics, trainer, epoch=None)
    loop.log_step = lambda: trainer.log_step
    loop.log_every = trainer.log_every_n_steps
    return loop.feed


def eval_plan(trainer: Trainer, module: LightningModule, prefix: str, feed: Feed) -> EvalPlan:
    n_loaders = len(feed.loaders)
    own = partial(overrides, module, base=LightningModule)
    draws_itself = takes_iterator(getattr(module, f"{prefix}_step"))
    step = step_of(
        module,
        f"{prefix}_step",
        strategy=trainer.strategy,
        precision=trainer.precision_plugin,
        passes_loader_idx=n_loaders > 1,
    )
    if is_profiled(trainer):
        from fulgur.profilers.wrap import timed

        step = timed(trainer.profiler, f"[Strategy]{type(trainer.strategy).__name__}.{prefix}_step", step)
        next_batch = {"predict": "[_PredictionLoop].predict_next", "test": "[_EvaluationLoop].test_next"}
        _measure_batches(trainer, feed, next_batch.get(prefix, "[_EvaluationLoop].val_next"))
        if trainer.state.fn != "fit":
            trainer.profiler.prepare(module, sum(feed.n_batches))
    model_eval = f"on_{prefix}_model_eval"
    return EvalPlan(
        module=module,
        step=step,
        hooks=_stage_hooks(trainer, prefix, passes_loader_idx=n_loaders > 1),
        transfers=[None if draws_itself else _transfer_of(trainer, index) for index in range(n_loaders)],
        passes_loader_idx=n_loaders > 1,
        model_eval=getattr(module, model_eval) if own(model_eval) or trainer.model is not module else None,
        model_train=getattr(module, name) if own(name := f"on_{prefix}_model_train") else None,
        epoch_end=getattr(module, f"{prefix}_epoch_end", None),
        takes_iterator=draws_itself,
    )


def eval_context(trainer: Trainer) -> Any:
    # What FSDP2 gathers in inference mode it could not use in training afterwards.
    return grad_free_context(inference=trainer._settings.inference_mode and not trainer.strategy.forward_is_collective)


def _write_metrics(
    trainer: Trainer, values: dict[str, float], step: int, *, epoch: Callable[[], int] | None = None
) -> None:
    """Send values to every logger. A logged name "step" replaces the axis."""
    values = dict(values)
    if "step" in values:
        step = int(values.pop("step"))
    elif epoch is not None:
        values.setdefault("epoch", epoch())
    for logger in trainer.loggers:
        logger.log_metrics(dict(values), step=step)
        logger.save()
