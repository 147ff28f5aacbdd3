"""A callback made of functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fulgur.errors import UnknownArgumentError, nearest_name
from fulgur.hooks import Callback

# Hooks of 1.x that `hooks.collect` still calls.
_EARLIER_HOOKS = (
    "on_pretrain_routine_start",
    "on_pretrain_routine_end",
    "on_epoch_start",
    "on_epoch_end",
    "on_batch_start",
    "on_batch_end",
)
_HOOKS = frozenset(name for name in vars(Callback) if name.startswith("on_")) | {"setup", "teardown", *_EARLIER_HOOKS}


class LambdaCallback(Callback):
    """Run plain functions at the hooks of `Callback`.

    Only the hooks that are given cost anything.

    Args:
        hooks: Hook name to function. The function gets what the hook gets: ``trainer``, ``pl_module``, and the
            hook's own arguments. ``None`` leaves a hook alone.

    Raises:
        UnknownArgumentError: There is no hook of that name (also a TypeError).
        TypeError: A value cannot be called.

    Example:
        >>> announce = LambdaCallback(on_train_end=lambda trainer, pl_module: print("done"))
    """

    def __init__(self, **hooks: Callable[..., Any] | None) -> None:
        for name, function in hooks.items():
            if name not in _HOOKS:
                raise UnknownArgumentError(
                    f"LambdaCallback got {name!r}, which is no hook.{nearest_name(name, sorted(_HOOKS))} "
                    "Hooks are the methods of fulgur.Callback."
                )
            if function is None:
                continue
            if not callable(function):
                raise TypeError(
                    f"LambdaCallback({name}={function!r}): give a function, or None to leave the hook alone."
                )
            setattr(self, name, function)
