"""Loggers: where the metrics and hyperparameters of a run go.

Each name is imported when it is first used, so that this package costs nothing until a run needs a logger.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fulgur.loggers.comet import CometLogger
    from fulgur.loggers.csv_logs import CSVLogger
    from fulgur.loggers.gone import LitLogger, NeptuneLogger
    from fulgur.loggers.logger import DummyLogger, Logger
    from fulgur.loggers.mlflow import MLFlowLogger
    from fulgur.loggers.tensorboard import TensorBoardLogger
    from fulgur.loggers.wandb import WandbLogger

__all__ = [
    "CSVLogger",
    "CometLogger",
    "DummyLogger",
    "LitLogger",
    "Logger",
    "MLFlowLogger",
    "NeptuneLogger",
    "TensorBoardLogger",
    "WandbLogger",
]

_HOMES = {
    "CSVLogger": "fulgur.loggers.csv_logs",
    "CometLogger": "fulgur.loggers.comet",
    "DummyLogger": "fulgur.loggers.logger",
    "LitLogger": "fulgur.loggers.gone",
    "Logger": "fulgur.loggers.logger",
    "MLFlowLogger": "fulgur.loggers.mlflow",
    "NeptuneLogger": "fulgur.loggers.gone",
    "TensorBoardLogger": "fulgur.loggers.tensorboard",
    "WandbLogger": "fulgur.loggers.wandb",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
