"""Modules that went through `torch.compile`."""

from __future__ import annotations

from typing import Any

from fulgur.module import LightningModule


def from_compiled(model: Any) -> LightningModule:
    """The module in what ``torch.compile(module)`` gave, with what compiles its steps noted.

    Raises:
        ValueError: `model` is no compiled LightningModule.
    """
    module = getattr(model, "_orig_mod", None)
    if not isinstance(module, LightningModule):
        raise ValueError(f"{type(model).__name__} is no compiled LightningModule. Pass what torch.compile gave.")
    module.compiler = model.dynamo_ctx
    return module


def to_uncompiled(model: Any) -> LightningModule:
    """The module without compilation.

    Raises:
        ValueError: It was not compiled.
    """
    module = getattr(model, "_orig_mod", model)
    if not isinstance(module, LightningModule) or (module is model and module.compiler is None):
        raise ValueError(f"{type(model).__name__} is no compiled LightningModule. Pass what torch.compile gave.")
    module.compiler = None
    return module
