"""Clipping of gradients that are spread over ranks (DTensors), over one mesh or several, beside whole ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, get_total_norm


def local_parts(tensors: Iterable[Any]) -> list[Tensor]:
    """What this rank holds of each; changing it changes the tensor."""
    return [tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in tensors]


def clip_norm(parameters: list[Any], max_norm: float) -> None:
    """Scale the gradients of `parameters` so that their global 2-norm is at most `max_norm`. All ranks must reach this.

    Each element counts once, whatever mesh it is spread over. Does not wait for the device.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    by_mesh: dict[Any, list[Any]] = {}
    for gradient in gradients:
        by_mesh.setdefault(getattr(gradient, "device_mesh", None), []).append(gradient)
    if len(by_mesh) <= 1:
        clip_grad_norm_(parameters, max_norm, error_if_nonfinite=False)
        return
    norms = [get_total_norm(group) for group in by_mesh.values()]
    wholes = [norm.full_tensor() if hasattr(norm, "full_tensor") else norm for norm in norms]
    total = torch.linalg.vector_norm(torch.stack([norm.to(wholes[0]) for norm in wholes]))
    coefficient = torch.clamp(max_norm / (total + 1e-6), max=1.0)
    for part in local_parts(gradients):
        part.mul_(coefficient.to(part.device))


def clip_value(parameters: list[Any], bound: float) -> None:
    """Cut off each element of the gradients of `parameters` at `bound`."""
    for part in local_parts(parameter.grad for parameter in parameters if parameter.grad is not None):
        part.clamp_(-bound, bound)
