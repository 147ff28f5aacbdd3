"""From checked arguments to processes: which devices, started by whom, with which strategy."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from fulgur.accelerators import ACCELERATORS, Accelerator, build_accelerator
from fulgur.checkpoint.io import CheckpointIO, TorchCheckpointIO
from fulgur.errors import LayoutError, MisconfigurationException, nearest_name
from fulgur.launch.environments import ClusterEnvironment, find_environment
from fulgur.launch.family import Layout, find_joined_layout
from fulgur.strategies import SingleDeviceStrategy, Strategy, StrategyRegistry

if TYPE_CHECKING:
    from fulgur.launch.launcher import Launcher
    from fulgur.resolve.arguments import Settings


@dataclass(frozen=True, slots=True)
class Processes:
    """The processes of a run.

    Attributes:
        accelerator: Kind of their devices.
        devices: Device of each process of this machine.
        num_nodes: Machines.
        environment: Says which of the processes this one is.
        is_alone: Whether the program says that this process trains by itself, whatever else is running.
    """

    accelerator: Accelerator
    devices: list[torch.device]
    num_nodes: int
    environment: ClusterEnvironment
    is_alone: bool

    @property
    def layout(self) -> Layout:
        """How many there are."""
        return Layout(len(self.devices), self.num_nodes)


def resolve_processes(settings: Settings) -> Processes:
    """Devices, machines and environment, from the arguments and from what the launcher says.

    Raises:
        ValueError: The name of the accelerator is unknown.
        TypeError: `devices` is of a type that the accelerator cannot read.
        MisconfigurationException: A device is not there, or arguments contradict each other.
        LayoutError: Arguments contradict what the launcher says.
    """
    given = settings.strategy if isinstance(settings.strategy, Strategy) else None
    is_alone = isinstance(given, SingleDeviceStrategy) or str(settings.strategy).lower() == "single_device"
    environment = _resolve_environment(settings, given)
    accelerator = build_accelerator(_accelerator_name(settings, given))
    devices, num_nodes = settings.devices, settings.num_nodes
    if is_alone:
        devices = _one_device(settings)
    elif devices == "auto":
        devices, num_nodes = _layout_of_launcher(environment, num_nodes)
    parallel = _own_devices(given) or _find_devices(accelerator, devices, environment, is_alone=is_alone)
    if not is_alone:
        environment.validate_settings(len(parallel), num_nodes)
        environment.set_world_size(len(parallel) * num_nodes)
        environment.set_global_rank(environment.node_rank() * len(parallel) + environment.local_rank())
    return Processes(accelerator, parallel, num_nodes, environment, is_alone)


def _resolve_environment(settings: Settings, given: Strategy | None) -> ClusterEnvironment:
    environment = find_environment(settings.plugins)
    own = given.cluster_environment if given is not None else None
    plugins = settings.plugins if isinstance(settings.plugins, (list, tuple)) else [settings.plugins]
    if own is not None and own is not environment and environment in plugins:
        raise MisconfigurationException(
            f"Both plugins ({environment.name()}) and the strategy ({own.name()}) bring a cluster environment. Leave "
            "out one."
        )
    return own if own is not None else environment


def _accelerator_name(settings: Settings, given: Strategy | None) -> str | Accelerator:
    """What the Trainer was given; the kind of the strategy's devices, where it brings some."""
    own = _own_devices(given)
    brought = given.own_accelerator if given is not None else None
    if brought is not None:
        if settings.accelerator not in ("auto", brought, getattr(brought, "name", brought)):
            raise MisconfigurationException(
                f"accelerator={settings.accelerator!r} contradicts the {type(brought).__name__} of "
                f"{type(given).__name__}. Leave out one of them."
            )
        kept: str | Accelerator = brought
        return kept
    if not own:
        return settings.accelerator
    kinds = {device.type for device in own}
    asked = settings.accelerator
    name = asked.name if isinstance(asked, Accelerator) else asked
    if name not in ("auto", *kinds) and not (name == "gpu" and kinds <= {"cuda", "mps"}):
        raise MisconfigurationException(
            f"accelerator={name!r} contradicts the devices of {type(given).__name__}: {', '.join(map(str, own))}. "
            "Leave out one of them."
        )
    count = len(settings.devices) if isinstance(settings.devices, (list, tuple)) else settings.devices
    if count not in ("auto", len(own), str(len(own))):
        raise MisconfigurationException(
            f"devices={settings.devices!r} contradicts the devices of {type(given).__name__}: "
            f"{', '.join(map(str, own))}. Leave out one of them."
        )
    kind = kinds.pop()
    return asked if isinstance(asked, Accelerator) or kind not in ACCELERATORS else kind


def _own_devices(given: Strategy | None) -> list[torch.device]:
    if isinstance(given, SingleDeviceStrategy):
        return [given.root_device]
    return list(given.parallel_devices) if given is not None else []


def _one_device(settings: Settings) -> Any:
    if settings.num_nodes > 1:
        raise MisconfigurationException(
            f"strategy='single_device' runs in this process alone, and num_nodes={settings.num_nodes} asks for more. "
            "Leave out one of them."
        )
    return settings.devices if settings.devices != "auto" else 1


def _layout_of_launcher(environment: ClusterEnvironment, num_nodes: int) -> tuple[Any, int]:
    """``devices="auto"`` takes what a launcher has started, if one has."""
    joined = find_joined_layout()
    if joined is not None:
        return joined.num_devices, joined.num_nodes
    if not environment.creates_processes_externally:
        return "auto", num_nodes
    local, nodes = environment.local_world_size(), environment.num_nodes()
    return local or "auto", nodes if nodes and num_nodes == 1 else num_nodes


