"""Strategies and precisions of the user's own that override methods under the names of Lightning.

Such a class says what happens in a step, where fulgur's parts only say what is put around it. Which methods it
overrides is found once, before the run; a run without such parts does not load this module.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from fulgur.errors import MisconfigurationException
from fulgur.precision.precision import Precision
from fulgur.strategies.strategy import Strategy

if TYPE_CHECKING:
    from fulgur.loops.plan import StepPlan

_STEPS = ("training_step", "validation_step", "test_step", "predict_step")


def bind_strategy(strategy: Strategy) -> None:
    """Let what `strategy` overrides be called where fulgur calls its own methods."""
    if _has_own(strategy, "setup_environment"):
        _set(strategy, "set_up_environment", strategy.setup_environment)
    if _has_own(strategy, "lightning_module_state_dict"):
        _set(strategy, "model_state", partial(_model_state, strategy))
    if _has_own(strategy, "load_model_state_dict"):
        _set(strategy, "load_model_state", partial(_load_model_state, strategy))
    if any(_has_own(strategy, name) for name in _STEPS):
        strategy.__dict__["_steps"] = {}
        _set(strategy, "wrap_step", partial(_wrap_step, strategy))


def adapt_plan(
    plan: StepPlan, strategy: Strategy, precision: Precision, module: Any, *, clip_val: Any, clip_algorithm: Any
) -> None:
    """Let the training step go through what `strategy` and `precision` override.

    Raises:
        MisconfigurationException: Both say how a step is taken, or one does that with a scaled loss.
    """
    parts = [part for part in (strategy, precision) if part.has_own("optimizer_step")]
    if len(parts) > 1 or (parts and plan.scaler is not None):
        other = "precision='16-mixed' scales the loss" if len(parts) == 1 else f"{type(precision).__name__} too"
        raise MisconfigurationException(
            f"{type(parts[0]).__name__} has an optimizer_step of its own, and {other}. Keep one of them."
        )
    if parts:
        plan.own_step = partial(parts[0].optimizer_step, model=module)
        if plan.optimizer_step is None and module.automatic_optimization:
            plan.optimizer_step = module.optimizer_step
    if precision.has_own("clip_gradients") and plan.clip is not None:
        plan.clip = partial(precision.clip_gradients, clip_val=clip_val, gradient_clip_algorithm=clip_algorithm)
    for update in plan.updates:
        update.backward = _backward_of(strategy, precision, module, update) or update.backward


def _backward_of(strategy: Strategy, precision: Precision, module: Any, update: Any) -> Callable[..., Any] | None:
    if strategy.has_own("backward"):
        return partial(_backward, partial(strategy.backward, optimizer=update.optimizer))
    if precision.has_own("backward"):
        return partial(_backward, partial(precision.backward, model=module, optimizer=update.optimizer))
    return None


def _backward(backward: Callable[..., Any], loss: Any, *args: Any, **kwargs: Any) -> None:
    backward(loss, *args, **kwargs)


def _wrap_step(strategy: Any, step: Callable[..., Any], *, name: str = "training_step") -> Callable[..., Any]:
    wrapped: Callable[..., Any] = type(strategy).wrap_step(strategy, step, name=name)
    strategy._steps[name] = wrapped
    own: Callable[..., Any] = getattr(strategy, name)
    return own if _has_own(strategy, name) else wrapped


def _model_state(strategy: Strategy, module: Any) -> dict[str, Any]:
    return strategy.lightning_module_state_dict()


def _load_model_state(strategy: Strategy, module: Any, state: Any, *, strict: bool = True) -> Any:
    return strategy.load_model_state_dict({"state_dict": state}, strict=strict)


def _has_own(strategy: Strategy, name: str) -> bool:
    return strategy.has_own(name)


def _set(strategy: Strategy, name: str, function: Callable[..., Any]) -> None:
    strategy.__dict__.setdefault(name, function)
