"""What the steps of an epoch returned, for hooks that read it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from fulgur.loops.fit import FitLoop


def step_outputs(outputs: Any, loss: Tensor) -> dict[str, Any]:
    """What hooks see of a step: the loss detached, everything else as it was returned."""
    plain = loss.detach().clone()
    return {"loss": plain} if isinstance(outputs, Tensor) else {**outputs, "loss": plain}


def detached(outputs: Any) -> Any:
    """Outputs without their graphs, which would keep every step's activations alive to the epoch's end."""
    if isinstance(outputs, Tensor):
        return outputs.detach()
    if isinstance(outputs, dict):
        return {key: detached(value) for key, value in outputs.items()}
    if isinstance(outputs, (list, tuple)):
        return type(outputs)(detached(value) for value in outputs)
    return outputs


def outputs_by_optimizer(loop: FitLoop) -> list[list[Any]]:
    """For each optimizer what its steps of the epoch returned; one list where the module runs the optimizers."""
    plan, outputs = loop.plan, loop.plan.epoch_outputs or []
    if not loop.is_automatic or len(plan.updates) < 2:
        return [outputs]
    if not plan.turns:
        return [[of_batch[index] for of_batch in outputs] for index in range(len(plan.updates))]
    turns = [plan.turns[batch_idx % len(plan.turns)] for batch_idx in range(len(outputs))]
    return [[o for o, turn in zip(outputs, turns, strict=True) if turn == i] for i in range(len(plan.updates))]


def nested_outputs(loop: FitLoop) -> list[list[list[Any]]]:
    """The same as 1.0 nested them: optimizer, batch, and the one part of a batch."""
    return [[[output] for output in outputs] for outputs in outputs_by_optimizer(loop)]
