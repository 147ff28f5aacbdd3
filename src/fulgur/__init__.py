"""fulgur trains PyTorch models: you write the research code, the Trainer does the engineering.

Names are looked up when they are first used, so that ``import fulgur`` costs what ``import torch`` costs.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fulgur import callbacks, compat, loggers, profilers
    from fulgur.cli.schedulers import ReduceLROnPlateau
    from fulgur.data.combine import CombinedLoader
    from fulgur.datamodule import LightningDataModule
    from fulgur.fabric import Fabric
    from fulgur.hooks import Callback
    from fulgur.module import LightningModule
    from fulgur.rng import seed_everything
    from fulgur.trainer import Trainer

__version__ = "0.1.0"

_HOMES = {
    "Callback": "fulgur.hooks",
    "CombinedLoader": "fulgur.data.combine",
    "Fabric": "fulgur.fabric",
    "LightningDataModule": "fulgur.datamodule",
    "LightningModule": "fulgur.module",
    "ReduceLROnPlateau": "fulgur.cli.schedulers",
    "Trainer": "fulgur.trainer",
    "seed_everything": "fulgur.rng",
}
_SUBMODULES = ("callbacks", "compat", "loggers", "profilers")

__all__ = [
    "Callback",
    "CombinedLoader",
    "Fabric",
    "LightningDataModule",
    "LightningModule",
    "ReduceLROnPlateau",
    "Trainer",
    "__version__",
    "callbacks",
    "compat",
    "loggers",
    "profilers",
    "seed_everything",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    elif name in _SUBMODULES:
        value = import_module(f"fulgur.{name}")
    else:
        raise AttributeError(f"module 'fulgur' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


if os.environ.get("FULGUR_COMPAT"):  # a child of a program that runs under fulgur.compat
    import_module("fulgur.compat").install(os.environ["FULGUR_COMPAT"])
