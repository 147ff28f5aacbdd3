"""What surrounds the batches of an epoch: the validation that is due, loose ends, and the epoch's end."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING

from fulgur.loops.earlier import log_returned
from fulgur.loops.faults import no_batch, shorter_than_its_length, warn_of_no_loss
from fulgur.loops.outputs import outputs_by_optimizer
from fulgur.loops.own_steps import run_step
from fulgur.loops.resume import capture_sums

if TYPE_CHECKING:
    from fulgur.loops.fit import FitLoop


def is_validation_due(loop: FitLoop, batch_idx: int, is_last: bool) -> bool:
    limits, progress = loop.limits, loop.progress
    every_n_epoch, interval = limits.check_val_every_n_epoch, limits.val_check_interval
    if every_n_epoch is not None and (progress.epoch + 1) % every_n_epoch != 0:
        return False
    if is_last and not loop.is_sized:
        return True
    if loop.should_stop and loop.may_stop(progress.epoch):
        return True
    if isinstance(interval, timedelta):
        is_over = time.monotonic() - loop.last_validation >= interval.total_seconds()
        return is_over if loop.agree is None else loop.agree("validation", is_over)
    count = batch_idx + 1 if every_n_epoch is not None else progress.batches_total
    return count % loop.val_every == 0


def is_validation_only_for_stop(loop: FitLoop) -> bool:
    """Whether the running validation is there only because the run stops: one that is not stopped has none here."""
    limits, progress = loop.limits, loop.progress
    if not (loop.should_stop and loop.may_stop(progress.epoch)) or isinstance(limits.val_check_interval, timedelta):
        return False
    if loop.fetch.is_last and not loop.is_sized:
        return False
    count = progress.batch if limits.check_val_every_n_epoch is not None else progress.batches_total
    return count % loop.val_every != 0


def validates_within_epoch(loop: FitLoop) -> bool:
    """Whether a validation may be due after a batch that is not the epoch's last."""
    limits = loop.limits
    is_by_batch_or_time = limits.check_val_every_n_epoch is None or isinstance(limits.val_check_interval, timedelta)
    return loop.validate is not None and (is_by_batch_or_time or loop.val_every < loop.n_batches)


def settle_resumed_batch(loop: FitLoop) -> bool:
    """After a resume: do what was still due after the last batch, and tell whether none is left."""
    progress, schedulers = loop.progress, loop.plan.schedulers
    if progress.phase == "start" or progress.batch == 0:
        return False
    is_last = loop.fetch.is_last or progress.batch >= loop.n_batches
    is_open = progress.phase == "batch" and loop.validate is not None
    if is_open and is_validation_due(loop, progress.batch - 1, is_last):
        loop.run_validation()
    has_updated = progress.global_step > progress.log_step
    if schedulers.plateau_by_step and has_updated and progress.phase in ("batch", "validated"):
        schedulers.step(schedulers.plateau_by_step, progress.batch)
    if is_last:
        loop.fetch.finish_resumed()
    return is_last


def finish_early_loader(loop: FitLoop) -> None:
    """The loader had fewer batches than its length said: update with what the open window has."""
    plan, progress = loop.plan, loop.progress
    if loop.fetch.is_last:
        return
    if progress.batch == 0:
        raise no_batch(progress.epoch, progress.batches_total)
    if plan.votes is not None and any(update.n_backward for update in plan.updates):
        raise shorter_than_its_length(progress.batch, loop.n_batches)
    loop.updated = False
    for update in plan.updates:
        if update.n_backward:
            run_step(loop, update, None, {})
    if loop.updated:
        plan.schedulers.step(plan.schedulers.by_step, progress.batch)
    loop.step_epoch_schedulers()
    every = loop.limits.check_val_every_n_epoch
    is_due = every is None or (progress.epoch + 1) % every == 0
    if loop.validate is not None and is_due and progress.phase == "batch":
        loop.run_validation()


def end_epoch(loop: FitLoop) -> None:
    loop.recollect()
    plan, hooks, metrics, progress = loop.plan, loop.hooks, loop.metrics, loop.progress
    scope, schedulers = plan.scopes.epoch_end, plan.schedulers
    if loop.is_automatic and not progress.global_step and not any(update.n_backward for update in plan.updates):
        warn_of_no_loss(progress.batch)
    if progress.phase == "cut":
        loop.kept_sums = capture_sums(loop)  # what the hooks of this end log belongs to it alone
    metrics.reduce_epoch("train")
    if plan.epoch_outputs and plan.training_epoch_end is not None:
        metrics.scope = scope
        by_optimizer = outputs_by_optimizer(loop)
        returned = plan.training_epoch_end(by_optimizer if len(by_optimizer) > 1 else by_optimizer[0])
        if returned:
            log_returned(metrics, returned, others=True)
    loop.call(hooks.on_train_epoch_end, scope)
    if hooks.on_train_epoch_end or plan.training_epoch_end is not None:
        metrics.reduce_epoch("train")
    # order matters: what saves runs last, and its file holds the next rate and what the loggers have got
    if schedulers.plateau_by_epoch and progress.phase == "ended":
        schedulers.step(schedulers.plateau_by_epoch, progress.epoch + 1)
    _write_epoch(loop)
    loop.call(hooks.on_train_epoch_end_monitors, scope)
    if loop.monitors_may_log and metrics.reduce_epoch("train"):
        _write_epoch(loop)
    metrics.clear("train")
    metrics.scope = None
    if plan.epoch_outputs is not None:
        plan.epoch_outputs, plan.n_outputs_missing = [], 0


def _write_epoch(loop: FitLoop) -> None:
    values = {e.epoch_key: number for e, number in loop.metrics.flush_epoch("train") if e.logger}
    if values:
        loop.write_metrics(values, loop.progress.log_step)
