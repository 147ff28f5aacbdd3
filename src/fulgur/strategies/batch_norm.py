"""Batch norm over the batches of all ranks, on any device; and back again."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from fulgur.strategies.collectives import sum_over_ranks

Replaced = list[tuple[nn.Module, str, nn.Module]]
"""Parents, with the name of the child that was replaced, and the child as it was."""


class SharedBatchNorm(_BatchNorm):
    """What `torch.nn.SyncBatchNorm` does on accelerators, for the CPU, which it refuses."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"Batch norm needs an input of shape (batch, channels, ...); got {tuple(input.shape)}.")

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        if not self.training and self.running_mean is not None:
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
            )
        mean, variance, count = _statistics(input)
        if self.training and self.track_running_stats:
            self._track(mean.detach(), variance.detach(), count)
        shape = [1, -1] + [1] * (input.dim() - 2)
        result = (input - mean.view(shape)) * torch.rsqrt(variance + self.eps).view(shape)
        if self.weight is not None:
            result = result * self.weight.view(shape) + self.bias.view(shape)
        return result.to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: float) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        unbiased = variance * (count / max(count - 1.0, 1.0))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)


def share_batch_norms(module: nn.Module, device: torch.device) -> Replaced:
    """Replace the batch norm layers within `module` by ones that see all ranks; parameters and buffers are kept.

    Args:
        module: Trained on `device`.
        device: Where the layers are.

    Returns:
        What `restore_batch_norms` takes.
    """
    replaced: Replaced = []
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm) and not isinstance(child, nn.SyncBatchNorm):
                setattr(parent, name, _shared(child, SharedBatchNorm if device.type == "cpu" else nn.SyncBatchNorm))
                replaced.append((parent, name, child))
    return replaced


def restore_batch_norms(replaced: Replaced) -> None:
    """Put the layers that were there back, with the parameters, buffers and mode of those in their place."""
    for parent, name, original in replaced:
        shared = getattr(parent, name)
        original._parameters.update(shared._parameters)
        original._buffers.update(shared._buffers)
        original.training = shared.training
        setattr(parent, name, original)


def _shared(layer: _BatchNorm, kind: type[_BatchNorm]) -> _BatchNorm:
    shared = kind(
        layer.num_features, layer.eps, layer.momentum, affine=False, track_running_stats=layer.track_running_stats
    )
    shared.affine, shared.training = layer.affine, layer.training
    shared._parameters.update(layer._parameters)
    shared._buffers.update(layer._buffers)
    return shared


def _statistics(input: Tensor) -> tuple[Tensor, Tensor, float]:
    """Mean and biased variance of each channel over all ranks, and the number of values behind them."""
    wide = input.to(torch.promote_types(input.dtype, torch.float32))
    dims = [0, *range(2, input.dim())]
    own = torch.tensor([input.numel() / max(input.shape[1], 1)], dtype=wide.dtype)
    summed = sum_over_ranks(torch.cat([wide.sum(dims), own]))
    count = summed[-1].detach()
    mean = summed[:-1] / count
    deviation = wide - mean.view([1, -1] + [1] * (input.dim() - 2))
    variance = sum_over_ranks((deviation * deviation).sum(dims)) / count
    return mean, variance, float(count)
