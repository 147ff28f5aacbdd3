"""Callbacks of 1.x, which return their state from `on_save_checkpoint` and take it back in `on_load_checkpoint`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def call_on_save(callback: Any, trainer: Any, module: Any, checkpoint: dict[str, Any]) -> Any:
    """Call ``on_save_checkpoint`` in the form the callback has.

    Returns:
        The state of a 1.x callback; None where the state comes from ``state_dict``.
    """
    hook = callback.on_save_checkpoint
    return hook(trainer, module) if len(_arguments(hook)) == 2 else hook(trainer, module, checkpoint)


def call_on_load(callback: Any, trainer: Any, module: Any, checkpoint: Any, state: Any) -> None:
    """Call ``on_load_checkpoint`` in the form the callback has.

    Args:
        callback, trainer, module, checkpoint: As today.
        state: What the file holds for this callback: all that a 1.x callback gets. Falsy for nothing, and then it is
            not called.
    """
    hook = callback.on_load_checkpoint
    names = _arguments(hook)
    if len(names) == 1 or names[2:] == ["callback_state"]:
        if state:
            hook(*(trainer, module)[: len(names) - 1], state)
    else:
        hook(trainer, module, checkpoint)


def _arguments(hook: Callable[..., Any]) -> list[str]:
    """Names of the arguments; of a hook that takes any number, those it has today."""
    parameters = inspect.signature(hook).parameters.values()
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return ["trainer", "pl_module", "checkpoint"]
    return [p.name for p in parameters]
