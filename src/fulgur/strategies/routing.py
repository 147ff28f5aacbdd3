"""Steps of a module to which `fully_shard` was applied, run as its forward pass is: with its parameters gathered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def route_steps(module: Any, step: Callable[..., Any], name: str) -> Callable[..., Any]:
    """`step`, with the parameters that belong to `module` itself gathered while it runs.

    Args:
        module: One that is not sharded itself is left to gather its children as they are called.
        step: What to run.
        name: "training_step" for the one that a backward pass follows.
    """
    from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

    if not isinstance(module, FSDPModule):
        return step
    module._routed_step = step  # type: ignore[attr-defined]
    register_fsdp_forward_method(module, "_routed_step")  # type: ignore[arg-type]
    routed: Callable[..., Any] = module.__dict__.pop("_routed_step")
    reshard = module.reshard

    def train(*args: Any, **kwargs: Any) -> Any:
        reshard()  # order matters: what a callback has gathered is older than the optimizer's last step
        return routed(*args, **kwargs)

    def evaluate(*args: Any, **kwargs: Any) -> Any:
        outputs = routed(*args, **kwargs)
        reshard()  # without a backward pass nobody else does
        return outputs

    return train if name == "training_step" else evaluate


def set_sync_of(module: Any) -> Callable[[bool], None] | None:
    """A function that turns the reduction of gradients on or off; None where `fully_shard` was applied to nothing."""
    from torch.distributed.fsdp import FSDPModule

    roots = [inner for inner in module.modules() if isinstance(inner, FSDPModule)]
    if isinstance(module, FSDPModule):
        roots = [module]
    if not roots:
        return None
    is_on = True

    def set_sync(wanted: bool) -> None:
        nonlocal is_on
        if wanted is not is_on:
            is_on = wanted
            for root in roots:
                root.set_requires_gradient_sync(wanted)

    return set_sync
