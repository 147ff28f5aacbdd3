"""Processes that talk to each other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def distributed_available() -> bool:
    """Whether this process talks to others."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def gather_all_tensors(result: Tensor, group: Any = None) -> list[Tensor]:
    """A tensor of each rank; the one alone on one process. All ranks must call it."""
    if not distributed_available():
        return [result]
    gathered = [torch.zeros_like(result) for _ in range(torch.distributed.get_world_size(group))]
    torch.distributed.all_gather(gathered, result.contiguous(), group)  # all ranks must reach this
    return gathered


def sync_ddp(result: Tensor, group: Any = None, reduce_op: str | None = None) -> Tensor:
    """`result` reduced over all ranks, by sum or, for "avg" and "mean", by mean. All ranks must call it."""
    torch.distributed.all_reduce(result, group=group)  # all ranks must reach this
    if str(reduce_op).lower() in ("avg", "mean"):
        result = result / torch.distributed.get_world_size(group)
    return result


def sync_ddp_if_available(result: Tensor, group: Any = None, reduce_op: str | None = None) -> Tensor:
    """`sync_ddp`, or `result` as it is on one process."""
    return sync_ddp(result, group, reduce_op) if distributed_available() else result
