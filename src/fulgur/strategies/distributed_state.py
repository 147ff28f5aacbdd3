"""States whose tensors are spread over ranks (DTensors), to and from states of whole tensors.

Parameters keep their names and their order in the optimizers when they are sharded, so a state of whole tensors is the
same from any strategy: files of one are files of all.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from fulgur.checkpoint.sharded import replace_leaves


def gather_state(state: Mapping[str, Any], *, is_kept: bool) -> dict[str, Any]:
    """`state` with whole tensors on the host in the place of distributed ones. All ranks must reach this.

    One tensor at a time is whole on the device.

    Args:
        state: Of a module or an optimizer.
        is_kept: Whether this rank wants the result; without, it gets an empty dict.
    """
    from torch.distributed.tensor import DTensor

    def gather(value: Any, name: str) -> Any:
        if not isinstance(value, DTensor):
            return value
        whole = value.full_tensor().detach()  # all ranks must reach this
        return whole.cpu() if is_kept else None  # waits for the device

    # DTensor tells, in a line, that parts of parts are gathered one axis after the other: there is no other way
    logger = logging.getLogger("torch.distributed.tensor._redistribute")
    was_disabled, logger.disabled = logger.disabled, True
    try:
        gathered: dict[str, Any] = replace_leaves(state, gather, "")
    finally:
        logger.disabled = was_disabled
    return gathered if is_kept else {}


def lay_out(whole: Tensor, like: Any) -> Tensor:
    """This rank's part of `whole`, as a distributed tensor laid out as `like`. Nothing is sent.

    Args:
        whole: The same on all ranks.
        like: A distributed tensor of the same shape.
    """
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(like.shape, like.device_mesh, like.placements)
    part = whole[tuple(slice(start, start + size) for start, size in zip(offset, shape, strict=True))]
    local = part.to(like.to_local().device, copy=True).contiguous()
    laid: Tensor = DTensor.from_local(
        local, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
    return laid


def load_into_module(module: nn.Module, state: Mapping[str, Any], *, strict: bool) -> Any:
    """``module.load_state_dict`` for a module with distributed parameters, and a state of whole tensors or of parts."""
    own = module.state_dict()
    laid = copy.copy(state)
    for name, value in state.items():
        laid[name] = _as(value, own.get(name))  # type: ignore[index]
    return module.load_state_dict(laid, strict=strict)


def load_into_optimizer(optimizer: Any, state: Mapping[str, Any]) -> None:
    """``optimizer.load_state_dict`` for distributed parameters, and a state of whole tensors or of parts."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    saved = [index for group in state["param_groups"] for index in group["params"]]
    of_index = dict(zip(saved, parameters, strict=False))  # torch tells of different lengths
    laid = {
        index: {name: _as(value, of_index.get(index)) for name, value in entry.items()}
        if isinstance(entry, dict)
        else entry
        for index, entry in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": laid})


def _as(value: Any, like: Any) -> Any:
    """`value` laid out as `like`, where one is whole and the other distributed, and they have one shape."""
    from torch.distributed.tensor import DTensor

    if not isinstance(value, Tensor) or not isinstance(like, Tensor) or value.shape != like.shape:
        return value
    if isinstance(like, DTensor) and not isinstance(value, DTensor):
        return lay_out(value, like)
    if isinstance(value, DTensor) and not isinstance(like, DTensor):
        return value.full_tensor()  # all ranks must reach this
    return value


def place_without_parameters(module: nn.Module, device: torch.device) -> None:
    """Move what `fully_shard` does not know of, such as the states of metric objects."""
    for inner in module.children():
        if next(inner.parameters(), None) is None:
            inner.to(device)
        else:
            place_without_parameters(inner, device)


def load_whole(part: Tensor, whole: Tensor) -> None:
    """Copy this rank's part of `whole` into `part`, which may be distributed or not."""
    from torch.distributed.tensor import DTensor

    with torch.no_grad():
        if isinstance(part, DTensor):
            part.to_local().copy_(cast("DTensor", lay_out(whole, part)).to_local())
        else:
            part.copy_(whole)


def share_initial_state(module: nn.Module, device: torch.device, *, recurses: bool = True) -> None:
    """Give all ranks the weights of rank 0, before they are cut into parts. All ranks must reach this.

    One tensor at a time is on `device`, where the process group can send it.
    """
    from torch.distributed.tensor import DTensor

    if torch.distributed.get_world_size() == 1:
        return
    for tensor in (*module.parameters(recurses), *module.buffers(recurses)):
        if tensor.is_meta or isinstance(tensor, DTensor):
            continue
        shared = tensor.detach().to(device)
        torch.distributed.broadcast(shared, src=0)  # all ranks must reach this
        if shared.data_ptr() != tensor.data_ptr():
            tensor.detach().copy_(shared)


def names_by_optimizer(module: nn.Module, optimizers: list[Any]) -> dict[str, list[str]]:
    """Names of each optimizer's parameters, by the optimizer's key in a checkpoint: what its state is laid out like."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return {
        f"optimizer_states.{index}": [names.get(id(p), "") for group in o.param_groups for p in group["params"]]
        for index, o in enumerate(optimizers)
    }


class OwnLayout:
    """Says of a tensor in a sharded checkpoint which part this rank wants: that of the parameter it belongs to.

    Args:
        module: Whose parameters are distributed.
    """

    def __init__(self, module: nn.Module) -> None:
        from torch.distributed.tensor import DTensor

        self._own = {name: value for name, value in module.state_dict().items() if isinstance(value, DTensor)}

    def __call__(self, key: str, shape: torch.Size, shards: Mapping[str, Any]) -> Tensor | None:
        like = self._own.get(self._parameter_of(key, shards.get("parameters", {})))
        return like if like is not None and like.shape == shape else None

    @staticmethod
    def _parameter_of(key: str, parameters: Mapping[str, list[str]]) -> str:
        """Name of the parameter that the tensor `key` is, or is an optimizer's state of."""
        if key.startswith("state_dict."):
            return key.removeprefix("state_dict.")
        for optimizer, names in parameters.items():
            if key.startswith(f"{optimizer}.state."):
                index = key.removeprefix(f"{optimizer}.state.").partition(".")[0]
                return names[int(index)] if index.isdecimal() and int(index) < len(names) else ""
        return ""
