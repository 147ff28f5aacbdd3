"""Hooks: who gets called at each point of a loop, decided once and stored as flat tuples.

A hook costs nothing unless someone overrides it. `collect` looks at every listener once, keeps the methods that
differ from the base class, binds their leading arguments, and stores them in call order. The loops then run
``for hook in hooks.on_train_batch_end: hook(...)`` with no lookup in between.

Adding a hook takes three lines: a method on `Callback`, a field on `Hooks`, a call in the loop.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from fulgur.errors import PossibleUserWarning
from fulgur.rank import rank_zero_warn

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from fulgur.module import LightningModule
    from fulgur.trainer import Trainer

Calls = tuple[Callable[..., Any], ...]
Hook = TypeVar("Hook", bound=Callable[..., Any])


class Callback:
    """Listener for the events of a run. Override what you need; what you leave alone is never called.

    Callbacks run in the order in which they were given, before the module's hook of the same name. A callback may
    keep state: what `state_dict` returns is stored in checkpoints under `state_key`.

    Attributes:
        is_monitor: True makes `on_train_batch_end`, `on_train_epoch_end` and `on_validation_end` run after the
            module's own: the callback reads what the module logs there, and a checkpoint it saves holds what the
            module did there (`EarlyStopping`, `ModelCheckpoint`).

    Example:
        >>> class Announce(Callback):
        ...     def on_train_end(self, trainer, pl_module):
        ...         print("done after", trainer.global_step, "steps")
    """

    is_monitor: bool = False

    @property
    def state_key(self) -> str:
        """Key of this callback's state in a checkpoint. Callbacks with state need distinct keys."""
        return type(self).__qualname__

    def _generate_state_key(self, **kwargs: Any) -> str:
        """A state key that tells instances with different arguments apart: class name and ``repr(kwargs)``."""
        return f"{type(self).__qualname__}{kwargs!r}"

    def state_dict(self) -> dict[str, Any]:
        """State to store in a checkpoint: plain data and tensors. An empty dict is not stored."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` returned; a copy, free to keep."""

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Before a full checkpoint is written, after its keys are filled. Change `checkpoint` in place."""

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """After the module's weights are loaded, before callback states are."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """First hook of every entry point, after the datamodule's `setup` and before the module's."""

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Last hook of every entry point; also after an exception."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """When an exception, KeyboardInterrupt included, ends the run."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """When fit begins: model on its device, optimizers built, nothing restored but weights and callbacks."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """When fit ends, after the model has left the device."""

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the check of the validation code that precedes training."""

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After the check of the validation code that precedes training."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Once, before the first epoch."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Once, after the last epoch."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the first batch of an epoch; not repeated when an epoch is resumed midway."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After the last batch and the validation of an epoch."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Before the forward pass, with the batch on the device."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After the optimizer step, if this batch had one. `outputs` is what `training_step` returned, detached."""

    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Before gradients are cleared, on the first batch of an accumulation window."""

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Before backward, with the loss divided by the window's length and scaled under 16-mixed."""

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After backward, before gradients are unscaled."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """With final, unscaled, unclipped gradients."""

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before a validation run, in fit too."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After a validation run, with its metrics final in `trainer.callback_metrics`."""

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the first validation batch."""

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After the last validation batch; may still log."""

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Before `validation_step`."""

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """After `validation_step`; `outputs` is what it returned."""

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before a test run."""

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After a test run, with its metrics final in `trainer.callback_metrics`."""

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the first test batch."""

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After the last test batch; may still log."""

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Before `test_step`."""

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """After `test_step`; `outputs` is what it returned."""

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before a predict run."""

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After a predict run."""

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the first predict batch."""

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After the last predict batch."""

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Before `predict_step`."""

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """After `predict_step`; `outputs` is what it returned."""


@dataclass(slots=True)
class EvalHooks:
    """Hooks of one evaluation stage (validation, test or predict), in call order."""

    start: Calls = ()
    end: Calls = ()
    epoch_start: Calls = ()
    epoch_end: Calls = ()
    batch_start: Calls = ()
    batch_end: Calls = ()


@dataclass(slots=True)
class Hooks:
    """Bound methods per hook, in call order: callbacks in the order given, then the module.

    Attributes:
        on_train_batch_end_monitors, on_train_epoch_end_monitors: The callbacks with `is_monitor`, which run after the
            module and after values have gone to the loggers: a checkpoint they save holds all that was done.
        module_batch_start: The module's own ``on_train_batch_start``, kept apart because it alone may return -1
            to end the epoch. Empty unless overridden.
    """

    on_fit_start: Calls = ()
    on_fit_end: Calls = ()
    on_sanity_check_start: Calls = ()
    on_sanity_check_end: Calls = ()
    on_train_start: Calls = ()
    on_train_end: Calls = ()
    on_train_epoch_start: Calls = ()
    on_train_epoch_end: Calls = ()
    on_train_epoch_end_monitors: Calls = ()
    on_train_batch_start: Calls = ()
    module_batch_start: Calls = ()
    on_train_batch_end: Calls = ()
    on_train_batch_end_monitors: Calls = ()
    on_before_zero_grad: Calls = ()
    on_before_backward: Calls = ()
    on_after_backward: Calls = ()
    on_before_optimizer_step: Calls = ()


# 1.x hooks that ran just before a hook that is still there. They take no arguments of their own.
_EARLIER_NAMES = {
    "on_fit_start": ((), ("on_pretrain_routine_start", "on_pretrain_routine_end")),
    "on_train_epoch_start": (("on_epoch_start",), ()),
    "on_train_epoch_end": (("on_epoch_end",), ()),
    "on_train_batch_start": (("on_batch_start",), ()),
    "on_train_batch_end": (("on_batch_end",), ()),
}


# 1.x hooks of callbacks that belong to no hook of today.
_CALLED_ELSEWHERE = ("on_init_start", "on_init_end", "on_keyboard_interrupt")


def nearest_own(owner: object, name: str, base: type) -> str:
    """A clause that names what `owner` defines beyond `base` and perhaps meant as `name`; empty if there is nothing."""
    others = [other for other in _own_names(owner, base) if other != name]
    found = get_close_matches(name, others, n=1, cutoff=0.75)
    return f" It has {found[0]}: rename that?" if found else ""


def warn_of_slips(owner: object, base: type) -> None:
    """Say which methods of `owner` are all but named like a hook: nobody calls them.

    Args:
        owner: A module, datamodule or callback.
        base: The class that tells which hooks there are.
    """
    earlier = [name for before, after in _EARLIER_NAMES.values() for name in (*before, *after)]
    known = [*(name for name in dir(base) if name.startswith("on_")), *earlier, *_CALLED_ELSEWHERE]
    for name in _own_names(owner, base):
        if not name.startswith("on_") or name in known:
            continue
        usual = name.replace("_training_", "_train_").replace("_val_", "_validation_").replace("_begin", "_start")
        nearest = [usual] if usual in known else get_close_matches(name, known, n=1, cutoff=0.92)
        if nearest:
            rank_zero_warn(
                f"{type(owner).__name__} defines {name}, which is no hook and never called. Did you mean {nearest[0]}?",
                PossibleUserWarning,
            )


def _own_names(owner: object, base: type) -> list[str]:
    return [name for kind in type(owner).__mro__ if kind not in base.__mro__ for name in vars(kind)]


def collect(callbacks: Iterable[Callback], module: Any, trainer: Any, module_base: type) -> Hooks:
    """Resolve every training hook once."""
    hooks = Hooks()
    listeners = tuple(callbacks)
    for field in fields(Hooks):
        name = field.name
        if name.endswith("_monitors") or name == "module_batch_start":
            continue
        before, after = _EARLIER_NAMES.get(name, ((), ()))
        found = _earlier(before, listeners, module, trainer)
        if name in ("on_train_batch_end", "on_train_epoch_end"):
            monitors = _of_callbacks(name, [c for c in listeners if c.is_monitor], module, trainer)
            setattr(hooks, f"{name}_monitors", tuple(monitors))
            found += _of_callbacks(name, [c for c in listeners if not c.is_monitor], module, trainer)
        else:
            found += _of_callbacks(name, listeners, module, trainer)
        if overrides(module, name, module_base):
            own = _adapted(getattr(module, name), name, trainer)
            if name == "on_train_batch_start":
                hooks.module_batch_start = (own,)
            else:
                found.append(own)
        found += _earlier(after, listeners, module, trainer)
        setattr(hooks, name, tuple(found))
    return hooks


def collect_stage(
    stage: str,
    callbacks: Iterable[Callback],
    module: Any,
    trainer: Any,
    module_base: type,
    *,
    passes_loader_idx: bool = False,
) -> EvalHooks:
    """Resolve the hooks of ``"validation"``, ``"test"`` or ``"predict"`` once.

    Raises:
        RuntimeError: `passes_loader_idx`, and a hook of a batch has no place for a ``dataloader_idx``.
    """
    hooks = EvalHooks()
    listeners = tuple(callbacks)
    for field in fields(EvalHooks):
        name = f"on_{stage}_{field.name}"
        last = [c for c in listeners if c.is_monitor and field.name == "end"]
        found = _of_callbacks(name, [c for c in listeners if c not in last], module, trainer)
        if overrides(module, name, module_base):
            found.append(_adapted(getattr(module, name), name, trainer))
        found += _of_callbacks(name, last, module, trainer)
        if passes_loader_idx and field.name in ("batch_start", "batch_end"):
            for hook in found:
                _check_takes_loader_idx(name, hook)
        setattr(hooks, field.name, tuple(found))
    return hooks


def ignores_outputs(hook: Hook) -> Hook:
    """Mark an ``on_train_batch_end`` that never looks at `outputs`: they are not made for its sake, and may be None."""
    hook.ignores_outputs = True  # type: ignore[attr-defined]
    return hook


def reads_outputs(hooks: Hooks) -> bool:
    """Whether someone who listens to the end of a training batch may look at its outputs."""
    calls = hooks.on_train_batch_end + hooks.on_train_batch_end_monitors
    return any(not getattr(getattr(call, "func", call), "ignores_outputs", False) for call in calls)


def overrides(listener: object, name: str, base: type) -> bool:
    """Whether `listener` defines `name` itself, on its class or on the instance.

    A wrapper that only re-wraps the base method (`functools.wraps`) does not count, nor does None.
    """
    own = getattr(listener, "__dict__", {})
    if name in own:
        return own[name] is not None
    method: Any = getattr(type(listener), name, None)
    if method is None:
        return False
    while hasattr(method, "__wrapped__"):
        method = method.__wrapped__
    return method is not getattr(base, name, None)


def _of_callbacks(name: str, callbacks: Iterable[Callback], module: Any, trainer: Any) -> list[Callable[..., Any]]:
    own = [getattr(c, name) for c in callbacks if overrides(c, name, Callback)]
    return [partial(_adapted(hook, name, trainer), trainer, module) for hook in own]


def _earlier(
    names: tuple[str, ...], callbacks: tuple[Callback, ...], module: Any, trainer: Any
) -> list[Callable[..., Any]]:
    """Hooks of 1.x under `names`, made to ignore the arguments of the hook they now run beside."""
    found: list[Callable[..., Any]] = []
    for name in names:
        found += earlier_hooks(name, callbacks, trainer, module)
        if hasattr(module, name) and _needs_nothing(getattr(module, name)):
            found.append(getattr(module, name))
    return [_ignoring_arguments(hook) for hook in found]


def earlier_hooks(name: str, callbacks: Iterable[Callback], *args: Any) -> list[Callable[[], Any]]:
    """The hook `name` of 1.x of each callback that has it, with its arguments bound."""
    return [partial(getattr(callback, name), *args) for callback in callbacks if hasattr(callback, name)]


def _needs_nothing(method: Callable[..., Any]) -> bool:
    """Whether it can be called as a hook of 1.x is; else it is a method of the program's own under that name."""
    try:
        inspect.signature(method).bind()
    except TypeError:
        return False
    return True


