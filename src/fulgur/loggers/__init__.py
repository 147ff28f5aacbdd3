"""Loggers: where the metrics and hyperparameters of a run go.

Each name is imported when it is first used, so that this package costs nothing until a run needs a logger.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fulgur.loggers.csv_logs import CSVLogger
    from fulgur.loggers.logger import DummyLogger, Logger
    from fulgur.loggers.tensorboard import TensorBoardLogger

__all__ = ["CSVLogger", "DummyLogger", "Logger", "TensorBoardLogger"]

_HOMES = {
    "CSVLogger": "fulgur.loggers.csv_logs",
    "DummyLogger": "fulgur.loggers.logger",
    "Logger": "fulgur.loggers.logger",
    "TensorBoardLogger": "fulgur.loggers.tensorboard",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
