"""Gradient clipping for the parameters of one optimizer."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim import Optimizer

from fulgur.errors import MisconfigurationException

_PLAIN = frozenset({Tensor, torch.nn.Parameter})
"""Types of tensors that are whole, and on this process alone."""


def clip_gradients(optimizer: Optimizer, clip_val: float, algorithm: str = "norm") -> None:
    """Clip the gradients of an optimizer's parameters in place, by the norm over all ranks that share them.

    Does not wait for the device: a non-finite norm is left to the caller.

    Args:
        optimizer: Its parameters are taken together, over all groups; those without a gradient are skipped.
        clip_val: Upper bound of the 2-norm, or of each element's size, in units of the gradient. 0 and below
            clip nothing.
        algorithm: ``"norm"`` scales all gradients by one factor, ``"value"`` cuts off each element. In any case.

    Raises:
        MisconfigurationException: The algorithm is unknown.
    """
    if clip_val <= 0:
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not _PLAIN.issuperset(map(type, parameters)) and algorithm in ("norm", "value"):
        from fulgur.optim.over_meshes import clip_norm, clip_value

        (clip_norm if algorithm == "norm" else clip_value)(parameters, clip_val)
    elif algorithm == "norm":
        clip_grad_norm_(parameters, clip_val, error_if_nonfinite=False)
    elif algorithm == "value":
        clip_grad_value_(parameters, clip_val)
    elif algorithm.lower() in ("norm", "value"):
        clip_gradients(optimizer, clip_val, algorithm.lower())
    else:
        raise MisconfigurationException(f"gradient_clip_algorithm={algorithm!r} is unknown. Use 'norm' or 'value'.")


def scale_gradients(optimizer: Optimizer, factor: float) -> None:
    """Multiply the gradients of an optimizer's parameters in place, in one kernel."""
    gradients = gradients_of(optimizer)
    if gradients:
        torch._foreach_mul_(gradients, factor)


def gradients_of(optimizer: Optimizer) -> list[Tensor]:
    """Gradients of an optimizer's parameters, where there are any; of what is spread over ranks, this one's part."""
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if _PLAIN.issuperset(map(type, gradients)):
        return gradients
    from fulgur.optim.over_meshes import local_parts

    return local_parts(gradients)
