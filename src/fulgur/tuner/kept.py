"""What a trial changes and a run must not notice: taken before, put back to the same bits after it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

_SCALARS = (type(None), bool, int, float, complex, str, bytes)


class Kept:
    """Values as they were: tensors by their bits, containers by what they hold, everything else by reference.

    Objects stay the same ones: `restore` fills them again, so that whoever holds them sees what was there. Copies of
    tensors lie in host memory, so that an accelerator has as much of its own left as without them.
    """

    def __init__(self) -> None:
        self._seen: dict[int, Any] = {}  # the objects too, for their addresses stand for them
        self._undo: list[Callable[[], Any]] = []

    def restore(self) -> None:
        """Put everything back."""
        with torch.no_grad():
            for undo in self._undo:
                undo()

    def keep(self, value: Any) -> None:
        """Keep a tensor, or a container with all that it holds; anything else has nothing to keep."""
        if isinstance(value, _SCALARS) or id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if isinstance(value, Tensor):
            self._keep_tensor(value)
        elif isinstance(value, dict):
            self._keep_items(value, dict(value), value.values())
        elif isinstance(value, (list, deque)):
            self._undo.append(_refill(value, value.extend, list(value)))
            self._keep_all(value)
        elif isinstance(value, set):
            self._undo.append(_refill(value, value.update, set(value)))
        elif isinstance(value, tuple):
            self._keep_all(value)

    def keep_attributes(self, owner: Any, *, drops_all: bool = False) -> None:
        """Keep the attributes of `owner`; those that it has not yet are taken away again.

        Args:
            owner: Any object with a ``__dict__``.
            drops_all: Whether attributes with a leading underscore are, too.
        """
        attributes, known = vars(owner), dict(vars(owner))

        def undo() -> None:
            for name in [name for name in attributes if name not in known]:
                if drops_all or not name.startswith("_"):
                    del attributes[name]
            attributes.update(known)

        self._undo.append(undo)
        self._keep_all(known.values())

    def keep_module(self, module: nn.Module, *, drops_all: bool = False) -> None:
        """Keep parameters, buffers, gradients, modes, and what the modules have for attributes."""
        for part in list(module.modules()):
            self.keep_attributes(part, drops_all=drops_all)

    def keep_optimizer(self, optimizer: Any) -> None:
        """Keep its state and its groups, with what it has for attributes."""
        self.keep_attributes(optimizer)

    def _keep_all(self, values: Iterable[Any]) -> None:
        for value in values:
            self.keep(value)

    def _keep_items(self, target: dict[Any, Any], items: dict[Any, Any], values: Iterable[Any]) -> None:
        self._undo.append(_refill(target, target.update, items))
        self._keep_all(values)

    def _keep_tensor(self, tensor: Tensor) -> None:
        if isinstance(tensor, nn.Parameter):
            needed, gradient = tensor.requires_grad, tensor.grad
            self._undo.append(lambda: _restore_parameter(tensor, needed, gradient))
        if tensor.grad_fn is not None or tensor.is_meta or tensor.is_inference() or is_lazy(tensor):
            return
        copy = _own(tensor).to("cpu", copy=True)  # waits for the device
        self._undo.append(lambda: _restore_tensor(tensor, copy))


def _own(tensor: Tensor) -> Tensor:
    """The part of `tensor` that this rank holds."""
    tensor = tensor.detach()
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _refill(target: Any, fill: Callable[[Any], Any], items: Any) -> Callable[[], None]:
    def undo() -> None:
        target.clear()
        fill(items)

    return undo


def _restore_parameter(parameter: nn.Parameter, needed: bool, gradient: Tensor | None) -> None:
    parameter.requires_grad_(needed)
    parameter.grad = gradient if gradient is None or gradient.device == parameter.device else None


def _restore_tensor(tensor: Tensor, copy: Tensor) -> None:
    own = _own(tensor)
    if own.shape == copy.shape:
        own.copy_(copy)
    else:
        tensor.data = copy.to(tensor.device)
