"""Which step the batches of an epoch take; decided before the first of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fulgur.errors import MisconfigurationException
from fulgur.loops.own_steps import manual_step
from fulgur.optim.gradients import gradient_clearer
from fulgur.optim.toggle import foreign_parameters, switch_off, untoggle_parameters

if TYPE_CHECKING:
    from fulgur.loops.fit import FitLoop
    from fulgur.loops.plan import Update

Step = Callable[[Any, int, bool], Any]
"""Takes a batch, its index, and whether it completes an accumulation window; returns what hooks get as outputs."""

Parameters = tuple[Tensor, ...]


def choose_step(loop: FitLoop) -> Step:
    """The step for the optimizers and hooks that there are in this epoch."""
    step = _choose(loop)
    return step if loop.measure is None else loop.measure(step, "run_training_batch")


def _choose(loop: FitLoop) -> Step:
    updates, turns = loop.plan.updates, loop.plan.turns
    if not loop.is_automatic or not updates:
        return partial(manual_step, loop)
    if turns:
        check_turns([turns.count(index) for index in range(len(updates))], loop.accumulate)
    for update in updates:
        update.clear = gradient_clearer(update.optimizer)
    steps = [loop.plain_step(u) if _is_plain(loop, u) else partial(loop.step_one, u) for u in updates]
    if len(steps) == 1:
        return steps[0]
    foreign = [foreign_parameters(u.optimizer, loop.plan.optimizers) for u in updates]
    return partial(_step_each, list(zip(steps, foreign, strict=True)), turns)


def check_turns(frequencies: Sequence[int], accumulate: int) -> None:
    """Refuse optimizers whose turns end within an accumulation window: no window would be all of one of them.

    Raises:
        MisconfigurationException: Some frequency is no multiple of `accumulate`.
    """
    if any(n % accumulate for n in frequencies):
        least = [-(-n // accumulate) * accumulate for n in frequencies]
        raise MisconfigurationException(
            f"accumulate_grad_batches={accumulate} with optimizers that take turns at frequencies {list(frequencies)}: "
            "a turn would end within an accumulation window. Use frequencies that are multiples of "
            f"{accumulate}, such as {least}, or accumulate_grad_batches=1."
        )


def _is_plain(loop: FitLoop, update: Update) -> bool:
    """Whether nobody asked for more in a step than a hand-written loop does."""
    plan, hooks = loop.plan, loop.hooks
    parts = (plan.optimizer_step, plan.scaler, plan.clip, plan.set_grad_sync, update.backward)
    listens = hooks.on_before_backward or hooks.on_after_backward or hooks.on_before_optimizer_step
    is_whole_window = loop.accumulate == 1 and plan.is_zero_grad_first
    return is_whole_window and not listens and all(part is None for part in parts)


def _step_each(
    steps: list[tuple[Step, Parameters]], turns: tuple[int, ...], batch: Any, batch_idx: int, updates: bool
) -> Any:
    """A step of each optimizer whose turn it is, the parameters that only others have switched off meanwhile."""
    outputs = []
    for step, foreign in (steps[turns[batch_idx % len(turns)]],) if turns else steps:
        state = switch_off(foreign)
        try:
            outputs.append(step(batch, batch_idx, updates))
        finally:
            untoggle_parameters(state)
    return outputs if len(outputs) > 1 else outputs[0]
