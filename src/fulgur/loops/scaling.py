"""The loss scale of 16-mixed, where several optimizers share it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class LossScaling:
    """Scales losses, and takes the scale off gradients once for each step of an optimizer.

    The scale changes in `update` only: until then it is what every gradient of the batch was made under, in whatever
    order backwards and steps come. An optimizer may step several times in between.

    Args:
        scaler: Holds the scale.
    """

    def __init__(self, scaler: torch.amp.GradScaler) -> None:
        self.scaler = scaler
        self._unscaled: set[int] = set()
        self._stepped: set[int] = set()

    def scale(self, loss: Tensor) -> Tensor:
        """`loss` times the scale."""
        return self.scaler.scale(loss)

    def unscale(self, optimizer: Any) -> None:
        """Take the scale off the gradients of `optimizer`, if that has not been done for its next step."""
        if id(optimizer) in self._unscaled:
            return
        if id(optimizer) in self._stepped:  # torch allows one step to an update: begin anew under the same scale
            device = optimizer.param_groups[0]["params"][0].device
            self.scaler.update(self.scaler.scale(torch.ones((), device=device)))
            self._stepped.clear()
        self.scaler.unscale_(optimizer)
        self._unscaled.add(id(optimizer))

    def step(self, optimizer: Any, **kwargs: Any) -> Any:
        """Step `optimizer`, unless its gradients are not finite."""
        result = self.scaler.step(optimizer, **kwargs)  # waits for the device
        self._unscaled.discard(id(optimizer))
        self._stepped.add(id(optimizer))
        return result

    def update(self) -> None:
        """Adapt the scale to the steps since the last update; does nothing if there was none."""
        if self._stepped:
            self.scaler.update()
            self._stepped.clear()
            self._unscaled.clear()
