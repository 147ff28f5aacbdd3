"""Questions about modules and their methods."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from fulgur.datamodule import LightningDataModule
from fulgur.errors import MisconfigurationException
from fulgur.hooks import Callback, overrides
from fulgur.module import LightningModule


def is_overridden(method_name: str, instance: object | None = None, parent: type | None = None) -> bool:
    """Whether `instance` defines the method itself.

    Args:
        method_name: The method.
        instance: A module, datamodule or callback. None has nothing.
        parent: What it is compared with. None takes the one of the three that `instance` is.

    Raises:
        ValueError: `instance` is none of the three, and `parent` is None.
    """
    if instance is None:
        return False
    if parent is None:
        bases: tuple[type, ...] = (LightningModule, LightningDataModule, Callback)
        parent = next((base for base in bases if isinstance(instance, base)), None)
    if parent is None:
        raise ValueError(f"parent=None: a {type(instance).__name__} has no known base to compare with. Pass one.")
    return hasattr(instance, method_name) and overrides(instance, method_name, parent)


def is_param_in_hook_signature(
    hook_fx: Callable[..., Any], param: str, explicit: bool = False, min_args: int | None = None
) -> bool:
    """Whether a hook takes an argument.

    Args:
        hook_fx: The hook, bound or not.
        param: Name of the argument.
        explicit: Whether ``*args`` does not count.
        min_args: So many positional arguments count as taking it.
    """
    hook: Any = inspect.unwrap(hook_fx)
    given = inspect.getfullargspec(hook)
    names = given.args[1:] if inspect.ismethod(hook) else given.args
    if param in names or param in given.kwonlyargs:
        return True
    return (not explicit and given.varargs is not None) or (min_args is not None and len(names) >= min_args)


def _load_from_checkpoint(cls: Any, checkpoint_path: Any, **kwargs: Any) -> Any:
    return cls.load_from_checkpoint(checkpoint_path, **kwargs)


def get_torchvision_model(model_name: str, **kwargs: Any) -> Any:
    """A model of torchvision, by name.

    Raises:
        MisconfigurationException: torchvision is not installed.
    """
    try:
        from torchvision import models  # type: ignore[import-untyped, import-not-found, unused-ignore]
    except ImportError as error:
        raise MisconfigurationException(f"{model_name!r} needs torchvision: `pip install torchvision`.") from error
    return models.get_model(model_name, **kwargs)
