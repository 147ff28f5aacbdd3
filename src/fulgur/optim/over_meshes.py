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


def clip_norm(
    parameters: list[Any], max_norm: float, norm_type: float = 2.0, *, error_if_nonfinite: bool = False
) -> Tensor:
    """Scale the gradients of `parameters` so that their global norm is at most `max_norm`. All ranks must reach this.

    Each element counts once, whatever mesh it is spread over. Does not wait for the device, unless told to look.

    Returns:
        The norm before.

    Raises:
        RuntimeError: `error_if_nonfinite`, and the norm is not finite.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    by_mesh: dict[Any, list[Any]] = {}
    for gradient in gradients:
        by_mesh.setdefault(getattr(gradient, "device_mesh", None), []).append(gradient)
    if len(by_mesh) <= 1:
        return _whole(clip_grad_norm_(parameters, max_norm, norm_type, error_if_nonfinite=error_if_nonfinite))
    wholes = [_whole(get_total_norm(group, norm_type)) for group in by_mesh.values()]
    total: Tensor = torch.linalg.vector_norm(torch.stack([norm.to(wholes[0]) for norm in wholes]), norm_type)
    if error_if_nonfinite and not torch.isfinite(total):  # waits for the device
        raise RuntimeError(f"The gradients' norm is {float(total)}, and they cannot be clipped by it.")
    coefficient = torch.clamp(max_norm / (total + 1e-6), max=1.0)
    for part in local_parts(gradients):
        part.mul_(coefficient.to(part.device))
    return total


def _whole(norm: Any) -> Tensor:
    whole: Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    return whole


def clip_value(parameters: list[Any], bound: float) -> None:
    """Cut off each element of the gradients of `parameters` at `bound`."""
    for part in local_parts(parameter.grad for parameter in parameters if parameter.grad is not None):
        part.clamp_(-bound, bound)
