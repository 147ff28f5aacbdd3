"""Norms of gradients, and a callback that logs them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fulgur.hooks import Callback

if TYPE_CHECKING:
    from fulgur.module import LightningModule
    from fulgur.trainer import Trainer


def grad_norm(module: nn.Module, norm_type: float | int | str, group_separator: str = "/") -> dict[str, Tensor]:
    """Norm of the gradient of each parameter, and of all of them together. Does not wait for the device.

    Args:
        module: Whose parameters; those without a gradient are left out.
        norm_type: Order of the norm. > 0; ``"inf"`` takes the largest element.
        group_separator: Between the norm's name and the parameter's.

    Returns:
        ``grad_{norm_type}_norm/{name}`` for each parameter and ``grad_{norm_type}_norm_total``, each of shape (). Empty
        where there is no gradient.

    Raises:
        ValueError: `norm_type` is not positive.
    """
    order = float(norm_type)
    if not order > 0:
        raise ValueError(f"norm_type={norm_type!r} is no order of a norm. Use a positive number or 'inf'.")
    found = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    prefix = f"grad_{order}_norm{group_separator}"
    norms = {f"{prefix}{name}": torch.linalg.vector_norm(grad, order) for name, grad in found.items()}
    if norms:
        norms[f"grad_{order}_norm_total"] = torch.linalg.vector_norm(torch.stack(list(norms.values())), order)
    return norms


class GradNormLogger(Callback):
    """Log `grad_norm` of the module at the steps for which loggers get values: ``track_grad_norm`` of 1.x.

    Gradients are those of the step: unscaled and not yet clipped.

    Args:
        norm_type: Order of the norm.
    """

    def __init__(self, norm_type: float) -> None:
        self.norm_type = norm_type

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if trainer.is_logging_step:
            pl_module.log_dict(grad_norm(pl_module, self.norm_type))
