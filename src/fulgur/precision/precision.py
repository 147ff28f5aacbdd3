"""What a precision is: the interface that the loops and the checkpoints know."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn


class Precision(ABC):
    """Number formats of weights, inputs and steps.

    Attributes:
        name: The value of the Trainer argument that asks for it, for example ``"bf16-mixed"``.
        scaler: Scales the loss so that small gradients survive float16. None where that is not needed.
        input_dtype: What floating-point tensors of a batch are cast to before it is moved. None leaves them.
    """

    name: str
    scaler: torch.amp.GradScaler | None = None
    input_dtype: torch.dtype | None = None

    @abstractmethod
    def convert_module(self, module: nn.Module) -> nn.Module:
        """Bring the weights into their format, in place; they stay in it after the run."""

    @abstractmethod
    def step_context(self) -> AbstractContextManager[Any] | None:
        """A context for the ``*_step`` methods of a module; None where there is nothing to do.

        Ask once for each loop and enter it once for each step: it can be entered any number of times, one after
        another, but not within itself.
        """

    @abstractmethod
    def init_context(self) -> AbstractContextManager[Any]:
        """A context in which a model is built with weights of the right format from the start."""

    def state_dict(self) -> dict[str, Any]:
        """State to store in a checkpoint. An empty dict is not stored."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""


class DefaultDtype:
    """Context in which new floating-point tensors have another dtype by default. Can be entered within itself.

    Args:
        dtype: A floating-point dtype.
    """

    __slots__ = ("_dtype", "_previous")

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._previous: list[torch.dtype] = []

    def __enter__(self) -> None:
        self._previous.append(torch.get_default_dtype())
        torch.set_default_dtype(self._dtype)

    def __exit__(self, *exception: object) -> None:
        torch.set_default_dtype(self._previous.pop())
