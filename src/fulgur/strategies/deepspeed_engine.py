"""DeepSpeed's engine in the fit loop's hands: how it is started, and what a step calls of it."""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fulgur.errors import MisconfigurationException

if TYPE_CHECKING:
    from fulgur.loops.plan import Update

_UNTESTED = "untested optimizer"
_RENAMED = r"`torch\.distributed\.(all_gather_into_tensor|reduce_scatter_tensor|_\w+)` is deprecated"


class EngineSteps:
    """The engine in the place of a step's loss scaling: it scales, averages, clips and steps by itself.

    Args:
        update: The one optimizer's share of a step.
        engine: Gives the engine, which is not there before training has begun.
    """

    def __init__(self, update: Update, engine: Callable[[], Any]) -> None:
        self._update, self._engine = update, engine
        self._share = 1.0

    def scale(self, loss: Tensor) -> Tensor:
        """`loss` as it is: the engine's backward pass scales."""
        return loss

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Go backward; the loss has been divided by the length of its window already."""
        self._engine().backward(loss, *args, scale_wrt_gas=False, **kwargs)

    def unscale(self, optimizer: Any) -> None:
        """Note how much of its window the gradients are a mean over; the engine divides them as it unscales."""
        update = self._update
        self._share, update.divisor = update.n_backward / update.divisor, update.n_backward  # type: ignore[assignment]

    def step(self, optimizer: Any, **kwargs: Any) -> None:
        """Clip and step, unless gradients of 16 bits are not finite."""
        engine, share, self._share = self._engine(), self._share, 1.0
        if share == 1.0:
            engine.step(**kwargs)
            return
        zero = engine.optimizer
        zero.override_loss_scale(zero.loss_scale * share)
        try:
            engine.step(**kwargs)
        finally:
            zero.custom_loss_scaler = False

    def update(self) -> None:
        """Nothing: the engine's step has adapted the scale."""


def import_deepspeed(device: torch.device, *, logging_level: int) -> Any:
    """The package, quiet up to `logging_level`.

    Raises:
        MisconfigurationException: It was set up for another kind of device.
    """
    if "deepspeed" not in sys.modules and device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else it takes whatever the machine has
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    kind = get_accelerator().device_name()
    if kind.partition(":")[0] != device.type:
        raise MisconfigurationException(
            f"DeepSpeed was set up for {kind!r}, and this run uses {device.type!r}. Set the environment variable "
            f"DS_ACCELERATOR={device.type} before deepspeed is imported."
        )
    logger = logging.getLogger("DeepSpeed")
    logger.setLevel(logging_level)
    # its own calls, which torch has renamed since
    warnings.filterwarnings("ignore", message=_RENAMED, category=FutureWarning)
    if not any(isinstance(known, _AboutArguments) for known in logger.filters):
        logger.addFilter(_AboutArguments())
    return deepspeed


class _AboutArguments(logging.Filter):
    """Keeps back what DeepSpeed says of an argument that the user has given on purpose."""

    def filter(self, record: logging.LogRecord) -> bool:
        return _UNTESTED not in record.getMessage()


def start_engine(deepspeed: Any, module: nn.Module, optimizer: Any, config: dict[str, Any], *, local_rank: int) -> Any:
    """An engine around `module` and `optimizer`, in the process group that there is. All ranks must reach this.

    Args:
        deepspeed: The package.
        module: Has the same weights on all ranks afterwards: those of rank 0.
        optimizer: None to evaluate only.
        config: DeepSpeed's.
        local_rank: Rank among the processes of this machine.
    """
    with _local_rank_known(local_rank), redirect_stdout(io.StringIO()):  # it prints that it has built its parts
        deepspeed.init_distributed(dist_backend=torch.distributed.get_backend(), dist_init_required=False)
        engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config, dist_init_required=False)
    return engine


@contextmanager
def _local_rank_known(local_rank: int) -> Iterator[None]:
    """DeepSpeed finds it in the environment only, where it would tell launchers that they are not needed."""
    was = os.environ.get("LOCAL_RANK")
    os.environ["LOCAL_RANK"] = str(local_rank)
    try:
        yield
    finally:
        if was is None:
            del os.environ["LOCAL_RANK"]
        else:
            os.environ["LOCAL_RANK"] = was


def hooks_of(module: nn.Module) -> set[int]:
    """Keys of the hooks around the forward pass of `module` itself."""
    return {*module._forward_pre_hooks, *module._forward_hooks}


def as_forward(
    call: Callable[..., Any], module: nn.Module, step: Callable[..., Any], *, hooks: Collection[int]
) -> Callable[..., Any]:
    """`step` of `module`, run as the forward pass that `call` makes: with its parameters gathered.

    Within it ``module(x)`` is its own ``forward``, without the engine's hooks: they would give up what belongs to the
    module itself before the step is over.

    Args:
        call: The engine, or the module.
        module: Whose forward pass it is.
        step: What runs in its place.
        hooks: Keys of the engine's hooks.
    """

    def run(*args: Any, **kwargs: Any) -> Any:
        own = module.__dict__.get("forward")

        def restore() -> None:
            if own is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = own

        def forward(*inner: Any, **named: Any) -> Any:
            restore()
            with _hidden(module, hooks):
                return step(*inner, **named)

        module.__dict__["forward"] = forward
        try:
            return call(*args, **kwargs)
        finally:
            restore()

    return run


@contextmanager
def _hidden(module: nn.Module, hooks: Collection[int]) -> Iterator[None]:
    """Within it a call of `module` does without `hooks`."""
    kept = module._forward_pre_hooks, module._forward_hooks
    module._forward_pre_hooks, module._forward_hooks = (
        OrderedDict((key, hook) for key, hook in found.items() if key not in hooks) for found in kept
    )
    try:
        yield
    finally:
        module._forward_pre_hooks, module._forward_hooks = kept


def is_parted(module: nn.Module) -> bool:
    """Whether stage 3 has left this rank parts of the parameters."""
    return any(hasattr(parameter, "ds_id") for parameter in module.parameters())


def whole_state(deepspeed: Any, module: nn.Module, state: dict[str, Any], *, is_kept: bool) -> dict[str, Any]:
    """`state` of `module` with whole float32 weights on the host. All ranks must reach this.

    Args:
        deepspeed: The package.
        module: In an engine.
        state: Its ``state_dict``; what does not come from the module's parameters stays as it is.
        is_kept: Whether this rank wants the result; without, it gets `state`.
    """
    from deepspeed.utils import safe_get_full_fp32_param

    whole = dict(state)
    for name, parameter in module.named_parameters(remove_duplicate=False):
        held = state.get(name)
        is_own = held is not None and held.data_ptr() == parameter.data_ptr()  # no callback has put another one there
        if hasattr(parameter, "ds_id") and not hasattr(parameter, "_z3_optimizer"):  # it is not trained
            with deepspeed.zero.GatheredParameters([parameter]):  # all ranks must reach this
                value = parameter.detach().clone()
        else:
            value = safe_get_full_fp32_param(parameter)  # all ranks must reach this
        if value is not None and is_kept and is_own:
            whole[name] = value.detach().cpu().clone()
    return whole


def load_parted(deepspeed: Any, module: nn.Module, state: dict[str, Any], *, strict: bool) -> Any:
    """``module.load_state_dict`` where parameters are in parts. All ranks must reach this."""
    with deepspeed.zero.GatheredParameters(list(module.parameters()), modifier_rank=0):
        return module.load_state_dict(state, strict=strict)
