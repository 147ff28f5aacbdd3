"""The command ``fulgur``, and `LightningCLI`: a command line for a program of your own. Needs the extra ``cli``."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fulgur.cli.instantiate import instantiate_class, instantiate_module
    from fulgur.cli.lightning_cli import LightningCLI
    from fulgur.cli.parser import LightningArgumentParser
    from fulgur.cli.save_config import SaveConfigCallback
    from fulgur.cli.schedulers import (
        ArgsType,
        LRSchedulerCallable,
        LRSchedulerTypeTuple,
        LRSchedulerTypeUnion,
        OptimizerCallable,
        ReduceLROnPlateau,
    )

_HOMES = {
    "ArgsType": "schedulers",
    "LRSchedulerCallable": "schedulers",
    "LRSchedulerTypeTuple": "schedulers",
    "LRSchedulerTypeUnion": "schedulers",
    "LightningArgumentParser": "parser",
    "LightningCLI": "lightning_cli",
    "OptimizerCallable": "schedulers",
    "ReduceLROnPlateau": "schedulers",
    "SaveConfigCallback": "save_config",
    "instantiate_class": "instantiate",
    "instantiate_module": "instantiate",
}
_NEED_JSONARGPARSE = ("parser", "lightning_cli")

__all__ = [
    "ArgsType",
    "LRSchedulerCallable",
    "LRSchedulerTypeTuple",
    "LRSchedulerTypeUnion",
    "LightningArgumentParser",
    "LightningCLI",
    "OptimizerCallable",
    "ReduceLROnPlateau",
    "SaveConfigCallback",
    "instantiate_class",
    "instantiate_module",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fulgur.cli' has no attribute {name!r}")
    if _HOMES[name] in _NEED_JSONARGPARSE:
        from fulgur.cli.instantiate import require_jsonargparse

        require_jsonargparse(name)
    value = getattr(import_module(f"fulgur.cli.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
