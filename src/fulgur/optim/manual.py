"""What `self.optimizers()` hands out under manual optimization."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from operator import attrgetter
from typing import Any, ClassVar

from torch.optim import Optimizer

from fulgur.errors import MisconfigurationException
from fulgur.optim.toggle import toggle_parameters, untoggle_parameters

RunStep = Callable[[Callable[[], Any] | None, dict[str, Any]], Any]
"""Takes a closure or None, and keyword arguments; runs the optimizer's step as the loop wants it."""

_CLASSES: dict[tuple[type, type], type] = {}
"""Wrapper classes made so far, by the class of the wrapper asked for and the class of the optimizer."""

_OWN = frozenset({"_optimizer", "_run_step", "_optimizers", "_no_sync", "step"})


def _plain_step(optimizer: Any, closure: Callable[[], Any] | None, kwargs: dict[str, Any]) -> Any:
    return optimizer.step(**kwargs) if closure is None else optimizer.step(closure, **kwargs)


class LightningOptimizer:
    """An optimizer whose `step` goes through the loop: precision, hooks and counters included.

    Its class is also a subclass of the wrapped optimizer's class, so ``isinstance(wrapper, torch.optim.Adam)`` tells
    about the optimizer within. Everything but `step` is read from, and set on, the wrapped optimizer.

    Args:
        optimizer: Optimizer to wrap. Until a loop calls `bind`, `step` is its own step.

    Example:
        >>> import torch
        >>> wrapper = LightningOptimizer(torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1))
        >>> type(wrapper).__name__, isinstance(wrapper, torch.optim.SGD)
        ('LightningSGD', True)
    """

    _prefix: ClassVar[str] = "Lightning"
    _optimizer: Any
    _run_step: RunStep
    _optimizers: Sequence[Any]
    _no_sync: Callable[[], AbstractContextManager[Any]]

    def __new__(cls, optimizer: Any) -> LightningOptimizer:
        """Build an instance of the subclass that belongs to `optimizer`'s class."""
        return object.__new__(_wrapper_class(cls, type(optimizer)))

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        self._run_step = partial(_plain_step, optimizer)
        self._optimizers = (optimizer,)
        self._no_sync = nullcontext

    @property
    def optimizer(self) -> Any:
        """The wrapped optimizer."""
        return self._optimizer

    def bind(
        self,
        run_step: RunStep,
        *,
        optimizers: Sequence[Any],
        no_sync: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        """Connect to a loop.

        Args:
            run_step: What `step` calls.
            optimizers: All optimizers of the module, for `toggle_model`.
            no_sync: Makes a context in which gradients are not exchanged between processes.
        """
        self._run_step = run_step
        self._optimizers = optimizers
        self._no_sync = no_sync

    def step(self, closure: Callable[[], Any] | None = None, **kwargs: Any) -> Any:
        """Run one step of the wrapped optimizer, with what precision and hooks ask for around it.

        Args:
            closure: Computes the loss and its gradients; called under the gradient mode of the caller.
            **kwargs: Further arguments of the optimizer's own `step`.

        Returns:
            What the optimizer's `step` returned.

        Raises:
            MisconfigurationException: `closure` cannot be called.
        """
        if closure is not None and not callable(closure):
            raise MisconfigurationException(
                f"step(closure={closure!r}): a closure is a function without arguments that computes the loss. "
                "Pass one, or nothing."
            )
        return self._run_step(closure, kwargs)

    @contextmanager
    def toggle_model(self, sync_grad: bool = True) -> Iterator[None]:
        """Let only this optimizer's parameters require gradients inside.

        Args:
            sync_grad: False also keeps gradients from being exchanged between processes, for all but the last
                backward of an accumulation window.
        """
        state = toggle_parameters(self._optimizer, self._optimizers)
        try:
            with nullcontext() if sync_grad else self._no_sync():
                yield
        finally:
            untoggle_parameters(state)

    def __getattr__(self, name: str) -> Any:
        if name == "_optimizer":  # not there yet: a copy is being made
            raise AttributeError(name)
        return getattr(self._optimizer, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OWN:
            object.__setattr__(self, name, value)
        else:
            setattr(self._optimizer, name, value)

    def __repr__(self) -> str:
        return f"{self._prefix}{self._optimizer!r}"

    def __reduce__(self) -> tuple[type[LightningOptimizer], tuple[Any]]:
        return LightningOptimizer, (self._optimizer,)

    # A copy is made by __reduce__; these keep the wrapped class's own versions from being found instead.
    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        del state


def _wrapper_class(base: type[LightningOptimizer], optimizer_class: type) -> type:
    """The class of wrappers for `optimizer_class`: a subclass of both.

    Everything the optimizer's class defines is forwarded. Inherited methods would run with the wrapper as `self`, and
    what they assign would be lost on the wrapper.
    """
    if (base, optimizer_class) in _CLASSES:
        return _CLASSES[base, optimizer_class]
    names = {name for name in dir(optimizer_class) if not name.startswith("__") and name not in dir(LightningOptimizer)}
    namespace = {name: property(attrgetter(f"_optimizer.{name}")) for name in names}  # without a Python call
    parents = (base, optimizer_class) if issubclass(optimizer_class, Optimizer) else (base,)
    made = type(f"{base._prefix}{optimizer_class.__name__}", parents, {"__module__": __name__, **namespace})
    _CLASSES[base, optimizer_class] = made
    return made
