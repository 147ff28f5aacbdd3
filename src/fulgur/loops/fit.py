"""The fit loop: everything that happens between two batches, top to bottom, in this file.

Reading order: `FitLoop.run` -> `_epoch` -> `_batches` -> `_automatic_step` -> `_forward_backward` ->
`_before_optimizer_step` (or `_manual_step`). Whatever can be decided before the first batch is decided in `StepPlan`
and `Hooks`; a step only calls.

Three rules keep a step cheap; tests/overhead holds them by counting:

* no attribute chain longer than one dot in the batch loop (locals are bound before it),
* nothing waits for the device outside `MetricLog.flush_step`,
* no work for a hook, scheduler or scaler that nobody asked for.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fulgur.data.fetch import Fetch, StepIterator
from fulgur.hooks import Calls, Hooks
from fulgur.loops.faults import (
    closure_not_run,
    closure_run_again,
    explain_backward,
    no_batch,
    unusable_in_manual,
    unusable_output,
    warn_of_no_loss,
)
from fulgur.loops.limits import Limits, window_length
from fulgur.loops.plan import StepPlan, Update
from fulgur.metrics import MetricLog, Scope
from fulgur.optim.toggle import foreign_parameters, switch_off, untoggle_parameters
from fulgur.progress import Progress


class _NothingToUpdate(Exception):
    """Leaves an optimizer's step from within its closure: no batch of the window had a loss."""


