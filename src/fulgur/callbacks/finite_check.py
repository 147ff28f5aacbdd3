"""Stop a fit when something is no longer finite."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fulgur.hooks import Callback

if TYPE_CHECKING:
    from fulgur.module import LightningModule
    from fulgur.trainer import Trainer


class FiniteCheck(Callback):
    """Raise an error at the first loss or parameter that is NaN or infinite: ``Trainer(terminate_on_nan=True)`` of 1.x.

    Looks before every backward, so that the weights of before are not updated, and at the end of each epoch, before a
    checkpoint is saved. Waits for the device each time: to find where a NaN comes from, not to train with.

    Raises:
        ValueError: The loss or a parameter is not finite; the message names each of them.
    """

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        _require_finite({"loss": loss.detach()} | _parameters(pl_module), trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _require_finite(_parameters(pl_module), trainer)


def _parameters(module: LightningModule) -> dict[str, Tensor]:
    return {f"parameter {name!r}": parameter.detach() for name, parameter in module.named_parameters()}


def _require_finite(values: dict[str, Tensor], trainer: Trainer) -> None:
    if not values:
        return
    device = next(iter(values.values())).device
    finite = torch.stack([value.isfinite().all().to(device) for value in values.values()])
    if bool(finite.all()):  # waits for the device
        return
    found = [name for name, is_finite in zip(values, finite.tolist(), strict=True) if not is_finite]
    at = f"epoch {trainer.current_epoch}, global step {trainer.global_step}"
    raise ValueError(
        f"terminate_on_nan=True: NaN or infinite at {at}: {_described(found, values)}. Look for a division by zero, "
        "the logarithm of zero or a learning rate that is too high; Trainer(detect_anomaly=True) finds the operation."
    )


def _described(found: list[str], values: dict[str, Tensor]) -> str:
    shown = [f"{name} = {float(values[name])}" if values[name].numel() == 1 else name for name in found[:5]]
    return ", ".join(shown) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