def _find_devices(
    accelerator: Accelerator, devices: Any, environment: ClusterEnvironment, *, is_alone: bool
) -> list[torch.device]:
    count = accelerator.auto_device_count() if devices == "auto" else devices
    if accelerator.name == "cuda" and not is_alone and _sees_only_its_own(environment, count):
        return [torch.device("cuda", 0)] * int(count)
    found = accelerator.get_parallel_devices(accelerator.parse_devices(count))
    if is_alone and len(found) > 1:
        raise MisconfigurationException(
            f"strategy='single_device' with devices={devices!r} has {len(found)} devices. Use devices=1, or "
            "strategy='ddp'."
        )
    return found


def _sees_only_its_own(environment: ClusterEnvironment, count: Any) -> bool:
    """Whether the launcher shows each process one GPU: then each has a ``cuda:0`` of its own."""
    is_count = isinstance(count, int) or (isinstance(count, str) and count.isdecimal())
    return (
        environment.creates_processes_externally
        and is_count
        and int(count) > torch.cuda.device_count() == 1
        and environment.local_world_size() in (None, int(count))
    )


def resolve_strategy(settings: Settings, processes: Processes) -> Strategy:
    """The strategy, from its name or as the instance given, with everything it needs to know of the processes.

    Raises:
        ValueError: The name is unknown, or the devices cannot be used together.
        MissingExtraError: The name needs a package that is not installed.
        MisconfigurationException: The strategy contradicts another argument, or cannot start processes from here.
    """
    strategy = _find_strategy(settings.strategy, processes)
    _check_files(strategy, settings)
    if isinstance(strategy, SingleDeviceStrategy):
        _check_single(strategy, processes)
        return strategy
    if processes.devices[0].type == "mps":
        raise ValueError(
            f"strategy={settings.strategy!r} does not work on accelerator='mps', which has one device. Use "
            "strategy='auto', or accelerator='cpu'."
        )
    strategy.parallel_devices = list(processes.devices)
    strategy.num_nodes = processes.num_nodes
    strategy.cluster_environment = processes.environment
    strategy.sync_batchnorm = settings.sync_batchnorm
    strategy.launcher = _build_launcher(strategy, processes)
    return strategy


def _find_strategy(asked: Any, processes: Processes) -> Strategy:
    if isinstance(asked, Strategy):
        return asked
    name = asked.lower() if isinstance(asked, str) else asked
    if name == "auto":
        name = "single_device" if processes.layout.size == 1 else "ddp_fork" if is_interactive() else "ddp"
    if name not in StrategyRegistry:
        from fulgur.resolve.legacy import GONE_STRATEGIES

        if name in GONE_STRATEGIES:
            raise ValueError(f"strategy={asked!r} is no longer there. Use {GONE_STRATEGIES[name]} instead.")
        known = ["auto", *StrategyRegistry.available_strategies()]
        raise ValueError(f"strategy={asked!r} is unknown.{nearest_name(str(asked), known)} Use 'auto'.")
    if name == "single_device":
        return SingleDeviceStrategy(processes.devices[0])
    built: Strategy = StrategyRegistry.get(name)
    return built


def _check_single(strategy: SingleDeviceStrategy, processes: Processes) -> None:
    if processes.layout.size > 1:
        raise LayoutError(
            f"{type(strategy).__name__} trains in one process, and this Trainer has {processes.layout}. Use "
            "strategy='ddp', or devices=1."
        )
    strategy.parallel_devices = [strategy.root_device]


def _check_files(strategy: Strategy, settings: Settings) -> None:
    plugins = settings.plugins if isinstance(settings.plugins, (list, tuple)) else [settings.plugins]
    given = next((plugin for plugin in plugins if isinstance(plugin, CheckpointIO)), None)
    own = strategy.checkpoint_io
    if given is not None and strategy is settings.strategy and own is not given and type(own) is not TorchCheckpointIO:
        raise MisconfigurationException(
            f"Both plugins ({type(given).__name__}) and the strategy ({type(own).__name__}) bring a CheckpointIO. "
            "Leave out one."
        )


def _build_launcher(strategy: Strategy, processes: Processes) -> Launcher | None:
    """What starts the other processes of this machine; None where somebody else does, or there are none."""
    environment, layout = processes.environment, processes.layout
    if environment.creates_processes_externally or layout.size == 1:
        return None
    method = getattr(strategy, "start_method", "popen")
    launcher: Launcher
    if method == "popen":
        from fulgur.launch.script import ScriptLauncher

        launcher = ScriptLauncher(environment, layout)
    else:
        from fulgur.launch.multiprocess import MultiProcessLauncher

        launcher = MultiProcessLauncher(environment, layout, method)
    if is_interactive() and not launcher.is_interactive_compatible:
        raise MisconfigurationException(
            f"{type(strategy).__name__} with start_method={method!r} starts processes by running a program again, "
            "which a notebook or a prompt has not. Use strategy='ddp_notebook'."
        )
    return launcher


def is_interactive() -> bool:
    """Whether somebody sits at a prompt or in a notebook."""
    ipython = sys.modules.get("IPython")
    return hasattr(sys, "ps1") or (ipython is not None and ipython.get_ipython() is not None)
