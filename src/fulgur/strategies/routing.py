"""Steps of a module to which `fully_shard` was applied, run as its forward pass is: with its parameters gathered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fulgur.errors import MisconfigurationException
from fulgur.strategies.strategy import Strategy
from fulgur.strategies.zero_pass import ZeroPass


def is_sharded_whole(module: Any) -> bool:
    """Whether `fully_shard` was applied to `module` itself."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(module, FSDPModule)


def as_forward(module: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, with the parameters of `module` that belong to no unit gathered while it runs."""
    from torch.distributed.fsdp import register_fsdp_forward_method

    module._routed = function
    register_fsdp_forward_method(module, "_routed")
    routed: Callable[..., Any] = module.__dict__.pop("_routed")
    return routed


def route_evaluation(module: Any, step: Callable[..., Any], buffers: Sequence[Tensor] = ()) -> Callable[..., Any]:
    """`step` as forward pass of `module`.

    Args:
        module: To which `fully_shard` was applied.
        step: Called with a batch and its index.
        buffers: Of each rank's own making, such as running means: those of rank 0 are used by all.
    """
    routed, reshard = as_forward(module, step), module.reshard

    def evaluate(batch: Any, batch_idx: int, *args: Any, **kwargs: Any) -> Any:
        if batch_idx == 0:
            for buffer in buffers:
                torch.distributed.broadcast(buffer, src=0)  # all ranks must reach this
        outputs = routed(batch, batch_idx, *args, **kwargs)
        reshard()  # without a backward pass nobody else does
        return outputs

    return evaluate


def route_training(module: Any, step: Callable[..., Any]) -> Callable[..., Any]:
    """`step` as forward pass of `module`, for a backward pass to follow."""
    routed, reshard = as_forward(module, step), module.reshard

    def train(*args: Any, **kwargs: Any) -> Any:
        reshard()  # order matters: what a callback has gathered is older than the optimizer's last step
        return routed(*args, **kwargs)

    return train


def route_call(module: Any, method: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """`module`, or a method of it as its forward pass, which leaves nothing gathered that no backward pass gives up."""
    return resharding(module, module if method is None else as_forward(module, method))


def resharding(module: Any, call: Callable[..., Any]) -> Callable[..., Any]:
    """`call`, which runs `module`, and what it has gathered given up where no backward pass does that."""
    reshard = module.reshard

    def run(*args: Any, **kwargs: Any) -> Any:
        outputs = call(*args, **kwargs)
        if not torch.is_grad_enabled():
            reshard()
        return outputs

    return run


def demanding_loss(step: Callable[..., Any], who: str) -> Callable[..., Any]:
    """`step`, with an error that names `who` where it returns None: other ranks may be waiting for this one."""

    def run(*args: Any, **kwargs: Any) -> Any:
        outputs = step(*args, **kwargs)
        if outputs is None:
            raise MisconfigurationException(
                f"training_step returned None, and {who} cannot leave out a batch on some ranks only. Return a loss of "
                "zero, for example 0 * loss."
            )
        return outputs

    return run


class RoutedTraining:
    """As `route_training`, on several ranks, for a step that may return None on some of them.

    Args:
        module: To which `fully_shard` was applied.
        step: Its training step.
        zero_pass: Stands in for a step that returned None.
        is_syncing: Whether gradients are reduced after this batch.
    """

    def __init__(
        self, module: Any, step: Callable[..., Any], zero_pass: ZeroPass, is_syncing: Callable[[], bool]
    ) -> None:
        self._step, self._zero_pass, self._is_syncing = step, zero_pass, is_syncing
        self._routed, self._reshard = as_forward(module, self._run), module.reshard
        self._is_zero = False
        self._zero_loss: Tensor | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._reshard()  # order matters: what a callback has gathered is older than the optimizer's last step
        outputs = self._routed(*args, **kwargs)
        if not self._is_zero:
            return outputs
        if self._is_syncing():
            self._zero_loss = outputs
        else:
            outputs.backward()  # the others gather their parameters for it, whether or not they reduce afterwards
        return None

    def take_zero_loss(self) -> Tensor | None:
        """The loss of no batch, where the last step returned None: for its backward pass the others are waiting."""
        loss, self._zero_loss = self._zero_loss, None
        return loss

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        outputs, self._is_zero = self._zero_pass.run(self._step, *args, **kwargs)
        return outputs


class GradientSync:
    """Turns the reduction of gradients on and off.

    Args:
        module: `fully_shard` was applied to it, or to modules within it.

    Attributes:
        is_on: Whether gradients are reduced.
    """

    def __init__(self, module: Any) -> None:
        from torch.distributed.fsdp import FSDPModule

        inner = [inner for inner in module.modules() if isinstance(inner, FSDPModule)]
        self.roots: list[Any] = [module] if isinstance(module, FSDPModule) else inner
        self.is_on = True

    def set(self, wanted: bool) -> None:
        """Reduce gradients from now on, or keep them."""
        if wanted is not self.is_on:
            self.is_on = wanted
            for root in self.roots:
                root.set_requires_gradient_sync(wanted)

    @contextmanager
    def off(self) -> Iterator[None]:
        """Keep gradients for the length of a ``with`` block."""
        self.set(False)
        try:
            yield
        finally:
            self.set(True)


class RoutedCalls(Strategy):
    """Calls of modules that FSDP2 has sharded, in a loop of the user's own. Comes before other bases."""

    def route(self, wrapped: nn.Module, method: Callable[..., Any] | None = None) -> Callable[..., Any]:
        return route_call(wrapped, method) if is_sharded_whole(wrapped) else super().route(wrapped, method)

    def route_compiled(self, wrapped: nn.Module, compiled: Callable[..., Any]) -> Callable[..., Any]:
        return resharding(wrapped, compiled) if is_sharded_whole(wrapped) else compiled

    def no_sync_of(self, wrapped: nn.Module) -> Callable[[], AbstractContextManager[Any]]:
        return GradientSync(wrapped).off