def _ignoring_arguments(hook: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *_: hook()


def _check_takes_loader_idx(name: str, hook: Any) -> None:
    n_arguments = 4 if name.endswith("_end") else 3  # with outputs
    try:
        inspect.signature(hook).bind(*range(n_arguments))
    except TypeError:
        owner = getattr(getattr(hook, "func", hook), "__qualname__", name).removesuffix(f".{name}")
        raise RuntimeError(
            f"{name} of {owner} gets batches of several loaders and has no argument dataloader_idx to tell them apart. "
            "Add it after the others: dataloader_idx=0."
        ) from None


def _adapted(hook: Callable[..., Any], name: str, trainer: Any) -> Callable[..., Any]:
    """`hook` with what 1.x code may require: a `dataloader_idx`, an `optimizer_idx`, outputs at an epoch's end."""
    if name == "on_train_epoch_end" and _takes_outputs(hook):
        return _WithOutputs(hook, lambda: trainer.fit_loop.nested_outputs())
    if name == "on_before_optimizer_step" and _requires(hook, "optimizer_idx"):
        return _WithOptimizerIndex(hook, lambda: trainer.optimizers)
    if name == "on_predict_epoch_end" and _takes_outputs(hook):
        return _WithOutputs(hook, lambda: trainer.predict_loop.predictions_by_loader)
    return _DefaultIndex(hook) if _requires(hook, "dataloader_idx") else hook


def takes_outputs(listener: object, name: str) -> bool:
    """Whether a hook of an epoch's end has the 1.x form, with the outputs of all steps as its last argument."""
    return _takes_outputs(getattr(listener, name))


def _takes_outputs(hook: Callable[..., Any]) -> bool:
    return _requires(hook, "outputs") or _requires(hook, "results")


def _requires(hook: Callable[..., Any], name: str) -> bool:
    try:
        parameter = inspect.signature(hook).parameters.get(name)
    except (TypeError, ValueError):
        return False
    return parameter is not None and parameter.default is parameter.empty


class _WithOptimizerIndex:
    """Calls a hook of 1.x with the index of the optimizer after it."""

    __slots__ = ("find_optimizers", "hook")

    def __init__(self, hook: Callable[..., Any], find_optimizers: Callable[[], list[Any]]) -> None:
        self.hook, self.find_optimizers = hook, find_optimizers

    def __call__(self, *args: Any) -> Any:
        return self.hook(*args, next(i for i, o in enumerate(self.find_optimizers()) if o is args[-1]))


class _WithOutputs:
    """Calls a hook with what `read` returns as its last argument."""

    __slots__ = ("hook", "read")

    def __init__(self, hook: Callable[..., Any], read: Callable[[], Any]) -> None:
        self.hook, self.read = hook, read

    def __call__(self, *args: Any) -> Any:
        return self.hook(*args, self.read())


class _DefaultIndex:
    """Calls a hook that requires `dataloader_idx` with 0 where the loop passes none."""

    __slots__ = ("hook", "n_required")

    def __init__(self, hook: Callable[..., Any]) -> None:
        self.hook = hook
        required = inspect.signature(hook).parameters.values()
        self.n_required = sum(p.default is p.empty and p.kind is not p.VAR_POSITIONAL for p in required)

    def __call__(self, *args: Any) -> Any:
        return self.hook(*args, 0) if len(args) < self.n_required else self.hook(*args)
