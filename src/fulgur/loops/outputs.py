"""What the steps of an epoch returned, for hooks that read it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fulgur.checkpoint.plain import from_plain, to_plain
from fulgur.errors import CheckpointError
from fulgur.rank import rank_zero_info

if TYPE_CHECKING:
    from fulgur.loops.fit import FitLoop
    from fulgur.loops.plan import StepPlan


def step_outputs(outputs: Any, loss: Tensor) -> dict[str, Any]:
    """What hooks see of a step: the loss detached, everything else as it was returned."""
    plain = loss.detach().clone()
    return {"loss": plain} if isinstance(outputs, Tensor) else {**outputs, "loss": plain}


def detached(outputs: Any) -> Any:
    """Outputs without their graphs, which would keep every step's activations alive to the epoch's end."""
    return map_tensors(outputs, Tensor.detach)


def map_tensors(outputs: Any, change: Callable[[Tensor], Any]) -> Any:
    """`outputs` with `change` of every tensor in the place of it."""
    if isinstance(outputs, Tensor):
        return change(outputs)
    if isinstance(outputs, dict):
        return {key: map_tensors(value, change) for key, value in outputs.items()}
    if isinstance(outputs, tuple) and hasattr(outputs, "_fields"):
        return type(outputs)(*(map_tensors(value, change) for value in outputs))
    if isinstance(outputs, (list, tuple)):
        return type(outputs)(map_tensors(value, change) for value in outputs)
    return outputs


def capture_outputs(outputs: list[Any] | None) -> dict[str, Any]:
    """What a checkpoint keeps of the running epoch's outputs, or why it cannot; nothing where nobody reads them."""
    if outputs is None:
        return {}
    try:
        plain = to_plain(outputs, where="what training_step returned")
    except CheckpointError as error:
        return {"outputs_refused": str(error)}
    devices: list[str] = []
    map_tensors(outputs, lambda tensor: devices.append(tensor.device.type))
    return {"outputs": {"values": plain, "devices": devices}}


def resume_outputs(plan: StepPlan, state: Mapping[str, Any], device: torch.device, n_batches: int) -> None:
    """Take back what `capture_outputs` gave; say so where hooks will get those of later batches only.

    Args:
        plan: Of the resumed run, whose outputs are collected if somebody reads them.
        state: Of the running epoch.
        device: Where tensors go that were on no CPU.
        n_batches: Batches of the epoch so far.
    """
    if plan.epoch_outputs is None:
        return
    if "outputs" in state:
        devices = iter(state["outputs"]["devices"])
        values = from_plain(state["outputs"]["values"])
        plan.epoch_outputs = map_tensors(values, lambda t: t if next(devices) == "cpu" else t.to(device))
        return
    plan.n_outputs_missing = n_batches
    reason = state.get("outputs_refused", "The checkpoint holds none.")
    rank_zero_info(
        f"Resuming within an epoch: the hooks of its end get the outputs of training_step without those of its first "
        f"{n_batches} batches. {reason}"
    )


def outputs_by_optimizer(loop: FitLoop) -> list[list[Any]]:
    """For each optimizer what its steps of the epoch returned; one list where the module runs the optimizers."""
    plan, outputs = loop.plan, loop.plan.epoch_outputs or []
    if not loop.is_automatic or len(plan.updates) < 2:
        return [outputs]
    if not plan.turns:
        return [[of_batch[index] for of_batch in outputs] for index in range(len(plan.updates))]
    first = plan.n_outputs_missing
    turns = [plan.turns[batch_idx % len(plan.turns)] for batch_idx in range(first, first + len(outputs))]
    return [[o for o, turn in zip(outputs, turns, strict=True) if turn == i] for i in range(len(plan.updates))]


def nested_outputs(loop: FitLoop) -> list[list[list[Any]]]:
    """The same as 1.0 nested them: optimizer, batch, and the one part of a batch."""
    return [[[output] for output in outputs] for outputs in outputs_by_optimizer(loop)]
