"""The fit loop: everything that happens between two batches, top to bottom, in this file.

Reading order: `FitLoop.run` -> `_epoch` -> `_batches` -> `plain_step`, and then what else a step may have to do:
`step_one` -> `forward_backward` -> `before_optimizer_step`. `choose.py` says which of them it is, `own_steps.py` has
the steps that the user runs himself. Whatever can be decided before the first batch is decided in `StepPlan` and
`Hooks`; a step only calls.

Three rules keep a step cheap; tests/overhead holds them by counting:

* no attribute chain longer than one dot in the batch loop (locals are bound before it),
* nothing waits for the device outside `MetricLog.flush_step`,
* no work for a hook, scheduler or scaler that nobody asked for.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fulgur.data.fetch import Fetch, iterator_steps
from fulgur.hooks import Calls, Hooks
from fulgur.logged import Scope
from fulgur.loops.choose import Step, choose_step
from fulgur.loops.epoch import (
    end_epoch,
    finish_early_loader,
    is_validation_due,
    settle_resumed_batch,
    validates_within_epoch,
)
from fulgur.loops.faults import explain_backward, unusable_output
from fulgur.loops.limits import Limits, window_length
from fulgur.loops.outputs import detached, nested_outputs, step_outputs
from fulgur.loops.own_steps import closure_step, manual_backward
from fulgur.loops.plan import StepPlan, Update
from fulgur.loops.views import FitLoopView
from fulgur.metrics import MetricLog
from fulgur.optim.clip import scale_gradients
from fulgur.optim.gradients import gradient_nodes_kept
from fulgur.progress import Progress

if TYPE_CHECKING:
    from fulgur.loops.broken import SumsBefore


class FitLoop(FitLoopView):
    """Trains until a limit is reached. Owns the counters; everything else is connected to it by `run.fit`.

    Attributes:
        plan, hooks, metrics: What a step calls, who listens, where `self.log` writes.
        fetch: Iterates over one epoch's batches.
        n_batches: Batches in an epoch; ``inf`` if unknown.
        before_epochs: Called once before the first epoch, with nothing of it drawn: restores generators on resume.
        load_epoch: Called with the epoch before its first batch; loads or re-seeds `fetch`.
        validate: Runs a validation; None where there is nothing to validate.
        write_metrics: Sends values to the loggers: ``(values, axis)``.
        kept_epoch: The epoch as it is saved where none runs: that of the file which a run was resumed from with nothing
            left to do; after fit that of its end, kept from the beginning of an evaluation on.
        kept_rng: States of the generators that belong to it, for a file saved in or after an evaluation.
        kept_sums: What was logged in the last epoch, if a limit cut it short: a resumed run goes on with it.
        should_stop: Ends the run once `min_epochs` and `min_steps` are met.
        sums_before: The sums before the batch that runs, where a callback saves on exceptions; else None.
        accumulate: Batches to an optimizer step in the running epoch.
        resumed_accumulate: The same of an epoch that is resumed midway, until it goes on.
        interrupt: Called once between two steps: raises what a signal asked for, or does what `call_soon` was given.
        monitors_may_log: Whether a callback that runs after all others at an epoch's end may log there.
        measure: Takes a function and the name of an action, and gives one that is measured; None measures nothing.
        passed: Batches since the first epoch began whose end lies behind, for `Agreement` to read.
        between: Called where something may end that no batch stands for; None on one process.
        agree: Whether all ranks do what one of them wants, see `Agreement.agree`; None on one process.
    """

    plan: StepPlan
    hooks: Hooks
    metrics: MetricLog
    fetch: Fetch

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.progress = Progress()
        self.should_stop = False
        self.interrupt: Callable[[], None] | None = None
        self.monitors_may_log = True
        self.passed = 0
        self.between: Callable[[], None] | None = None
        self.agree: Callable[[str, bool], bool] | None = None
        self.n_batches: float = math.inf
        self.val_every: float = math.inf
        self.is_sized = True
        self.is_automatic = True
        self.load_epoch: Callable[[int], None] = _nothing
        self.recollect: Callable[[], None] = _nothing
        self.validate: Callable[[], None] | None = None
        self.before_epochs: Callable[[], None] | None = None
        self.write_metrics: Callable[[dict[str, float], int], None] = _nothing
        self.manual_backward = partial(manual_backward, self)
        self.nested_outputs = partial(nested_outputs, self)
        self.kept_epoch: Mapping[str, Any] | None = None
        self.kept_rng: dict[str, Any] | None = None
        self.kept_sums: dict[str, Any] | None = None
        self.sums_before: SumsBefore | None = None
        self.accumulate = 1
        self.resumed_accumulate: int | None = None
        self.measure: Callable[[Callable[..., Any], str], Callable[..., Any]] | None = None
        self.updated = False
        self.last_validation = time.monotonic()

    def stop(self) -> None:
        """End the training after this batch, once the minimums are met; all ranks have agreed on it."""
        self.should_stop = True
        if self.updated and self.limits.log_every_n_steps:
            self._write_step()

    def call_soon(self, call: Callable[[], None]) -> None:
        """Have `call` made between two steps; from any thread. A signal comes first, for it ends the run."""

        def call_once() -> None:
            self.interrupt = None
            call()

        if self.interrupt is None:
            self.interrupt = call_once

    # ------------------------------------------------------------------------------------------------ the run

    def run(self) -> None:
        """Run epochs until `max_epochs`, `max_steps` or `should_stop`."""
        scopes = self.plan.scopes
        self.updated = self.progress.global_step > self.progress.log_step  # in the batch before, of another process too
        self.recollect()
        self.call(self.hooks.on_train_start, scopes.train_start)
        if self.before_epochs is not None:
            self.before_epochs()
        with gradient_nodes_kept(self.plan.optimizers):
            if self.between is not None:
                self.between()
            while not self.is_done():
                self._epoch()
        self.recollect()
        self.call(self.hooks.on_train_end, None)

    def is_done(self) -> bool:
        """Whether a limit is reached; looked at between epochs."""
        progress, limits = self.progress, self.limits
        if self.n_batches == 0 or progress.global_step > limits.max_steps:
            return True
        if progress.phase in ("batch", "validated"):  # resumed there: what follows the batch is still to be done
            return False
        if progress.global_step == limits.max_steps:
            return True
        max_epochs = limits.max_epochs
        if progress.phase == "start" and max_epochs is not None and max_epochs != -1 and progress.epoch >= max_epochs:
            return True
        return self.should_stop and self.may_stop(progress.epoch)

    def may_stop(self, epochs: int) -> bool:
        return epochs >= self.limits.min_epochs and self.progress.global_step >= self.limits.min_steps

    def _epoch(self) -> None:
        progress, plan = self.progress, self.plan
        self.recollect()
        self.load_epoch(progress.epoch)
        if self.n_batches == 0:
            return
        progress.cut_at, self.kept_sums = 0, None
        if progress.phase == "start":
            self.call(self.hooks.on_train_epoch_start, plan.scopes.epoch_start)
        self.accumulate, self.resumed_accumulate = self.resumed_accumulate or self.limits.accumulate, None
        is_cut = self._batches() if self.measure is None else self.measure(self._batches, "run_training_epoch")()
        progress.phase = "cut" if is_cut else "ended"
        end_epoch(self)
        progress.cut_at = progress.batch if is_cut else 0
        progress.epoch += 1
        progress.batch = 0
        progress.phase = "start"
        if self.between is not None:
            self.between()

    # ---------------------------------------------------------------------------------------------- the batches

    def _batches(self) -> bool:
        """Run the batches of an epoch. Returns whether a limit cut it short, so that a resumed run goes on with it."""
        plan, hooks, metrics, progress, fetch = self.plan, self.hooks, self.metrics, self.progress, self.fetch
        scopes, schedulers, limits = plan.scopes, plan.schedulers, self.limits
        accumulate, max_steps, log_every = self.accumulate, limits.max_steps, limits.log_every_n_steps
        starts, own_start = hooks.on_train_batch_start, hooks.module_batch_start
        if self.sums_before is not None:
            starts = (self.sums_before.take, *starts)
        ends, monitors = hooks.on_train_batch_end, hooks.on_train_batch_end_monitors
        if fetch.weigh is not None:
            ends = (*ends, fetch.count_again)  # order matters: what saves comes after it
        by_step, plateau_by_step, kept = schedulers.by_step, schedulers.plateau_by_step, plan.epoch_outputs
        if settle_resumed_batch(self):
            return False
        if progress.batch and self._is_over():
            return True
        step, validates_within, is_cut = choose_step(self), validates_within_epoch(self), False
        votes = plan.votes

        # ------------------------------------------------------------------------------------------------ one batch
        for batch in iterator_steps(fetch) if plan.takes_iterator else fetch:
            batch_idx, is_last = progress.batch, fetch.is_last
            progress.log_step = progress.global_step
            metrics.batch, metrics.batch_size = batch, None
            if votes is not None:
                votes.weight, votes.lack = fetch.weight, fetch.lack
            if starts or own_start:
                metrics.scope = scopes.batch_start
                for hook in starts:
                    hook(batch, batch_idx)
                if own_start and own_start[0](batch, batch_idx) == -1:
                    progress.log_step -= self.updated  # this batch does not run
                    self.step_epoch_schedulers()
                    break

            updates = accumulate == 1 or is_last or (batch_idx + 1) % accumulate == 0
            self.updated = False
            outputs = step(batch, batch_idx, updates)  # <- the step
            if kept is not None and fetch.weight:
                kept.append(detached(outputs))

            progress.batch = batch_idx + 1
            progress.batches_total += 1
            fetch.n_done = fetch.count - fetch.n_held
            progress.phase = "batch"
            if by_step and self.updated:
                schedulers.step(by_step, batch_idx + 1)
            if is_last:
                self.step_epoch_schedulers()
            metrics.scope = scopes.batch_end
            for hook in ends:
                hook(outputs, batch, batch_idx)
            if self.updated and log_every and (progress.global_step % log_every == 0 or self.should_stop):
                self._write_step()
            for hook in monitors:
                hook(outputs, batch, batch_idx)
            metrics.scope = metrics.batch = batch = outputs = None
            self.passed = progress.batches_total
            if self.interrupt is not None and updates:
                self.interrupt()
            may_validate = is_last or validates_within or self.should_stop
            if may_validate and self.validate is not None and is_validation_due(self, batch_idx, is_last):
                self.run_validation()
            if plateau_by_step and self.updated:
                schedulers.step(plateau_by_step, batch_idx + 1)
                progress.phase = "settled"
            if progress.global_step >= max_steps or (self.should_stop and self.may_stop(progress.epoch)):  # `_is_over`
                is_cut = not is_last
                break
        else:
            finish_early_loader(self)
        # ---------------------------------------------------------------------------------------------------------
        metrics.scope = metrics.batch = metrics.batch_size = None
        return is_cut

    def _is_over(self) -> bool:
        progress = self.progress
        return progress.global_step >= self.limits.max_steps or (self.should_stop and self.may_stop(progress.epoch))

    def plain_step(self, update: Update) -> Step:
        """What `step_one` comes down to where `_is_plain`: the same operations in the same order, nothing to ask."""
        optimizer, training_step, has_outputs = update.optimizer, update.training_step, self.plan.has_outputs
        metrics, progress, scope, clear = self.metrics, self.progress, self.plan.scopes.training_step, update.clear

        def step(batch: Any, batch_idx: int, updates: bool) -> Any:
            clear()
            metrics.scope = scope
            outputs = training_step(batch, batch_idx)
            if outputs is None:  # the user skips this batch
                return {} if has_outputs else None
            loss = outputs if isinstance(outputs, Tensor) else unusable_output(outputs, metrics)
            try:
                loss.backward()
            except RuntimeError as error:
                explain_backward(error, loss)
                raise
            optimizer.step()
            if not self.updated:
                self.updated = True
                progress.global_step += 1
            return step_outputs(outputs, loss) if has_outputs else None

        return step

    def step_one(self, update: Update, batch: Any, batch_idx: int, updates: bool) -> Any:
        """Forward, backward and, on the last batch of an accumulation window, the optimizer's step.

        Args:
            update: The optimizer, with what belongs to it.
            batch: Batch on the training device.
            batch_idx: Position in the epoch.
            updates: Whether this batch completes a window.

        Returns:
            What hooks get as outputs.
        """
        plan = self.plan
        if updates and plan.optimizer_step is not None:
            return closure_step(self, update, batch, batch_idx)
        outputs = self.forward_backward(update, batch, batch_idx, updates)
        if updates and plan.votes is not None:
            self.settle_votes(update)
        if updates and update.n_backward:
            self.before_optimizer_step(update)
            if plan.scaler is None:
                update.optimizer.step()
            else:
                plan.scaler.step(update.optimizer)
                plan.scaler.update()
            update.n_backward = 0
            if not self.updated:  # one clock: however many optimizers a batch steps, it counts once
                self.updated = True
                self.progress.global_step += 1
        return outputs

    def forward_backward(self, update: Update, batch: Any, batch_idx: int, updates: bool) -> Any:
        plan, hooks, metrics, scopes = self.plan, self.hooks, self.metrics, self.plan.scopes
        accumulate = self.accumulate
        starts_window = accumulate == 1 or batch_idx % accumulate == 0
        if starts_window:
            update.n_backward = 0
            if plan.votes is not None:
                plan.votes.open_window(update)
            update.divisor = 1 if accumulate == 1 else window_length(batch_idx, accumulate, self.n_batches)
            if plan.is_zero_grad_first:
                update.clear()
        if plan.set_grad_sync is not None:
            plan.set_grad_sync(updates)

        metrics.scope = scopes.training_step
        outputs = update.training_step(batch, batch_idx)

        if starts_window and not plan.is_zero_grad_first:
            self._zero_grad(update, batch_idx)
        if outputs is None:  # the user skips this batch
            if plan.votes is not None:
                plan.votes.skip(update, reduces=updates, scale=plan.scaler.scale if plan.scaler is not None else None)
            return {} if plan.has_outputs else None
        loss = outputs if isinstance(outputs, Tensor) else unusable_output(outputs, self.metrics)
        if plan.votes is not None:
            loss = plan.votes.cast(loss, update, reduces=updates)
        if update.divisor != 1:
            loss = loss / update.divisor
        scaled = loss if plan.scaler is None else plan.scaler.scale(loss)
        if hooks.on_before_backward:
            self.call(hooks.on_before_backward, scopes.before_backward, scaled)
        try:
            if update.backward is not None:
                metrics.scope = scopes.backward
                update.backward(scaled)
            else:
                scaled.backward()
        except RuntimeError as error:
            explain_backward(error, scaled)
            raise
        if hooks.on_after_backward:
            self.call(hooks.on_after_backward, scopes.after_backward)
        update.n_backward += 1
        return step_outputs(outputs, loss) if plan.has_outputs else None

    def settle_votes(self, update: Update) -> None:
        """Where a rank had no loss: count what all ranks had, so that the mean is over that; 0 where nobody had one."""
        votes = self.plan.votes
        if votes is not None and votes.asked >= votes.number:
            update.n_backward = votes.settle(update)

    def before_optimizer_step(self, update: Update) -> None:
        """Make gradients what the optimizer should see: unscaled, averaged over the window's true length, clipped."""
        plan, hooks, optimizer = self.plan, self.hooks, update.optimizer
        if plan.scaler is not None:
            plan.scaler.unscale(optimizer)
        if update.n_backward != update.divisor:  # the loader ended early, or batches were skipped
            scale_gradients(optimizer, update.divisor / update.n_backward)
        if hooks.on_before_optimizer_step:
            self.call(hooks.on_before_optimizer_step, plan.scopes.before_optimizer_step, optimizer)
        if plan.clip is not None:
            self.metrics.scope = plan.scopes.clipping
            plan.clip(optimizer)

    def _zero_grad(self, update: Update, batch_idx: int) -> None:
        plan, hooks, optimizer = self.plan, self.hooks, update.optimizer
        if hooks.on_before_zero_grad:
            self.call(hooks.on_before_zero_grad, plan.scopes.before_zero_grad, optimizer)
        if plan.zero_grad is not None:
            self.metrics.scope = plan.scopes.zero_grad
            plan.zero_grad(self.progress.epoch, batch_idx, optimizer)
        else:
            update.clear()

    def optimizers_for_user(self, *, wrapped: bool) -> Any:
        """The optimizer, or the list of them."""
        updates = self.plan.updates
        if len(updates) == 1:
            return updates[0].wrapped if wrapped else updates[0].optimizer
        return [update.wrapped if wrapped else update.optimizer for update in updates]

    # ---------------------------------------------------------------------------------- around and after the batches

    def call(self, calls: Calls, scope: Scope | None, *args: Any) -> None:
        """Run the hooks of one point, with logging as `scope` allows it."""
        self.metrics.scope = scope
        for hook in calls:
            hook(*args)

    def step_epoch_schedulers(self) -> None:
        schedulers = self.plan.schedulers
        if schedulers.by_epoch:
            schedulers.step(schedulers.by_epoch, self.progress.epoch + 1)

    def _write_step(self) -> None:
        values = self.metrics.flush_step()
        if values:
            self.write_metrics(values, self.progress.log_step)

    def run_validation(self) -> None:
        assert self.validate is not None
        self.validate()
        self.last_validation = time.monotonic()
        if self.between is not None:
            self.between()


def _nothing(*args: Any) -> None:
    """What is called until something is connected. A function of the module, so that loops can be sent elsewhere."""
