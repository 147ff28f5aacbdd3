"""The evaluation loop: validation, in fit and by itself, and test.

Reading order: `EvaluationLoop.run` -> `_loaders` -> `_batches`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from fulgur.data.fetch import iterator_steps
from fulgur.hooks import Calls, EvalHooks
from fulgur.logged import SUFFIX, Entry, Scope
from fulgur.loops.earlier import log_returned
from fulgur.loops.faults import no_evaluation_batch
from fulgur.loops.feed import Feed, Transfer, uncounted
from fulgur.loops.views import EvaluationLoopView
from fulgur.metrics import MetricLog, to_host
from fulgur.optim.gradients import submodules

Prefix = Literal["validation", "test", "predict"]
Results = list[dict[str, float]]

_TRAIN, _EVAL = nn.Module.train, nn.Module.eval


@dataclass(slots=True)
class EvalPlan:
    """What an evaluation calls, resolved once.

    Attributes:
        module: Whose modes are put to eval and back.
        step: Takes ``(batch, batch_idx)``, and ``dataloader_idx`` after them if `passes_loader_idx`.
        takes_iterator: Whether the step draws its batches itself.
        passes_loader_idx: Whether there are several loaders, which the step and its hooks tell apart by an index.
        model_eval: The module's ``on_*_model_eval``, where it is overridden or the model is wrapped.
        model_train: The module's ``on_*_model_train`` where overridden; else modes are restored one by one.
        epoch_end: The 1.x ``*_epoch_end(outputs)``; None where it is not there, and then no outputs are kept.
        transfers: One for each loader.
    """

    module: nn.Module
    step: Callable[..., Any]
    hooks: EvalHooks
    transfers: list[Transfer | None]
    passes_loader_idx: bool
    model_eval: Callable[[], Any] | None
    model_train: Callable[[], Any] | None
    epoch_end: Callable[[Any], Any] | None
    takes_iterator: bool = False


class EvaluationLoop(EvaluationLoopView):
    """Evaluates each loader once, in order.

    Attributes:
        plan, feed, metrics: Connected by `run.py`.
        write_metrics: Sends an epoch's values to the loggers.
        write_steps: Sends the values of one batch.
        seen: Batches evaluated so far, for each loader: the axis of values logged per batch.
        interrupt: Raises what a signal asked for; None while there was none.
        log_every: Batches between two copies of per-batch values to the host.
        log_step: Axis of the epoch's values.
        n_marks: Beginnings and ends of passes over all loaders so far: odd within one.
        resumed_generators: States of the generators of loaders that a resumed run has not loaded yet; None for none.
    """

    plan: EvalPlan
    feed: Feed
    metrics: MetricLog

    def __init__(self, prefix: Prefix) -> None:
        self.prefix = prefix
        self.stage = {"validation": "validate"}.get(prefix, prefix)
        self.write_metrics: Callable[[dict[str, float], int], None] = _nothing
        self.write_steps: Callable[[dict[str, float], int], None] = _nothing
        self.log_step: Callable[[], int] = int
        self.interrupt: Callable[[], None] | None = None
        self.log_every = 50
        self.seen: list[int] = []
        self.current: tuple[int, int] = (0, 0)
        self._has_run = False
        self.n_marks = 0
        self.resumed_generators: list[list[Any]] | None = None

    def run(
        self,
        *,
        context: AbstractContextManager[Any],
        at_most: float = math.inf,
        writes: bool = True,
        before_end: Callable[[], None] = lambda: None,
    ) -> Results:
        """Evaluate.

        Args:
            context: Switches gradients off.
            at_most: Batches of each loader at most; for the check before training.
            writes: Whether loggers get the values.
            before_end: Called when the values are final, before ``on_*_end``.

        Returns:
            For each loader the values logged, by key.
        """
        plan, metrics, scope_of = self.plan, self.metrics, self.metrics.scope_of
        modes = [(module, module.training) for module in submodules(plan.module)]
        metrics.clear(self.stage)
        self.current = (0, 0)
        self.n_marks += 1
        with context, modes_kept_on_error(modes):
            put_in_eval_mode(plan, modes)
            self._call(plan.hooks.start, scope_of(f"on_{self.prefix}_start"))
            self._call(plan.hooks.epoch_start, scope_of(f"on_{self.prefix}_epoch_start"))
            outputs = self._loaders(at_most, writes)
            self.n_marks += 1
            final = self._end_epoch(outputs)
            results = self._results(final)
            if writes:
                values = {e.epoch_key: number for e, number in final if e.logger}
                if values:
                    self.write_metrics(values, self.log_step())
            before_end()
            self._call(plan.hooks.end, None)
        if plan.model_train is not None:
            plan.model_train()
        else:
            restore_modes(modes)
        return results

    # ---------------------------------------------------------------------------------------------- the batches

    def _loaders(self, at_most: float, writes: bool) -> list[list[Any]]:
        outputs: list[list[Any]] = []
        self._has_run = False
        n_loaders = len(self.feed.loaders)
        self.seen.extend([0] * (n_loaders - len(self.seen)))
        for index in range(n_loaders):
            kept: list[Any] = []
            self._batches(index, at_most, writes, kept if self.plan.epoch_end is not None else None)
            outputs.append(kept)
        return outputs

    def _batches(self, index: int, at_most: float, writes: bool, kept: list[Any] | None) -> None:
        plan, hooks, metrics, step = self.plan, self.plan.hooks, self.metrics, self.plan.step
        suffix = f"{SUFFIX}{index}" if plan.passes_loader_idx else ""
        step_scope = metrics.scope_of(f"{self.prefix}_step", suffix)
        start_scope = metrics.scope_of(f"on_{self.prefix}_batch_start", suffix)
        end_scope = metrics.scope_of(f"on_{self.prefix}_batch_end", suffix)
        extra = (index,) if plan.passes_loader_idx else ()
        pending: list[tuple[int, dict[str, Any]]] = []
        batch_idx = -1
        fetch = self.feed.fetch(index, plan.transfers[index], at_most)
        if fetch.weigh is not None:
            fetch.uncounted = uncounted(metrics, self.stage)
        for batch_idx, batch in enumerate(iterator_steps(fetch, index) if plan.takes_iterator else fetch):
            if not fetch.weight and not plan.takes_iterator:  # other ranks need this one for their step
                metrics.scope = step_scope
                step(batch, batch_idx, *extra)
                fetch.count_again()
                continue
            self._has_run = True
            self.current = (index, batch_idx)
            metrics.batch, metrics.batch_size = batch, None
            metrics.scope = start_scope
            for hook in hooks.batch_start:
                hook(batch, batch_idx, *extra)
            metrics.scope = step_scope
            output = step(batch, batch_idx, *extra)
            metrics.scope = end_scope
            for hook in hooks.batch_end:
                hook(output, batch, batch_idx, *extra)
            if kept is not None and output is not None:
                kept.append(output)
            if plan.takes_iterator:
                fetch.count_again()
            metrics.batch = batch = output = None  # their memory is free while the next batch is loaded and evaluated
            if metrics.has_eval_steps and writes:
                pending.append((self.seen[index] + batch_idx, metrics.take_eval_step(self.stage)))
                if len(pending) >= max(self.log_every, 1):
                    self._write_steps(pending)
            if self.interrupt is not None:
                self.interrupt()
        metrics.scope = metrics.batch = metrics.batch_size = None
        if batch_idx < 0 and self.feed.n_batches[index] and not self.feed.is_divided:
            raise no_evaluation_batch(self.prefix, index)
        self._write_steps(pending)
        if writes:
            self.seen[index] += batch_idx + 1

    def _write_steps(self, pending: list[tuple[int, dict[str, Any]]]) -> None:
        """Send per-batch values to the loggers, all of them in one copy to the host."""
        numbers = iter(to_host([value for _, values in pending for value in values.values()]))
        for axis, values in pending:
            if values:
                self.write_steps({key: next(numbers) for key in values}, axis)
        pending.clear()

    # ---------------------------------------------------------------------------------------------------- the end

    def _end_epoch(self, outputs: list[list[Any]]) -> list[tuple[Entry, float]]:
        plan, metrics = self.plan, self.metrics
        scope = metrics.scope_of(f"on_{self.prefix}_epoch_end")
        metrics.reduce_epoch(self.stage)
        if plan.epoch_end is not None and (self._has_run or not self.feed.is_divided):
            metrics.scope = scope
            returned = plan.epoch_end(outputs if plan.passes_loader_idx else outputs[0])
            if returned:
                log_returned(metrics, returned, others=True)
        self._call(plan.hooks.epoch_end, scope)
        if plan.hooks.epoch_end or plan.epoch_end is not None:
            metrics.reduce_epoch(self.stage)
        metrics.scope = None
        final = metrics.flush_epoch(self.stage)
        metrics.clear(self.stage)
        return final

    def _results(self, final: list[tuple[Entry, float]]) -> Results:
        """Values of each loader; what was logged for all of them stands in each."""
        results: Results = []
        for index in range(len(self.feed.loaders)):
            own = ("", f"{SUFFIX}{index}")
            results.append({e.epoch_key: number for e, number in final if e.logger and e.loader in own})
        return results

    def _call(self, calls: Calls, scope: Scope | None) -> None:
        self.metrics.scope = scope
        for hook in calls:
            hook()


Modes = list[tuple[nn.Module, bool]]
"""Submodules, each with whether it was in training mode."""


def put_in_eval_mode(plan: EvalPlan, modes: Modes) -> None:
    """What the hook for it does: ``eval()`` of the model, which costs an epoch 20 µs where nobody overrides it."""
    if plan.model_eval is not None:
        plan.model_eval()
    elif all(_has_plain_mode(module) for module, _ in modes):
        for module, _ in modes:
            module.__dict__["training"] = False
    else:
        plan.module.eval()


def _has_plain_mode(module: nn.Module) -> bool:
    """Whether ``train()`` and ``eval()`` of a submodule set a flag and no more."""
    own, kind = module.__dict__, type(module)
    is_own = "train" in own or "eval" in own
    return kind.train is _TRAIN and kind.eval is _EVAL and not is_own and "training" in own


def restore_modes(modes: Modes) -> None:
    """Put every submodule back into its own mode."""
    for module, training in modes:
        if "training" in module.__dict__:
            module.__dict__["training"] = training  # what nn.Module.__setattr__ comes to, at a tenth of the price
        elif module.training is not training:
            module.training = training


@contextmanager
def modes_kept_on_error(modes: Modes) -> Iterator[None]:
    """Restore modes after an exception: a model left in eval mode would be trained without dropout the next time."""
    try:
        yield
    except BaseException:
        restore_modes(modes)
        raise


def grad_free_context(*, inference: bool) -> AbstractContextManager[Any]:
    """What an evaluation runs under: inference mode, or no_grad where tensors must stay usable for training."""
    return torch.inference_mode() if inference else torch.no_grad()


def _nothing(*args: Any) -> None:
    """What is called until something is connected. A function of the module, so that loops can be sent elsewhere."""
