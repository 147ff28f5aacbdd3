"""Collectives that gradients flow back through."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def sum_over_ranks(tensor: Tensor, group: Any = None) -> Tensor:
    """`tensor` summed over ranks; its gradient is the sum of all ranks' gradients. All ranks must reach this, twice."""
    summed: Tensor = _Sum.apply(tensor, group)  # type: ignore[no-untyped-call]
    return summed


def gather_over_ranks(tensor: Tensor, group: Any = None) -> Tensor:
    """`tensor` of all ranks, stacked; the gradient of a part flows to its rank. All ranks must reach this, twice."""
    gathered: Tensor = _Gather.apply(tensor, group)  # type: ignore[no-untyped-call]
    return gathered


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Any) -> Tensor:
        ctx.group = group
        summed = tensor.detach().clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(summed, group=group)
        return summed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        summed = gradients[0].clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(summed, group=ctx.group)
        return summed, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Any) -> Tensor:
        ctx.group = group
        own = tensor.detach().contiguous()
        parts = [torch.empty_like(own) for _ in range(torch.distributed.get_world_size(group))]
        torch.distributed.all_gather(parts, own, group=group)
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        summed = gradients[0].clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(summed, group=ctx.group)
        return summed[torch.distributed.get_rank(ctx.group)], None