class FitLoop:
    """Trains until a limit is reached. Owns the counters; everything else is connected to it by `run.fit`.

    Attributes:
        plan, hooks, metrics: What a step calls, who listens, where `self.log` writes.
        fetch: Iterates over one epoch's batches.
        n_batches: Batches in an epoch; ``inf`` if unknown.
        before_epochs: Called once before the first epoch, with nothing of it drawn: restores generators on resume.
        load_epoch: Called with the epoch before its first batch; loads or re-seeds `fetch`.
        validate: Runs a validation; None where there is nothing to validate.
        write_metrics: Sends values to the loggers: ``(values, axis)``.
        should_stop: Ends the run once `min_epochs` and `min_steps` are met.
        interrupt: Raises what a signal asked for, at the next step boundary; None while there was no signal.
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
        self.n_batches: float = math.inf
        self.val_every: float = math.inf
        self.is_sized = True
        self.is_automatic = True
        self.load_epoch: Callable[[int], None] = lambda epoch: None
        self.recollect: Callable[[], None] = lambda: None
        self.validate: Callable[[], None] | None = None
        self.before_epochs: Callable[[], None] | None = None
        self.write_metrics: Callable[[dict[str, float], int], None] = lambda values, step: None
        self._updated = False
        self.last_validation = time.monotonic()

    @property
    def max_epochs(self) -> int | None:
        """Epochs counted from the very first; assign a higher number to go on with a second fit."""
        return self.limits.max_epochs

    @max_epochs.setter
    def max_epochs(self, max_epochs: int | None) -> None:
        self.limits.max_epochs = max_epochs

    # ------------------------------------------------------------------------------------------------ the run

    def run(self) -> None:
        """Run epochs until `max_epochs`, `max_steps` or `should_stop`."""
        scopes = self.plan.scopes
        self.last_validation = time.monotonic()
        self._call(self.hooks.on_train_start, scopes.train_start)
        if self.before_epochs is not None:
            self.before_epochs()
        while not self.is_done():
            self._epoch()
        self._call(self.hooks.on_train_end, None)

    def is_done(self) -> bool:
        """Whether a limit is reached; looked at between epochs."""
        progress, limits = self.progress, self.limits
        if self.n_batches == 0 or progress.global_step >= limits.max_steps:
            return True
        max_epochs = limits.max_epochs
        if progress.phase == "start" and max_epochs is not None and max_epochs != -1 and progress.epoch >= max_epochs:
            return True
        return self.should_stop and self._may_stop(progress.epoch)

    def _may_stop(self, epochs: int) -> bool:
        return epochs >= self.limits.min_epochs and self.progress.global_step >= self.limits.min_steps

    def _epoch(self) -> None:
        progress, plan = self.progress, self.plan
        self.recollect()
        self.load_epoch(progress.epoch)
        if self.n_batches == 0:
            return
        progress.cut_at = 0
        if progress.phase == "start":
            self._call(self.hooks.on_train_epoch_start, plan.scopes.epoch_start)
        is_cut = self._batches()
        progress.phase = "cut" if is_cut else "ended"
        self._end_epoch()
        progress.cut_at = progress.batch if is_cut else 0
        progress.epoch += 1
        progress.batch = 0
        progress.phase = "start"

    # ---------------------------------------------------------------------------------------------- the batches

    def _batches(self) -> bool:
        """Run the batches of an epoch. Returns whether a limit cut it short, so that a resumed run goes on with it."""
        plan, hooks, metrics, progress, fetch = self.plan, self.hooks, self.metrics, self.progress, self.fetch
        scopes, schedulers, limits = plan.scopes, plan.schedulers, self.limits
        accumulate, max_steps, log_every = limits.accumulate, limits.max_steps, limits.log_every_n_steps
        step = self._automatic_step if self.is_automatic else self._manual_step
        if self._resumes_at_last_batch():
            return False
        if self.is_automatic and len(plan.updates) > 1:
            for update in plan.updates:
                update.foreign = foreign_parameters(update.optimizer, plan.optimizers)
        is_cut = False

        # ------------------------------------------------------------------------------------------------ one batch
        for batch in self._iterator_steps(fetch) if plan.takes_iterator else fetch:
            batch_idx, is_last = progress.batch, fetch.is_last
            progress.log_step = progress.global_step
            metrics.batch, metrics.batch_size = batch, None
            metrics.scope = scopes.batch_start
            for hook in hooks.on_train_batch_start:
                hook(batch, batch_idx)
            if hooks.module_batch_start and hooks.module_batch_start[0](batch, batch_idx) == -1:
                progress.log_step -= self._updated  # this batch does not run
                self._step_epoch_schedulers()
                break

            updates = accumulate == 1 or is_last or (batch_idx + 1) % accumulate == 0
            outputs = step(batch, batch_idx, updates)  # <- the step

            progress.batch = batch_idx + 1
            progress.batches_total += 1
            fetch.n_done = fetch.count
            progress.phase = "batch"
            if self._updated and schedulers.by_step:
                schedulers.step(schedulers.by_step, batch_idx + 1)
            if is_last:
                self._step_epoch_schedulers()
            metrics.scope = scopes.batch_end
            for hook in hooks.on_train_batch_end:
                hook(outputs, batch, batch_idx)
            if self._updated and log_every and (progress.global_step % log_every == 0 or self.should_stop):
                self._write_step()
            for hook in hooks.on_train_batch_end_monitors:
                hook(outputs, batch, batch_idx)
            metrics.scope = metrics.batch = batch = outputs = None
            if self.interrupt is not None and updates:
                self.interrupt()
            if self.validate is not None and self._is_validation_due(batch_idx, is_last):
                self._validate()
            if schedulers.plateau_by_step and self._updated:
                schedulers.step(schedulers.plateau_by_step, batch_idx + 1)
                progress.phase = "settled"
            if progress.global_step >= max_steps or (self.should_stop and self._may_stop(progress.epoch)):
                is_cut = not is_last
                break
        else:
            self._finish_early_loader()
        # ---------------------------------------------------------------------------------------------------------
        metrics.scope = metrics.batch = None
        return is_cut

    def _automatic_step(self, batch: Any, batch_idx: int, updates: bool) -> Any:
        """Forward, backward and, on the last batch of a window, the optimizer step; for each optimizer.

        Args:
            batch: Batch on the training device.
            batch_idx: Position in the epoch.
            updates: Whether this batch completes an accumulation window.

        Returns:
            What hooks get as outputs.
        """
        plan, progress = self.plan, self.progress
        collected: list[Any] = []
        outputs: Any = None
        self._updated = False
        active = (plan.updates[plan.turns[batch_idx % len(plan.turns)]],) if plan.turns else plan.updates
        for update in active:
            toggled = switch_off(update.foreign) if update.foreign else None
            if updates and plan.optimizer_step is not None:
                outputs = self._closure_step(update, batch, batch_idx)
            else:
                outputs = self._forward_backward(update, batch, batch_idx, updates)
                if updates and update.n_backward:
                    self._before_optimizer_step(update)
                    if plan.scaler is None:
                        update.optimizer.step()
                    else:
                        plan.scaler.step(update.optimizer)
                        plan.scaler.update()
                    update.n_backward = 0
                    if not self._updated:  # one clock: however many optimizers a batch steps, it counts once
                        self._updated = True
                        progress.global_step += 1
            if toggled is not None:
                untoggle_parameters(toggled)
            if len(active) > 1:
                collected.append(outputs)
        if collected:
            outputs = collected
        if not plan.updates:  # no optimizer: the module trains nothing, or in its own way
            outputs = self._run_without_optimizer(batch, batch_idx)
            if updates:
                progress.global_step += 1
                self._updated = True
        if plan.epoch_outputs is not None:
            plan.epoch_outputs.append(_detached(outputs))
        return outputs

    def _forward_backward(self, update: Update, batch: Any, batch_idx: int, updates: bool) -> Any:
        plan, hooks, metrics, scopes = self.plan, self.hooks, self.metrics, self.plan.scopes
        optimizer, accumulate = update.optimizer, self.limits.accumulate
        starts_window = accumulate == 1 or batch_idx % accumulate == 0
        if starts_window:
            update.n_backward = 0
            update.divisor = 1 if accumulate == 1 else window_length(batch_idx, accumulate, self.n_batches)
            if plan.is_zero_grad_first:
                optimizer.zero_grad()
        if plan.set_grad_sync is not None:
            plan.set_grad_sync(updates)

        metrics.scope = scopes.training_step
        outputs = update.training_step(batch, batch_idx)

        if starts_window and not plan.is_zero_grad_first:
            self._zero_grad(optimizer, batch_idx)
        if outputs is None:  # the user skips this batch
            return {} if plan.has_outputs else None
        loss = outputs if isinstance(outputs, Tensor) else unusable_output(outputs)
        if update.divisor != 1:
            loss = loss / update.divisor
        scaled = loss if plan.scaler is None else plan.scaler.scale(loss)
        if hooks.on_before_backward:
            self._call(hooks.on_before_backward, scopes.before_backward, scaled)
        try:
            if plan.backward is not None:
                metrics.scope = scopes.backward
                plan.backward(scaled)
            else:
                scaled.backward()
        except RuntimeError as error:
            explain_backward(error, scaled)
            raise
        if hooks.on_after_backward:
            self._call(hooks.on_after_backward, scopes.after_backward)
        update.n_backward += 1
        return _outputs(outputs, loss) if plan.has_outputs else None

    def _before_optimizer_step(self, update: Update) -> None:
        """Make gradients what the optimizer should see: unscaled, averaged over the window's true length, clipped."""
        plan, hooks, optimizer = self.plan, self.hooks, update.optimizer
        if plan.scaler is not None:
            plan.scaler.unscale(optimizer)
        if update.n_backward != update.divisor:  # the loader ended early, or batches were skipped
            _scale_gradients(optimizer, update.divisor / update.n_backward)
        if hooks.on_before_optimizer_step:
            self._call(hooks.on_before_optimizer_step, plan.scopes.before_optimizer_step, optimizer)
        if plan.clip is not None:
            self.metrics.scope = plan.scopes.clipping
            plan.clip(optimizer)

    # --------------------------------------------------------------------- steps that somebody wants to run himself

    def _closure_step(self, update: Update, batch: Any, batch_idx: int) -> Any:
        """The step for an overridden ``optimizer_step``, and for optimizers that evaluate the loss themselves."""
        n_before = update.n_backward
        result: list[Any] = []

        def closure() -> Any:
            if result and n_before:
                raise closure_run_again(update.optimizer)
            update.n_backward = n_before
            result[:] = [self._forward_backward(update, batch, batch_idx, True)]
            self.metrics.scope = self.plan.scopes.optimizer_step
            return result[0].get("loss")

        has_outputs, self.plan.has_outputs = self.plan.has_outputs, True
        try:
            assert self.plan.optimizer_step is not None
            self.metrics.scope = self.plan.scopes.optimizer_step
            self.plan.optimizer_step(self.progress.epoch, batch_idx, update.wrapped, closure)
        finally:
            self.plan.has_outputs = has_outputs
        if not result:
            raise closure_not_run(self.plan.optimizer_step)
        return result[0]

    def run_step(self, update: Update, closure: Callable[[], Any] | None, kwargs: dict[str, Any]) -> Any:
        """What ``step`` of a `LightningOptimizer` does: precision, hooks and clipping around the optimizer's own."""
        plan, optimizer, metrics, scope = self.plan, update.optimizer, self.metrics, self.metrics.scope
        if not self.is_automatic:
            update.n_backward = update.divisor
        try:
            if closure is not None and plan.scaler is None:
                result = optimizer.step(partial(self._evaluate, update, closure), **kwargs)
            else:
                if closure is not None:
                    self._evaluate(update, closure)
                elif update.n_backward:
                    self._before_optimizer_step(update)
                else:
                    return None
                result = optimizer.step(**kwargs) if plan.scaler is None else plan.scaler.step(optimizer, **kwargs)
        except _NothingToUpdate:
            return None
        finally:
            metrics.scope = scope
        if plan.scaler is not None and self.is_automatic:
            plan.scaler.update()
        update.n_backward = 0
        if not self._updated:
            self._updated = True
            self.progress.global_step += 1
        torch.clear_autocast_cache()  # a manual step runs within autocast, whose casts of the weights are stale now
        return result

    def _evaluate(self, update: Update, closure: Callable[[], Any]) -> Any:
        """The loss for an optimizer that asks for it, with its gradients as `_before_optimizer_step` leaves them."""
        torch.clear_autocast_cache()
        loss = closure()
        if not update.n_backward:
            raise _NothingToUpdate
        self._before_optimizer_step(update)
        return loss

    def _zero_grad(self, optimizer: Any, batch_idx: int) -> None:
        plan, hooks = self.plan, self.hooks
        if hooks.on_before_zero_grad:
            self._call(hooks.on_before_zero_grad, plan.scopes.before_zero_grad, optimizer)
        if plan.zero_grad is not None:
            self.metrics.scope = plan.scopes.zero_grad
            plan.zero_grad(self.progress.epoch, batch_idx, optimizer)
        else:
            optimizer.zero_grad()

    def _manual_step(self, batch: Any, batch_idx: int, updates: bool) -> Any:
        """The module drives backward and optimizer steps itself; see `manual_backward` and `run_step`."""
        plan = self.plan
        self._updated = False
        outputs = self._run_without_optimizer(batch, batch_idx)
        if not plan.optimizers:
            self.progress.global_step += 1
            self._updated = True
        if plan.scaler is not None:
            plan.scaler.update()
        if plan.epoch_outputs is not None:
            plan.epoch_outputs.append(_detached(outputs))
        return outputs

    def _run_without_optimizer(self, batch: Any, batch_idx: int) -> Any:
        self.metrics.scope = self.plan.scopes.training_step
        outputs = self.plan.training_step(batch, batch_idx)
        if isinstance(outputs, Tensor):
            return {"loss": outputs.detach()} if self.plan.has_outputs else None
        if outputs is None or isinstance(outputs, Mapping):
            if not self.plan.has_outputs:
                return None
            loss = outputs.get("loss") if outputs else None
            return dict(outputs or {}) | ({"loss": loss.detach()} if isinstance(loss, Tensor) else {})
        raise unusable_in_manual(outputs)

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Backward of manual optimization: scaled under 16-mixed, with its hooks."""
        plan, hooks, metrics = self.plan, self.hooks, self.metrics
        scaled = loss if plan.scaler is None else plan.scaler.scale(loss)
        if hooks.on_before_backward:
            self._call(hooks.on_before_backward, plan.scopes.before_backward, scaled)
        metrics.scope = plan.scopes.backward
        try:
            (plan.backward or torch.Tensor.backward)(scaled, *args, **kwargs)
        except (RuntimeError, TypeError) as error:
            explain_backward(error, scaled, "given to manual_backward")
            raise
        if hooks.on_after_backward:
            self._call(hooks.on_after_backward, plan.scopes.after_backward)
        metrics.scope = plan.scopes.training_step

    def optimizers_for_user(self, *, wrapped: bool) -> Any:
        """The optimizer, or the list of them."""
        updates = self.plan.updates
        if len(updates) == 1:
            return updates[0].wrapped if wrapped else updates[0].optimizer
        return [update.wrapped if wrapped else update.optimizer for update in updates]

    # ---------------------------------------------------------------------------------- around and after the batches

    def _call(self, calls: Calls, scope: Scope | None, *args: Any) -> None:
        """Run the hooks of one point, with logging as `scope` allows it."""
        self.metrics.scope = scope
        for hook in calls:
            hook(*args)

    def _step_epoch_schedulers(self) -> None:
        schedulers = self.plan.schedulers
        if schedulers.by_epoch:
            schedulers.step(schedulers.by_epoch, self.progress.epoch + 1)

    def _write_step(self) -> None:
        values = self.metrics.flush_step()
        if values:
            self.write_metrics(values, self.progress.log_step)

    def _end_epoch(self) -> None:
        plan, hooks, metrics, progress = self.plan, self.hooks, self.metrics, self.progress
        scope, schedulers = plan.scopes.epoch_end, plan.schedulers
        if self.is_automatic and not progress.global_step and not any(update.n_backward for update in plan.updates):
            warn_of_no_loss(progress.batch)
        metrics.reduce_epoch("train")
        if plan.epoch_outputs and plan.training_epoch_end is not None:
            metrics.scope = scope
            by_optimizer = self._outputs_by_optimizer()
            plan.training_epoch_end(by_optimizer if len(by_optimizer) > 1 else by_optimizer[0])
        self._call(hooks.on_train_epoch_end, scope)
        metrics.reduce_epoch("train")
        # order matters: what saves runs last, and its file holds the next rate and what the loggers have got
        if schedulers.plateau_by_epoch and progress.phase == "ended":
            schedulers.step(schedulers.plateau_by_epoch, progress.epoch + 1)
        self._write_epoch()
        self._call(hooks.on_train_epoch_end_monitors, scope)
        if metrics.reduce_epoch("train"):
            self._write_epoch()
        metrics.clear("train")
        metrics.scope = None
        if plan.epoch_outputs:
            plan.epoch_outputs = []

    def _outputs_by_optimizer(self) -> list[list[Any]]:
        """For each optimizer what its steps of the epoch returned; one list where the module runs the optimizers."""
        plan, outputs = self.plan, self.plan.epoch_outputs or []
        if not self.is_automatic or len(plan.updates) < 2:
            return [outputs]
        if not plan.turns:
            return [[of_batch[index] for of_batch in outputs] for index in range(len(plan.updates))]
        turns = [plan.turns[batch_idx % len(plan.turns)] for batch_idx in range(len(outputs))]
        return [[o for o, turn in zip(outputs, turns, strict=True) if turn == i] for i in range(len(plan.updates))]

    def nested_outputs(self) -> list[list[list[Any]]]:
        """The same as 1.0 nested them: optimizer, batch, and the one part of a batch."""
        return [[[output] for output in outputs] for outputs in self._outputs_by_optimizer()]

    def _write_epoch(self) -> None:
        values = {e.epoch_key: number for e, number in self.metrics.flush_epoch("train") if e.logger}
        if values:
            self.write_metrics(values, self.progress.log_step)

    def _is_validation_due(self, batch_idx: int, is_last: bool) -> bool:
        limits, progress = self.limits, self.progress
        every_n_epoch, interval = limits.check_val_every_n_epoch, limits.val_check_interval
        if every_n_epoch is not None and (progress.epoch + 1) % every_n_epoch != 0:
            return False
        if is_last and not self.is_sized:
            return True
        if self.should_stop and self._may_stop(progress.epoch):
            return True
        if isinstance(interval, timedelta):
            return time.monotonic() - self.last_validation >= interval.total_seconds()
        count = batch_idx + 1 if every_n_epoch is not None else progress.batches_total
        return count % self.val_every == 0

    def _validate(self) -> None:
        assert self.validate is not None
        self.validate()
        self.last_validation = time.monotonic()

    def _resumes_at_last_batch(self) -> bool:
        """After a resume: do what was still due after the last batch, and tell whether none is left."""
        progress, schedulers = self.progress, self.plan.schedulers
        if progress.phase == "start" or progress.batch == 0:
            return False
        is_last = self.fetch.is_last or progress.batch >= self.n_batches
        is_open = progress.phase == "batch" and self.validate is not None
        if is_open and self._is_validation_due(progress.batch - 1, is_last):
            self._validate()
        has_updated = progress.global_step > progress.log_step
        if schedulers.plateau_by_step and has_updated and progress.phase in ("batch", "validated"):
            schedulers.step(schedulers.plateau_by_step, progress.batch)
        if is_last:
            self.fetch.finish_resumed()
        return is_last

    def _iterator_steps(self, fetch: Fetch) -> Iterator[StepIterator]:
        """Hand the iterator itself to each step, for ``training_step(dataloader_iter)``."""
        iterator, is_last = StepIterator(fetch), False
        while iterator.has_more:
            fetch.is_last = is_last = iterator.draws_last
            yield iterator
        fetch.is_last = is_last  # as the last step was told, which may have drawn more batches than one

    def _finish_early_loader(self) -> None:
        """The loader had fewer batches than its length said: update with what the open window has."""
        plan, progress = self.plan, self.progress
        if self.fetch.is_last:
            return
        if progress.batch == 0:
            raise no_batch(progress.epoch, progress.batches_total)
        for update in plan.updates:
            if update.n_backward:
                self.run_step(update, None, {})
        self._step_epoch_schedulers()
        if self.validate is not None and progress.batch and progress.phase == "batch":
            self._validate()


def _outputs(outputs: Any, loss: Tensor) -> dict[str, Any]:
    """What hooks see of a step: the loss detached, everything else as it was returned."""
    detached = loss.detach().clone()
    return {"loss": detached} if isinstance(outputs, Tensor) else {**outputs, "loss": detached}


def _detached(outputs: Any) -> Any:
    """Outputs without their graphs, which would keep every step's activations alive to the epoch's end."""
    if isinstance(outputs, Tensor):
        return outputs.detach()
    if isinstance(outputs, dict):
        return {key: _detached(value) for key, value in outputs.items()}
    if isinstance(outputs, (list, tuple)):
        return type(outputs)(_detached(value) for value in outputs)
    return outputs


def _scale_gradients(optimizer: Any, factor: float) -> None:
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if gradients:
        torch._foreach_mul_(gradients, factor)
