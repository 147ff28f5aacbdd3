"""Steps that somebody runs himself: an overridden ``optimizer_step``, an optimizer with a closure, manual optimization.

Each ends in `FitLoop.forward_backward` and `FitLoop.before_optimizer_step`, where the loop's own step goes too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fulgur.loops.earlier import log_returned
from fulgur.loops.faults import closure_not_run, closure_run_again, explain_backward, unusable_in_manual

if TYPE_CHECKING:
    from fulgur.loops.fit import FitLoop
    from fulgur.loops.plan import Update


class _NothingToUpdate(Exception):
    """Leaves an optimizer's step from within its closure: no batch of the window had a loss."""


def closure_step(loop: FitLoop, update: Update, batch: Any, batch_idx: int) -> Any:
    """The step for an overridden ``optimizer_step``, and for optimizers that evaluate the loss themselves."""
    n_before = update.n_backward
    result: list[Any] = []

    def closure() -> Any:
        if result and n_before:
            raise closure_run_again(update.optimizer)
        update.n_backward = n_before
        result[:] = [loop.forward_backward(update, batch, batch_idx, True)]
        loop.metrics.scope = loop.plan.scopes.optimizer_step
        return result[0].get("loss")

    has_outputs, loop.plan.has_outputs = loop.plan.has_outputs, True
    try:
        assert loop.plan.optimizer_step is not None
        loop.metrics.scope = loop.plan.scopes.optimizer_step
        loop.plan.optimizer_step(loop.progress.epoch, batch_idx, update.wrapped, closure)
    finally:
        loop.plan.has_outputs = has_outputs
    if not result:
        raise closure_not_run(loop.plan.optimizer_step)
    return result[0]


def run_step(loop: FitLoop, update: Update, closure: Callable[[], Any] | None, kwargs: dict[str, Any]) -> Any:
    """What ``step`` of a `LightningOptimizer` does: precision, hooks and clipping around the optimizer's own."""
    plan, optimizer, metrics, scope = loop.plan, update.optimizer, loop.metrics, loop.metrics.scope
    if not loop.is_automatic:
        update.n_backward = update.divisor
    try:
        if plan.own_step is not None:
            result = plan.own_step(optimizer, closure=partial(_evaluate, loop, update, closure or _no_loss), **kwargs)
        elif closure is not None and plan.scaler is None:
            result = optimizer.step(partial(_evaluate, loop, update, closure), **kwargs)
        else:
            if closure is not None:
                _evaluate(loop, update, closure)
            elif update.n_backward:
                loop.before_optimizer_step(update)
            else:
                return None
            result = optimizer.step(**kwargs) if plan.scaler is None else plan.scaler.step(optimizer, **kwargs)
    except _NothingToUpdate:
        return None
    finally:
        metrics.scope = scope
    if plan.scaler is not None and loop.is_automatic:
        plan.scaler.update()
    update.n_backward = 0
    if not loop.updated:
        loop.updated = True
        loop.progress.global_step += 1
    torch.clear_autocast_cache()  # a manual step runs within autocast, whose casts of the weights are stale now
    return result


def _no_loss() -> None:
    """The closure of a step whose gradients are there."""


def _evaluate(loop: FitLoop, update: Update, closure: Callable[[], Any]) -> Any:
    """The loss for an optimizer that asks for it, with its gradients as `before_optimizer_step` leaves them."""
    torch.clear_autocast_cache()
    loss = closure()
    if loop.plan.mean_loss is not None:
        loss = loop.plan.mean_loss(loss)
    if loop.plan.votes is not None:
        loop.settle_votes(update)
    if not update.n_backward:
        raise _NothingToUpdate
    loop.before_optimizer_step(update)
    return loss


def manual_step(loop: FitLoop, batch: Any, batch_idx: int, updates: bool) -> Any:
    """The module drives backward and optimizer steps itself (`manual_backward`, `run_step`), or has no optimizer."""
    plan = loop.plan
    outputs = _outputs_of_manual(loop, batch, batch_idx)
    if updates and not plan.optimizers:
        loop.progress.global_step += 1
        loop.updated = True
    if plan.scaler is not None:
        plan.scaler.update()
    return outputs


def manual_backward(loop: FitLoop, loss: Tensor, *args: Any, **kwargs: Any) -> None:
    """Backward of manual optimization: scaled under 16-mixed, with its hooks."""
    plan, hooks, metrics = loop.plan, loop.hooks, loop.metrics
    if plan.prepare_backward is not None and loop.fetch.weight != 1.0:
        loss = loss * loop.fetch.weight  # the ranks' batches are not equally long
    scaled = loss if plan.scaler is None else plan.scaler.scale(loss)
    if hooks.on_before_backward:
        loop.call(hooks.on_before_backward, plan.scopes.before_backward, scaled)
    metrics.scope = plan.scopes.backward
    if plan.prepare_backward is not None:
        plan.prepare_backward(scaled)
    try:
        (plan.backward or torch.Tensor.backward)(scaled, *args, **kwargs)
    except (RuntimeError, TypeError) as error:
        explain_backward(error, scaled, "given to manual_backward")
        raise
    if hooks.on_after_backward:
        loop.call(hooks.on_after_backward, plan.scopes.after_backward)
    metrics.scope = plan.scopes.training_step


def _outputs_of_manual(loop: FitLoop, batch: Any, batch_idx: int) -> Any:
    loop.metrics.scope = loop.plan.scopes.training_step
    outputs = loop.plan.training_step(batch, batch_idx)
    if isinstance(outputs, Tensor):
        return {"loss": outputs.detach()} if loop.plan.has_outputs else None
    if outputs is None or isinstance(outputs, Mapping):
        if outputs and ("log" in outputs or "progress_bar" in outputs):
            log_returned(loop.metrics, outputs)
        if not loop.plan.has_outputs:
            return None
        loss = outputs.get("loss") if outputs else None
        return dict(outputs or {}) | ({"loss": loss.detach()} if isinstance(loss, Tensor) else {})
    raise unusable_in_manual(outputs)
