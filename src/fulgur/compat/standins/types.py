"""Types that annotations name."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypedDict, runtime_checkable

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from typing_extensions import NotRequired, Required

from fulgur.optim.configure import LRSchedulerConfig
from fulgur.states import StrEnum

_PATH = str | os.PathLike[str]
_DEVICE = torch.device | str | int
_MAP_LOCATION_TYPE = (
    _DEVICE | Callable[[torch.UntypedStorage, str], torch.UntypedStorage | None] | dict[_DEVICE, _DEVICE] | None
)
_METRIC = Tensor | float | int
_EVALUATE_OUTPUT = list[Mapping[str, float]]
_PREDICT_OUTPUT = list[Any] | list[list[Any]]

STEP_OUTPUT = Tensor | Mapping[str, Any] | None
EPOCH_OUTPUT = list[STEP_OUTPUT]
TRAIN_DATALOADERS = Any
EVAL_DATALOADERS = Any
CollectibleGroup = Any
LRSchedulerTypeUnion = LRScheduler | ReduceLROnPlateau
LRSchedulerTypeTuple = (LRScheduler, ReduceLROnPlateau)
LRSchedulerPLType = LRSchedulerTypeUnion
ReduceOp = Any
RedOpType = Any


class GradClipAlgorithmType(StrEnum):
    """How gradients are clipped."""

    VALUE = "value"
    NORM = "norm"

    @staticmethod
    def supported_type(val: str) -> bool:
        """Whether `val` is one of them."""
        return any(val == member.value for member in GradClipAlgorithmType)

    @staticmethod
    def supported_types() -> list[str]:
        """All of them."""
        return [str(member.value) for member in GradClipAlgorithmType]


class AMPType(StrEnum):
    """What did mixed precision in 1.x. Only torch's own is left."""

    APEX = "apex"
    NATIVE = "native"


class LRSchedulerConfigType(TypedDict, total=False):
    """A scheduler with when it steps, as ``configure_optimizers`` returns it."""

    scheduler: Required[LRScheduler | ReduceLROnPlateau]
    name: str | None
    interval: str
    frequency: int
    reduce_on_plateau: bool
    monitor: str | None
    strict: bool


class OptimizerConfig(TypedDict):
    """An optimizer alone, as ``configure_optimizers`` returns it in a dict."""

    optimizer: Optimizer


class OptimizerLRSchedulerConfig(TypedDict):
    """An optimizer and its scheduler, as ``configure_optimizers`` returns them in a dict."""

    optimizer: Optimizer
    lr_scheduler: LRScheduler | ReduceLROnPlateau | LRSchedulerConfigType
    monitor: NotRequired[str]


OptimizerLRScheduler = (
    Optimizer
    | Sequence[Optimizer]
    | tuple[Sequence[Optimizer], Sequence[LRScheduler | ReduceLROnPlateau | LRSchedulerConfig]]
    | OptimizerConfig
    | OptimizerLRSchedulerConfig
    | Sequence[OptimizerConfig]
    | Sequence[OptimizerLRSchedulerConfig]
    | None
)


@runtime_checkable
class DistributedDataParallel(Protocol):
    """A module that averages gradients over ranks."""

    @property
    def module(self) -> torch.nn.Module: ...

    def no_sync(self) -> AbstractContextManager[None]: ...


@runtime_checkable
class Steppable(Protocol):
    """Something with a ``step``."""

    def step(self, *args: Any, **kwargs: Any) -> Any: ...


@runtime_checkable
class Optimizable(Steppable, Protocol):
    """Whatever the Trainer takes for an optimizer."""

    param_groups: list[dict[Any, Any]]
    defaults: dict[Any, Any]
    state: dict[Any, Any]

    def state_dict(self) -> dict[str, dict[Any, Any]]: ...

    def load_state_dict(self, state_dict: dict[str, dict[Any, Any]]) -> None: ...
