"""StepPlan: what one training step calls, resolved once from module, strategy, precision and Trainer."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fulgur.errors import MisconfigurationException
from fulgur.hooks import overrides
from fulgur.logged import Scope
from fulgur.loops.earlier import backward_of, scheduler_step_of, with_optimizer_idx
from fulgur.loops.schedule import Schedulers
from fulgur.metrics import MetricLog
from fulgur.module import LightningModule
from fulgur.optim.clip import clip_gradients
from fulgur.optim.configure import OptimizerSetup
from fulgur.optim.manual import LightningOptimizer
from fulgur.precision import Precision
from fulgur.strategies.strategy import Strategy

if TYPE_CHECKING:
    from fulgur.loops.scaling import LossScaling
    from fulgur.strategies.votes import Votes

Step = Callable[[Any, int], Any]


@dataclass(slots=True)
class Update:
    """One optimizer's share of a step.

    Attributes:
        training_step: Takes ``(batch, batch_idx)``, whatever the user's takes.
        n_backward: Backward passes since its gradients were cleared; a mean over the ranks where those differ.
        divisor: What each of their losses was divided by.
        n_batches, missing: Batches of the window, and the weight of those without a loss; counted on several ranks.
        backward: The module's, where it is overridden.
        clear: Clears its gradients; set before the first batch of an epoch.
    """

    optimizer: Any
    wrapped: LightningOptimizer
    training_step: Step
    n_backward: float = 0
    divisor: int = 1
    n_batches: int = 0
    missing: float = 0.0
    backward: Callable[[Tensor], Any] | None = None
    clear: Callable[[], object] = field(init=False)


@dataclass(slots=True)
class TrainScopes:
    """Where in a training step `self.log` is called from."""

    training_step: Scope
    batch_start: Scope
    batch_end: Scope
    before_zero_grad: Scope
    zero_grad: Scope
    before_backward: Scope
    backward: Scope
    after_backward: Scope
    optimizer_step: Scope
    before_optimizer_step: Scope
    clipping: Scope
    train_start: Scope
    epoch_start: Scope
    epoch_end: Scope


@dataclass(slots=True)
class StepPlan:
    """What one step calls. None, or an empty tuple, where nobody asked for anything.

    Attributes:
        training_step: The module's, wrapped by precision and strategy; takes ``(batch, batch_idx)``.
        updates: One for each optimizer in automatic optimization.
        turns: Index into `updates` for each batch of a cycle, where optimizers take turns (1.x ``frequency``).
        optimizer_step: The module's, where it is overridden or an optimizer needs the closure.
        own_step: Takes an optimizer's step in its place, where a strategy or precision of the user's own does.
        zero_grad: The module's ``optimizer_zero_grad`` where it is overridden.
        is_zero_grad_first: Gradients are cleared before the forward pass, when their memory is worth most. Where
            someone listens it happens after it, as listeners expect.
        backward: The module's, where it is overridden.
        clip: Clips an optimizer's gradients.
        scaler: Loss scaler, with 16-mixed only.
        set_grad_sync: Turns gradient reduction on or off.
        votes: Counts the ranks that have a loss; None on one process.
        prepare_backward: Makes the backward pass of manual optimization reduce gradients; None on one process.
        mean_loss: The mean over ranks of a loss that an optimizer decides by, as LBFGS does; None where none does.
        schedulers: Learning-rate schedulers.
        has_outputs: Someone reads what `training_step` returned.
        epoch_outputs: Collects outputs for the hooks of the epoch's end that take them; None where none does.
        n_outputs_missing: Batches at the beginning of a resumed epoch of which there are none.
    """

    training_step: Step
    scopes: TrainScopes
    schedulers: Schedulers
    updates: tuple[Update, ...] = ()
    turns: tuple[int, ...] = ()
    optimizer_step: Callable[..., Any] | None = None
    own_step: Callable[..., Any] | None = None
    zero_grad: Callable[..., Any] | None = None
    is_zero_grad_first: bool = True
    backward: Callable[..., Any] | None = None
    clip: Callable[[Any], Any] | None = None
    scaler: LossScaling | None = None
    set_grad_sync: Callable[[bool], None] | None = None
    votes: Votes | None = None
    prepare_backward: Callable[[Tensor], None] | None = None
    mean_loss: Callable[[Any], Any] | None = None
    has_outputs: bool = False
    epoch_outputs: list[Any] | None = None
    n_outputs_missing: int = 0
    training_epoch_end: Callable[[list[Any]], Any] | None = None
    takes_iterator: bool = False
    optimizers: list[Any] = field(default_factory=list)


def build_plan(
    module: LightningModule,
    setup: OptimizerSetup,
    *,
    strategy: Strategy,
    precision: Precision,
    metrics: MetricLog,
    clip_val: float | None,
    clip_algorithm: str | None,
    reads_outputs: bool,
    reads_epoch_outputs: bool = False,
    listens_to_zero_grad: bool,
) -> StepPlan:
    """Resolve a `StepPlan`.

    Args:
        module: Whose steps.
        setup: Its optimizers and schedulers.
        strategy: Wraps the step so that gradients are synchronised.
        precision: Its context and scaler.
        metrics: Gives the scopes.
        clip_val, clip_algorithm: The Trainer's clipping; None or <= 0 for none.
        reads_outputs: Whether a hook reads the outputs of steps.
        reads_epoch_outputs: Whether a hook of the epoch's end reads them all.
        listens_to_zero_grad: Whether a hook listens to gradients being cleared.

    Raises:
        MisconfigurationException: `training_step` does not fit the optimizers.
    """
    own = partial(overrides, module, base=LightningModule)
    step = step_of(module, "training_step", strategy=strategy, precision=precision)
    parameters = _positional(module.training_step)
    epoch_end = getattr(module, "training_epoch_end", None)
    keeps_outputs = reads_epoch_outputs or epoch_end is not None
    plan = StepPlan(
        training_step=step,
        scopes=_scopes(metrics),
        schedulers=Schedulers(
            setup.schedulers if module.automatic_optimization else (),
            step=scheduler_step_of(module.lr_scheduler_step, setup.schedulers) if own("lr_scheduler_step") else None,
            metrics=metrics,
        ),
        scaler=_scaling(precision),
        set_grad_sync=strategy.set_grad_sync(),
        has_outputs=reads_outputs or keeps_outputs,
        epoch_outputs=[] if keeps_outputs else None,
        training_epoch_end=epoch_end,
        takes_iterator=takes_iterator(module.training_step),
        optimizers=setup.optimizers,
        backward=module.backward if own("backward") else None,
    )
    if module.automatic_optimization:
        _plan_automatic(plan, module, setup, parameters)
        if own("optimizer_zero_grad"):
            plan.zero_grad = with_optimizer_idx(
                module.optimizer_zero_grad, setup.optimizers, "epoch", "batch_idx", "optimizer"
            )
        plan.is_zero_grad_first = plan.zero_grad is None and not listens_to_zero_grad
        if own("configure_gradient_clipping"):
            plan.clip = partial(
                with_optimizer_idx(module.configure_gradient_clipping, setup.optimizers, "optimizer"),
                gradient_clip_val=clip_val,
                gradient_clip_algorithm=clip_algorithm,
            )
        elif clip_val is not None and clip_val > 0:
            plan.clip = partial(clip_gradients, clip_val=clip_val, algorithm=clip_algorithm or "norm")
        if own("optimizer_step") or any(needs_closure(optimizer) for optimizer in setup.optimizers):
            plan.optimizer_step = with_optimizer_idx(
                module.optimizer_step, setup.optimizers, "epoch", "batch_idx", "optimizer", "optimizer_closure"
            )
    else:
        plan.updates = tuple(Update(o, LightningOptimizer(o), step) for o in setup.optimizers)
    return plan


def _plan_automatic(plan: StepPlan, module: LightningModule, setup: OptimizerSetup, parameters: list[str]) -> None:
    several = len(setup.optimizers) > 1
    name = type(module).__name__
    if several and "optimizer_idx" not in parameters:
        raise MisconfigurationException(
            f"configure_optimizers of {name} returned {len(setup.optimizers)} optimizers, and training_step has no "
            "argument optimizer_idx to say whose loss is asked for. Write training_step(self, batch, batch_idx, "
            "optimizer_idx), or set self.automatic_optimization = False and step the optimizers yourself."
        )
    if plan.scaler is not None and any(isinstance(o, torch.optim.LBFGS) for o in setup.optimizers):
        raise MisconfigurationException(
            "torch.optim.LBFGS evaluates its closure several times a step, which precision='16-mixed' cannot scale. "
            "Use precision='bf16-mixed' or '32-true', or another optimizer."
        )
    step: Callable[..., Any] = plan.training_step
    plan.updates = tuple(
        Update(
            optimizer,
            LightningOptimizer(optimizer),
            partial(step, optimizer_idx=index) if "optimizer_idx" in parameters else step,
            backward=backward_of(plan.backward, optimizer, index) if plan.backward is not None else None,
        )
        for index, optimizer in enumerate(setup.optimizers)
    )
    plan.turns = tuple(i for i, n in enumerate(setup.frequencies) for _ in range(n))


def _scaling(precision: Precision) -> LossScaling | None:
    if precision.scaler is None:
        return None
    from fulgur.loops.scaling import LossScaling

    return LossScaling(precision.scaler)


def needs_closure(optimizer: Any) -> bool:
    """Whether `optimizer` may use the closure for more than one evaluation at the start of its step.

    torch's own optimizers do not, LBFGS apart; of others nobody knows, so they get it.
    """
    step = getattr(type(optimizer), "step", None)
    step = getattr(step, "__wrapped__", step)
    is_torch = str(getattr(step, "__module__", "")).startswith("torch.optim.")
    return not is_torch or isinstance(optimizer, torch.optim.LBFGS)


def step_of(
    module: LightningModule, name: str, *, strategy: Strategy, precision: Precision, passes_loader_idx: bool = False
) -> Callable[..., Any]:
    """The module's step `name`, wrapped by 1.x ``*_step_end``, precision and strategy.

    Takes ``(batch, batch_idx)``, and ``dataloader_idx`` after them if `passes_loader_idx`; hands on what the user's
    function asks for. For one that `takes_iterator` the iterator stands in the place of the batch.
    """
    bound = getattr(module, name)
    step = _with_arguments(bound, name, passes_loader_idx)
    if module.compiler is not None:
        step = module.compiler(step)
    step_end = getattr(module, f"{name}_end", None)
    if step_end is not None:
        step = _followed_by(step_end, step)
    context = precision.context_of_steps()
    if context is not None:
        step = _under(context, step)
    return strategy.wrap_step(step, name=name)


def _with_arguments(step: Callable[..., Any], name: str, passes_loader_idx: bool) -> Callable[..., Any]:
    parameters = _positional(step)
    takes_all = "*" in parameters
    names = [p for p in parameters if p != "*"]
    _check_arguments(step, name, n_given=3 if passes_loader_idx else 2)
    if "dataloader_iter" in names:
        return lambda iterator, *indices, **more: step(iterator, **more)
    if passes_loader_idx:
        if not takes_all and "dataloader_idx" not in names and len(names) < 3:
            raise RuntimeError(
                f"{name} gets batches of several loaders and has no argument dataloader_idx to tell them apart. "
                f"Write {name}(self, batch, batch_idx, dataloader_idx=0)."
            )
        return _by_name(step) if _has_unusual_places(step) else step
    if name != "training_step" or "dataloader_idx" not in names:
        if _has_unusual_places(step):
            return _by_name(step)
        if "dataloader_idx" in names:
            return _with_loader_zero(step)
    if takes_all or len([n for n in names if n != "optimizer_idx"]) > 1:
        return step
    if "batch_idx" in names and len(names) == 1:
        raise MisconfigurationException(f"{name} takes batch_idx and no batch. Write {name}(self, batch, batch_idx).")
    return lambda batch, batch_idx, **more: step(batch, **more)


def takes_iterator(step: Callable[..., Any]) -> bool:
    """Whether a user's step draws its batches itself, from an iterator."""
    return "dataloader_iter" in _positional(step)


