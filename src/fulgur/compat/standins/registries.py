"""Registries of 1.5 to 1.7. Today a class that is imported can be named on a command line, registered or not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Registry(dict[str, Any]):
    """Classes by name; used as a decorator it keeps the class and gives it back."""

    def __call__(self, cls: type | None = None, key: str | None = None, override: bool = False) -> Any:
        """Keep `cls` as `key`, or else under its own name."""
        if cls is None:
            keep: Callable[[type], Any] = lambda given: self(given, key, override)  # noqa: E731
            return keep
        self[key or cls.__name__] = cls
        return cls

    def register_classes(self, module: Any, base_cls: type, override: bool = False) -> None:
        """Keep every subclass of `base_cls` that is in `module`."""
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, base_cls) and value is not base_cls:
                self(value, override=override)


CALLBACK_REGISTRY = Registry()
DATAMODULE_REGISTRY = Registry()
LOGGER_REGISTRY = Registry()
LR_SCHEDULER_REGISTRY = Registry()
MODEL_REGISTRY = Registry()
OPTIMIZER_REGISTRY = Registry()
