"""What a rank does under FSDP2 for a batch without a loss: the others wait for it at every unit, forward and backward.

Where `training_step` returned None, the units it has not run are run without their computation, in the order they
usually have, so that every gathering happens; then a loss is returned from which zeros flow back through all of them,
so that every reduction happens, with zeros whatever the activations are (a batch may have been skipped for its NaNs).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fulgur.strategies.votes import zero_of


class ZeroPass:
    """Keeps account of the units that a training step runs.

    Args:
        module: The root, to which `fully_shard` was applied.
        units: Those within it, in the order of the module.
    """

    def __init__(self, module: nn.Module, units: Iterable[nn.Module]) -> None:
        self._module = module
        self._usual = list(units)
        self._ran: list[tuple[nn.Module, list[Tensor]]] = []
        self._leaves: dict[nn.Module, list[Tensor]] = {}
        self._hooks: list[Any] = []
        self._is_usual_known = self._is_recording = False
        for unit in self._usual:
            unit.register_forward_hook(self._note, prepend=True)  # order matters: before FSDP gives parameters up

    def run(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, bool]:
        """Outputs of `step`, or a loss of zero where it returned None, and whether it did.

        Called as the forward pass of the module, so that what belongs to no unit is gathered.
        """
        self._release()
        self._is_recording = torch.is_grad_enabled()
        try:
            outputs = step(*args, **kwargs)
        finally:
            self._is_recording = False
        if outputs is None:
            return self._zero_loss(), True
        if not self._is_usual_known and self._ran:
            self._usual = [unit for unit, _ in self._ran]
            self._is_usual_known = True
        self._ran.clear()
        return outputs, False

    def _note(self, unit: nn.Module, inputs: Any, outputs: Any) -> None:
        if not self._is_recording:
            return
        if unit not in self._leaves:
            self._leaves[unit] = _whole(unit)
        self._ran.append((unit, [t for t in _tensors(outputs) if t.requires_grad]))

    def _zero_loss(self) -> Tensor:
        ran = [unit for unit, _ in self._ran]
        usual = self._usual
        if usual[: len(ran)] != ran:
            raise RuntimeError(
                "training_step returned None on this rank after it had run other units of the model than usual, so the "
                "other ranks cannot be kept waiting in order. Return a loss of zero, for example 0 * loss, instead."
            )
        root = _whole(self._module)
        for leaf in (*root, *(leaf for unit in ran for leaf in self._leaves[unit])):
            self._hooks.append(leaf.register_hook(torch.zeros_like))
        carried = [tensor for _, tensors in self._ran for tensor in tensors]
        passed = zero_of(carried or root) if carried or root else torch.zeros((), device=_device(self._module))
        for unit in usual[len(ran) :]:
            passed = _run_empty(unit, passed)
        return zero_of([passed, *root]) if passed.requires_grad or root else passed

    def _release(self) -> None:
        self._ran.clear()
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()


def _run_empty(unit: nn.Module, passed: Tensor) -> Tensor:
    """Call `unit` with its forward pass replaced by nothing: its parameters are gathered, and get gradients of zero."""
    own = unit.__dict__.get("forward")

    def nothing(passed: Tensor) -> Tensor:
        return zero_of([passed, *_whole(unit)])

    unit.forward = nothing
    try:
        result: Tensor = unit(passed)
        return result
    finally:
        if own is None:
            del unit.forward
        else:
            unit.forward = own


def _whole(module: nn.Module) -> list[Tensor]:
    """Parameters that are gathered at the moment, and trained."""
    from torch.distributed.tensor import DTensor

    return [p for p in module.parameters() if p.requires_grad and not isinstance(p, DTensor)]


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


def _tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
