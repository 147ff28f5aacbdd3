"""What `Fabric.setup` hands out: a module, an optimizer and a loader that stand for the user's own.

A step of a loop costs one Python call for each of: batch, forward pass, backward pass, optimizer's step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn

from fulgur.data.loaders import epoch_samplers
from fulgur.data.transfer import cast_floating, mover
from fulgur.data.workers import begin_pass
from fulgur.optim.manual import LightningOptimizer
from fulgur.precision.precision import DefaultDtype, Precision
from fulgur.strategies.strategy import Strategy

_STEPS = ("training_step", "validation_step", "test_step", "predict_step")
_set_default_dtype = getattr(torch._C, "_set_default_dtype", torch.set_default_dtype)
_OWN = frozenset(
    {
        *("_original_module", "_forward_module", "_strategy", "_precision"),
        *("_call", "_methods", "_context", "_dtype", "_converts", "_no_sync", "_is_routed"),
    }
)


class _FabricModule(nn.Module):
    """Stands for a module that was set up: its forward pass runs under precision, and synchronises gradients.

    It has the parameters, buffers, children, hooks and attributes of the module, under their own names.

    Args:
        original: The user's module.
        wrapped: What the strategy made of it.
        strategy: Routes calls, and keeps gradients from being synchronised.
        precision: Casts inputs and outputs.
        compiler: Makes a compiled callable of one; None where nothing is compiled.
    """

    def __init__(
        self,
        original: nn.Module,
        wrapped: nn.Module,
        *,
        strategy: Strategy,
        precision: Precision,
        compiler: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__()
        shared = {name: value for name, value in vars(original).items() if name in self.__dict__ and name != "training"}
        self.__dict__.update(shared)  # the same dicts, so that everything that nn.Module does is done to the original
        del self.__dict__["training"]
        self._original_module, self._forward_module = original, wrapped
        self._strategy, self._precision = strategy, precision
        self._context = precision.context_of_steps()
        self._dtype = self._context.dtype if isinstance(self._context, DefaultDtype) else None
        self._converts = precision.has_own("convert_input") or precision.has_own("convert_output")
        routed = strategy.route(wrapped)
        self._is_routed = wrapped is not original or routed is not wrapped
        self._call = routed if compiler is None else strategy.route_compiled(wrapped, compiler(wrapped))
        self._no_sync = strategy.no_sync_of(wrapped)
        self._methods: dict[str, Callable[..., Any]] = {}
        for name in _STEPS:
            if callable(getattr(original, name, None)):
                self.mark_forward_method(name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The forward pass."""
        if self._converts:
            return self._run(self._call, args, kwargs)
        if self._context is None:
            return self._call(*args, **kwargs)
        if self._dtype is None:
            with self._context:
                outputs = self._call(*args, **kwargs)
            return cast_floating(outputs, torch.get_default_dtype())
        usual = torch.get_default_dtype()
        _set_default_dtype(self._dtype)  # what `_run` does, in one call instead of five
        try:
            kwargs = cast_floating(kwargs, self._dtype) if kwargs else kwargs
            outputs = self._call(*cast_floating(args, self._dtype), **kwargs)
        finally:
            _set_default_dtype(usual)
        if type(outputs) is torch.Tensor:
            return outputs.to(usual) if outputs.is_floating_point() else outputs
        return cast_floating(outputs, usual)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The forward pass."""
        return self(*args, **kwargs)

    def _run(self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        precision = self._precision
        args, kwargs = precision.convert_input(args), precision.convert_input(kwargs) if kwargs else kwargs
        with self._context or nullcontext():
            outputs = call(*args, **kwargs)
        return precision.convert_output(outputs)

    @property
    def module(self) -> nn.Module:
        """The user's module."""
        return self._original_module

    def mark_forward_method(self, method: str | Callable[..., Any]) -> None:
        """Let another method than ``forward`` be called as the forward pass: under precision, with gradients in sync.

        Args:
            method: It, or its name.

        Raises:
            ValueError: It is ``forward``, which needs no mark.
            AttributeError: The module has no such method.
        """
        name = method if isinstance(method, str) else method.__name__
        if name == "forward":
            raise ValueError("mark_forward_method('forward'): forward is one already. Leave it out.")
        found = getattr(self._original_module, name, None)
        if not callable(found):
            kind = type(self._original_module).__name__
            raise AttributeError(f"mark_forward_method({name!r}): {kind} has no method of this name.")
        routed = self._strategy.route(self._forward_module, found)
        is_plain = self._context is None and not self._converts
        self._methods[name] = routed if is_plain else partial(self._run_method, routed)

    def _run_method(self, method: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        return self._run(method, args, kwargs)

    # ---------------------------------------------------------------------------------------- standing for a module

    def train(self, mode: bool = True) -> _FabricModule:
        self._original_module.train(mode)
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self._original_module.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self._original_module.load_state_dict(*args, **kwargs)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> _FabricModule:
        self._original_module._apply(fn, recurse)
        return self

    def __getattr__(self, name: str) -> Any:
        if name in _OWN:  # not there yet: a copy is being made
            raise AttributeError(name)
        if name in self._methods:
            return self._methods[name]
        value = getattr(self._original_module, name)
        if self._is_routed and getattr(value, "__self__", None) is self._original_module:
            return partial(_call_unmarked, self._original_module, name, value)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OWN:
            object.__setattr__(self, name, value)
        else:
            setattr(self._original_module, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._original_module, name)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._original_module!r})"


