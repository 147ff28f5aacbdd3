"""Strategies by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fulgur.errors import MisconfigurationException, nearest_name


@dataclass(frozen=True, slots=True)
class RegisteredStrategy:
    """One name: what builds the strategy, and with which arguments."""

    build: Callable[..., Any]
    description: str
    arguments: dict[str, Any] = field(default_factory=dict)


class StrategyNames:
    """The names that ``Trainer(strategy=...)`` knows. `StrategyRegistry` is the one there is."""

    def __init__(self) -> None:
        self._known: dict[str, RegisteredStrategy] = {}

    def register(
        self,
        name: str,
        strategy: Callable[..., Any] | None = None,
        description: str = "",
        override: bool = False,
        **init_params: Any,
    ) -> Any:
        """Make `name` stand for ``strategy(**init_params)``.

        Args:
            name: What to pass as ``Trainer(strategy=name)``.
            strategy: A `Strategy` subclass, or a function that returns an instance. None makes this a decorator.
            description: One line for a reader.
            override: Whether another strategy of this name is replaced.
            **init_params: Arguments for `strategy`.

        Raises:
            MisconfigurationException: The name is taken.
            TypeError: The name is no string.
        """
        if not isinstance(name, str):
            raise TypeError(f"A strategy's name is a string; got {name!r}.")
        if name in self._known and not override:
            raise MisconfigurationException(
                f"strategy={name!r} is registered already. Use another name, or override=True."
            )
        if strategy is None:
            return lambda built: self.register(name, built, description, override, **init_params) or built
        self._known[name] = RegisteredStrategy(strategy, description, dict(init_params))
        return strategy

    def get(self, name: str, default: Any = None) -> Any:
        """A new strategy of this name; `default` where the name is unknown and `default` is not None.

        Raises:
            KeyError: The name is unknown.
        """
        if name in self._known:
            known = self._known[name]
            return known.build(**known.arguments)
        if default is not None:
            return default
        raise KeyError(
            f"strategy={name!r} is unknown.{nearest_name(str(name), self._known)} "
            f"Use one of {', '.join(self.available_strategies())}."
        )

    def remove(self, name: str) -> None:
        """Forget `name`."""
        self._known.pop(name)

    def available_strategies(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._known)

    def __contains__(self, name: object) -> bool:
        return name in self._known

    def __len__(self) -> int:
        return len(self._known)


def _build_single_device(**arguments: Any) -> Any:
    from fulgur.strategies.single_device import SingleDeviceStrategy

    return SingleDeviceStrategy(**arguments)


def _build_ddp(**arguments: Any) -> Any:
    from fulgur.strategies.ddp import DDPStrategy

    return DDPStrategy(**arguments)


def _build_fsdp(**arguments: Any) -> Any:
    from fulgur.strategies.fsdp import FSDPStrategy

    return FSDPStrategy(**arguments)


def _build_model_parallel(**arguments: Any) -> Any:
    from fulgur.strategies.model_parallel import ModelParallelStrategy

    return ModelParallelStrategy(**arguments)


def _build_deepspeed(**arguments: Any) -> Any:
    from fulgur.strategies.deepspeed import DeepSpeedStrategy

    return DeepSpeedStrategy(**arguments)


StrategyRegistry = StrategyNames()
StrategyRegistry.register("single_device", _build_single_device, "One process, one device")
for _name, _start in {"ddp": "popen", "ddp_spawn": "spawn", "ddp_fork": "fork", "ddp_notebook": "fork"}.items():
    _what = f"DistributedDataParallel; local processes are started by {_start}"
    StrategyRegistry.register(_name, _build_ddp, _what, start_method=_start)
    for _suffix, _flag in {"false": False, "true": True}.items():
        StrategyRegistry.register(
            f"{_name}_find_unused_parameters_{_suffix}",
            _build_ddp,
            f"{_what}; find_unused_parameters={_flag}",
            start_method=_start,
            find_unused_parameters=_flag,
        )
StrategyRegistry.register("fsdp", _build_fsdp, "Parameters spread over the processes by FSDP2's fully_shard")
StrategyRegistry.register(
    "fsdp_cpu_offload", _build_fsdp, "FSDP2, with parameters in the host's memory", cpu_offload=True
)
StrategyRegistry.register("model_parallel", _build_model_parallel, "What configure_model does with self.device_mesh")
StrategyRegistry.register("tensor_parallel", _build_model_parallel, "What configure_model does with self.device_mesh")
StrategyRegistry.register("deepspeed", _build_deepspeed, "DeepSpeed, stage 2")
for _stage in (1, 2, 3):
    StrategyRegistry.register(f"deepspeed_stage_{_stage}", _build_deepspeed, f"DeepSpeed, stage {_stage}", stage=_stage)
StrategyRegistry.register(
    "deepspeed_stage_2_offload", _build_deepspeed, "DeepSpeed, stage 2 with offloading", stage=2, offload_optimizer=True
)
StrategyRegistry.register(
    "deepspeed_stage_3_offload",
    _build_deepspeed,
    "DeepSpeed, stage 3 with offloading",
    stage=3,
    offload_optimizer=True,
    offload_parameters=True,
)
StrategyRegistry.register(
    "deepspeed_stage_3_offload_nvme",
    _build_deepspeed,
    "DeepSpeed, stage 3 with offloading to disks",
    stage=3,
    offload_optimizer=True,
    offload_parameters=True,
    offload_optimizer_device="nvme",
    offload_params_device="nvme",
)