def _check_arguments(step: Callable[..., Any], name: str, n_given: int) -> None:
    """Refuse a step that takes no batch, or demands an argument that nobody gives."""
    # A decorator's own signature counts: it may give further arguments itself.
    parameters = list(inspect.signature(step, follow_wrapped=False).parameters.values())
    demanded = [p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    surplus = set(demanded[n_given:]) - {"batch_idx", "dataloader_idx", "optimizer_idx"}
    if parameters and not surplus:
        return
    shown = ", ".join(["self", *map(str, parameters)])
    raise MisconfigurationException(
        f"{name}({shown}) cannot be called with a batch and its index"
        + (f": nobody gives {', '.join(sorted(surplus))}" if surplus else "")
        + f". Write {name}(self, batch, batch_idx)."
    )


def _has_unusual_places(step: Callable[..., Any]) -> bool:
    """Whether an index cannot be given by position: it is keyword-only, or ``batch_idx`` is not before it."""
    parameters = inspect.signature(step).parameters
    indices = [parameters[name] for name in ("batch_idx", "dataloader_idx") if name in parameters]
    return any(p.kind is p.KEYWORD_ONLY for p in indices) or list(parameters)[1:2] == ["dataloader_idx"]


def _by_name(step: Callable[..., Any]) -> Callable[..., Any]:
    wanted = [name for name in ("batch_idx", "dataloader_idx") if name in inspect.signature(step).parameters]

    def run(batch: Any, batch_idx: int, dataloader_idx: int = 0, **more: Any) -> Any:
        given = {"batch_idx": batch_idx, "dataloader_idx": dataloader_idx}
        return step(batch, **{name: given[name] for name in wanted}, **more)

    return run


def _with_loader_zero(step: Callable[..., Any]) -> Callable[..., Any]:
    parameter = inspect.signature(step).parameters["dataloader_idx"]
    return step if parameter.default is not parameter.empty else partial(step, dataloader_idx=0)


def _positional(function: Callable[..., Any]) -> list[str]:
    """Names of the arguments that can be given by position; ``"*"`` stands for any number of them."""
    names = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            names.append("*")
        elif parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD) or (
            parameter.kind is parameter.KEYWORD_ONLY
            and parameter.name in ("batch_idx", "dataloader_idx", "optimizer_idx")
        ):
            names.append(parameter.name)
    return names


def _followed_by(step_end: Callable[[Any], Any], step: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: step_end(step(*args, **kwargs))


def _under(context: Any, step: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with context:
            return step(*args, **kwargs)

    return run


def _scopes(metrics: MetricLog) -> TrainScopes:
    of = metrics.scope_of
    return TrainScopes(
        training_step=of("training_step"),
        batch_start=of("on_train_batch_start"),
        batch_end=of("on_train_batch_end"),
        before_zero_grad=of("on_before_zero_grad"),
        zero_grad=of("optimizer_zero_grad"),
        before_backward=of("on_before_backward"),
        backward=of("backward"),
        after_backward=of("on_after_backward"),
        optimizer_step=of("optimizer_step"),
        before_optimizer_step=of("on_before_optimizer_step"),
        clipping=of("configure_gradient_clipping"),
        train_start=of("on_train_start"),
        epoch_start=of("on_train_epoch_start"),
        epoch_end=of("on_train_epoch_end"),
    )