def _call_unmarked(original: nn.Module, name: str, method: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call `method` unless it runs the module where gradients would be lost: around the wrapper that reduces them."""
    if not torch.is_grad_enabled():
        return method(*args, **kwargs)
    inside = set(original.modules())

    def refuse(module: nn.Module, inputs: Any) -> None:
        if module in inside and torch.is_grad_enabled():
            raise RuntimeError(
                f"{type(original).__name__}.{name} runs the module past the strategy, and its gradients would not be "
                f"synchronised. Call model.mark_forward_method({name!r}) after fabric.setup."
            )

    with _forward_watched(refuse):
        return method(*args, **kwargs)


@contextmanager
def _forward_watched(hook: Callable[..., None]) -> Iterator[None]:
    handle = nn.modules.module.register_module_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


class _FabricOptimizer(LightningOptimizer):
    """Stands for an optimizer that was set up: `step` takes the scale off gradients, and tells the callbacks.

    It is also an instance of the optimizer's class. Everything but `step` is read from, and set on, the optimizer.

    Args:
        optimizer: The user's optimizer.
        run_step: Takes a closure or None, and keyword arguments; None for the optimizer's own step.
    """

    _prefix = "Fabric"

    def __init__(self, optimizer: Any, run_step: Callable[..., Any] | None = None) -> None:
        super().__init__(optimizer)
        self._run_step = run_step  # type: ignore[assignment]

    def __new__(cls, optimizer: Any, run_step: Callable[..., Any] | None = None) -> _FabricOptimizer:
        """Build an instance of the subclass that belongs to `optimizer`'s class."""
        made = super().__new__(cls, optimizer)
        assert isinstance(made, _FabricOptimizer)
        return made

    def step(self, closure: Callable[[], Any] | None = None, **kwargs: Any) -> Any:
        """Run one step of the optimizer.

        Args:
            closure: Computes the loss and its gradients.
            **kwargs: Further arguments of the optimizer's own `step`.

        Returns:
            What the optimizer's `step` returned.
        """
        if self._run_step is not None:
            return self._run_step(closure, kwargs)
        return self._optimizer.step(**kwargs) if closure is None else self._optimizer.step(closure, **kwargs)

    def __reduce__(self) -> tuple[type[LightningOptimizer], tuple[Any, ...]]:
        return _FabricOptimizer, (self._optimizer, self._run_step)


class _FabricDataLoader:
    """Stands for a loader that was set up: its batches are on the device, and its samplers know the pass.

    Args:
        dataloader: What gives batches.
        device: Where they go; None leaves them where they are.
    """

    def __init__(self, dataloader: Any, device: torch.device | None = None) -> None:
        self._dataloader, self._device = dataloader, device
        self._move = None if device is None else mover(device)
        self._samplers = epoch_samplers(dataloader)
        self._n_passes: int = 0
        self._epoch: int | None = None

    @property
    def device(self) -> torch.device | None:
        """Where batches go; None where they are left alone."""
        return self._device

    def __len__(self) -> int:
        return len(self._dataloader)

    def __iter__(self) -> Iterator[Any]:
        self._set_epoch()
        batches = begin_pass(self._dataloader)
        return batches if self._move is None else map(self._move, batches)  # no call of ours for a batch but `_move`

    def _set_epoch(self) -> None:
        """Let samplers draw another order in each pass; one that the program has set itself is gone on from."""
        for sampler in self._samplers[:1]:
            found = getattr(sampler, "epoch", None)
            if isinstance(found, int) and found != (self._epoch or 0):
                self._n_passes = found
        for sampler in self._samplers:
            sampler.set_epoch(self._n_passes)
        self._epoch = self._n_passes
        self._n_passes += 1

    def __getattr__(self, name: str) -> Any:
        if name == "_dataloader":  # not there yet: a copy is being made
            raise AttributeError(name)
        return getattr(self._dataloader, name)


def is_wrapped(obj: object) -> bool:
    """Whether `obj` is a module, optimizer or loader that `Fabric` has handed out."""
    return isinstance(unwrap_compiled(obj), (_FabricModule, _FabricOptimizer, _FabricDataLoader))


def unwrap_compiled(obj: Any) -> Any:
    """The module that `torch.compile` was called with; anything else as it is."""
    return getattr(obj, "_orig_mod", obj) if type(obj).__name__ == "OptimizedModule" else obj


def unwrap(obj: Any) -> Any:
    """What the user has given for `obj`."""
    obj = unwrap_compiled(obj)
    if isinstance(obj, _FabricModule):
        return obj.module
    if isinstance(obj, _FabricOptimizer):
        return obj.optimizer
    return obj._dataloader if isinstance(obj, _FabricDataLoader) else obj


def unwrap_nested(data: Any) -> Any:
    """`data` with what the user has given for each wrapper in its lists, tuples and dicts."""
    if isinstance(data, Mapping):
        return {key: unwrap_nested(value) for key, value in data.items()}
    if type(data) in (list, tuple):
        return type(data)(map(unwrap_nested, data))
    return unwrap(data)


def no_sync_of(model: Any) -> AbstractContextManager[Any]:
    """A context in which backward passes of `model` do not reduce gradients.

    Raises:
        TypeError: `model` was not set up.
    """
    model = unwrap_compiled(model)
    if not isinstance(model, _FabricModule):
        raise TypeError(
            f"no_backward_sync got a {type(model).__name__}, which fabric.setup has not returned. Pass what it did."
        )
    context: AbstractContextManager[Any] = model._no_sync()
    return context


def replace_parameters(before: dict[int, str], module: nn.Module, optimizers: Iterable[Any]) -> None:
    """Give optimizers the parameters that the strategy has put in the place of those that they were built with.

    Args:
        before: Name of each parameter, by its id, as they were.
        module: With the new ones.
        optimizers: Changed in place.

    Raises:
        ValueError: An optimizer has a state already, which belongs to a parameter that is gone.
    """
    now = dict(module.named_parameters(remove_duplicate=False))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for index, parameter in enumerate(group["params"]):
                new = now.get(before.get(id(parameter), ""), parameter)
                if new is parameter:
                    continue
                if parameter in optimizer.state:
                    raise ValueError(
                        f"The {type(optimizer).__name__} has taken steps already, and the strategy cuts the parameters "
                        "of its state into parts. Set it up before, and load its state with fabric.load."
                    )
                group["params"][index] = new
