"""What a precision is: the interface that the loops and the checkpoints know."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn


class Precision:
    """Number formats of weights, inputs and steps. Subclass to add one; what is not overridden leaves things alone.

    The methods from `forward_context` on have the names of Lightning. One that a subclass overrides takes part in the
    run; overriding none of them costs nothing.

    Attributes:
        name: The value of the Trainer argument that asks for it, for example ``"bf16-mixed"``.
        scaler: Scales the loss so that small gradients survive float16. None where that is not needed.
        input_dtype: What floating-point tensors of a batch are cast to before it is moved. None leaves them.
    """

    name: str = "32-true"
    scaler: torch.amp.GradScaler | None = None
    input_dtype: torch.dtype | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if isinstance(vars(cls).get("precision"), str):
            cls.name = vars(cls)["precision"]

    @property
    def precision(self) -> Any:
        """The older name of `name`."""
        return self.name

    @precision.setter
    def precision(self, name: str) -> None:
        self.name = name

    def convert_module(self, module: nn.Module) -> nn.Module:
        """Bring the weights into their format, in place; they stay in it after the run."""
        return module

    def step_context(self) -> AbstractContextManager[Any] | None:
        """A context for the ``*_step`` methods of a module; None where there is nothing to do.

        Ask once for each loop and enter it once for each step: it can be entered any number of times, one after
        another, but not within itself.
        """
        return None

    def init_context(self) -> AbstractContextManager[Any]:
        """A context in which a model is built with weights of the right format from the start."""
        return self.module_init_context() if self.has_own("module_init_context") else nullcontext()

    def has_own(self, name: str) -> bool:
        """Whether a subclass overrides the method `name`."""
        return getattr(type(self), name) is not getattr(Precision, name)

    def forward_context(self) -> AbstractContextManager[Any]:
        """A new context for one step."""
        return (None if type(self).step_context is Precision.step_context else self.step_context()) or nullcontext()

    def context_of_steps(self) -> AbstractContextManager[Any] | None:
        """`step_context`, or what makes a new `forward_context` for each step where that is overridden."""
        return _Anew(self.forward_context) if self.has_own("forward_context") else self.step_context()

    def module_init_context(self) -> AbstractContextManager[Any]:
        """A context in which a model is built."""
        return nullcontext() if type(self).init_context is Precision.init_context else self.init_context()

    def tensor_init_context(self) -> AbstractContextManager[Any]:
        """A context in which tensors are made."""
        return self.module_init_context()

    def convert_input(self, data: Any) -> Any:
        """A batch in the format of the inputs, before it is moved."""
        from fulgur.data.transfer import cast_floating

        return data if self.input_dtype is None else cast_floating(data, self.input_dtype)

    def convert_output(self, data: Any) -> Any:
        """What the forward pass of a module under `Fabric` returned, in the default format."""
        from fulgur.data.transfer import cast_floating

        return cast_floating(data, torch.get_default_dtype())

    def backward(self, tensor: torch.Tensor, model: Any, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """The backward pass of a loss, in the place of ``loss.backward()``."""
        tensor.backward(*args, **kwargs)

    def optimizer_step(self, optimizer: Any, model: Any, closure: Callable[[], Any], **kwargs: Any) -> Any:
        """One step; `closure` runs forward and backward pass, hooks and clipping, and returns the loss."""
        return optimizer.step(closure=closure, **kwargs)

    def clip_gradients(self, optimizer: Any, clip_val: float = 0.0, gradient_clip_algorithm: Any = "norm") -> None:
        """Clip the gradients of one optimizer; a limit of 0 leaves them alone."""
        from fulgur.optim.clip import clip_gradients

        algorithm = getattr(gradient_clip_algorithm, "value", gradient_clip_algorithm)
        clip_gradients(optimizer, clip_val=clip_val or 0.0, algorithm=algorithm or "norm")

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

    __slots__ = ("_previous", "dtype")

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._previous: list[torch.dtype] = []

    def __enter__(self) -> None:
        self._previous.append(torch.get_default_dtype())
        torch.set_default_dtype(self.dtype)

    def __exit__(self, *exception: object) -> None:
        torch.set_default_dtype(self._previous.pop())


class _Anew:
    """A context that can be entered again and again: each time a new one is made.

    Args:
        make: Makes a context that is entered once.
    """

    __slots__ = ("_entered", "_make")

    def __init__(self, make: Callable[[], AbstractContextManager[Any]]) -> None:
        self._make = make
        self._entered: AbstractContextManager[Any] = nullcontext()

    def __enter__(self) -> Any:
        self._entered = self._make()
        return self._entered.__enter__()

    def __exit__(self, *exception: Any) -> Any:
        return self._entered.__exit__(*exception)
