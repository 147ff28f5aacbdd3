"""Gradients of all parameters: the nodes that gather them, and clearing them without `nn.Module.modules`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.autograd.graph import get_gradient_edge
from torch.optim import Optimizer

_ZERO_GRAD = Optimizer.zero_grad


@contextmanager
def gradient_nodes_kept(optimizers: Sequence[Any]) -> Iterator[None]:
    """Keep the node that accumulates the gradient of each parameter, so that no step has to build it anew.

    A parameter refers to its node weakly. A hand-written loop keeps the nodes by chance, for its variable ``loss``
    lives until the next forward pass has found them; here nothing of a step outlives it, and each parameter would
    cost a step 0.3 µs. A parameter that is added or begins to learn later costs just that.
    """
    parameters = (p for o in optimizers for group in o.param_groups for p in group["params"] if p.requires_grad)
    nodes = [get_gradient_edge(parameter).node for parameter in parameters]
    try:
        yield
    finally:
        nodes.clear()  # they keep the parameters


def gradient_clearer(optimizer: Any) -> Callable[[], object]:
    """What clears the gradients of `optimizer`: its own ``zero_grad`` where somebody has written one.

    torch's opens a range for profilers, which takes it twenty times as long as its work: as long as all else that a
    step of the Trainer adds to a hand-written one.
    """
    is_own = getattr(type(optimizer), "zero_grad", None) is not _ZERO_GRAD or "zero_grad" in vars(optimizer)
    if is_own:
        own: Callable[[], object] = optimizer.zero_grad
        return own

    def clear() -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    return clear


def submodules(root: nn.Module) -> list[nn.Module]:
    """`root` and every module inside it, each once; not in the order of ``root.modules()``, at a fifth of its price."""
    found = {root: None}
    waiting = [root]
    while waiting:
        for child in waiting.pop()._modules.values():
            if child is not None and child not in found:
                found[child] = None
                waiting.append(child)
    return list(found)


def clear_gradients(root: nn.Module) -> None:
    """What ``root.zero_grad()`` comes to."""
    for module in submodules(root):
        for parameter in module._parameters.values():
            if parameter is not None:
                parameter.grad = None
