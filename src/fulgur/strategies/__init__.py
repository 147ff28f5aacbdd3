"""Where the processes of a run are and how they talk: one device, or many by DistributedDataParallel and others."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fulgur.strategies.registry import StrategyRegistry
from fulgur.strategies.single_device import SingleDeviceStrategy
from fulgur.strategies.strategy import Strategy

if TYPE_CHECKING:
    from fulgur.strategies.ddp import DDPStrategy
    from fulgur.strategies.deepspeed import DeepSpeedStrategy
    from fulgur.strategies.fsdp import FSDPStrategy
    from fulgur.strategies.model_parallel import ModelParallelStrategy
    from fulgur.strategies.parallel import ParallelStrategy

_HOMES = {
    "DDPStrategy": "ddp",
    "DeepSpeedStrategy": "deepspeed",
    "FSDPStrategy": "fsdp",
    "ModelParallelStrategy": "model_parallel",
    "ParallelStrategy": "parallel",
}

__all__ = [
    "DDPStrategy",
    "DeepSpeedStrategy",
    "FSDPStrategy",
    "ModelParallelStrategy",
    "ParallelStrategy",
    "SingleDeviceStrategy",
    "Strategy",
    "StrategyRegistry",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
