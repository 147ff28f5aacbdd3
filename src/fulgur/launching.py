"""From a call of an entry point to that call on every rank of the run."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

from fulgur.datamodule import LightningDataModule
from fulgur.errors import LayoutError
from fulgur.launch.family import Layout, find_own_layout
from fulgur.module import LightningModule
from fulgur.strategies import SingleDeviceStrategy, Strategy

if TYPE_CHECKING:
    from fulgur.sources import Call
    from fulgur.trainer import Trainer

_POLL_S = 0.05
_GIVE_WAY_S = 3.0
"""How long a rank that only hears of an error lets the one that raised it end first, which ends this one too."""


def on_all_ranks(trainer: Trainer, function: Callable[..., Any], call: Call, **kwargs: Any) -> Any:
    """Do ``function(trainer, call, **kwargs)`` on all ranks, and start those that are not there yet.

    Returns:
        What the function returned on this rank; on rank 0 where this process is none.

    Raises:
        RankFailedError: Another rank has failed first.
        LayoutError: Processes are there already, and they are not as many as this Trainer has.
    """
    check_own_world(trainer)
    launcher = trainer.strategy.launcher
    if launcher is None:
        return on_this_rank(trainer, function, call, **kwargs)
    if not launcher.is_rank:
        _remember(trainer, call)
    return launcher.launch(on_this_rank, trainer, function, call, trainer=trainer, **kwargs)


def _remember(trainer: Trainer, call: Call) -> None:
    """Where this process is none of the ranks: what the ranks send back is about these."""
    module = getattr(call.model, "_orig_mod", call.model)
    if isinstance(module, LightningModule):
        trainer._module = module
        module.attach(trainer, trainer.metrics)
    if isinstance(call.datamodule, LightningDataModule):
        trainer.datamodule = call.datamodule


def on_this_rank(trainer: Trainer, function: Callable[..., Any], call: Call, **kwargs: Any) -> Any:
    """Join the other ranks, and do ``function(trainer, call, **kwargs)``."""
    strategy = trainer.strategy
    if isinstance(strategy, SingleDeviceStrategy):
        return function(trainer, call, **kwargs)
    join_ranks(trainer)
    try:
        return function(trainer, call, **kwargs)
    finally:
        if strategy.cluster_environment is not None:
            strategy.cluster_environment.teardown()


class Ranks:
    """Where this process stands among the others: what a Trainer and a Fabric tell of it alike.

    Attributes:
        strategy: Places the model on the devices, and talks to other processes.
    """

    strategy: Strategy
    _settings: Any
    _num_nodes: int
    _devices: list[torch.device]

    @property
    def global_rank(self) -> int:
        """Rank among all processes."""
        return self.strategy.global_rank

    @property
    def local_rank(self) -> int:
        """Rank among the processes of this machine."""
        return self.strategy.local_rank

    @property
    def node_rank(self) -> int:
        """Index of this machine."""
        return self.strategy.node_rank

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self.strategy.world_size

    @property
    def is_global_zero(self) -> bool:
        """Whether this process prints and writes files: the first of all."""
        return self.strategy.is_global_zero

    @property
    def num_nodes(self) -> int:
        """Number of machines."""
        return self._num_nodes

    @property
    def num_devices(self) -> int:
        """Devices of this machine."""
        return len(self._devices)


def join_ranks(ranks: Ranks) -> None:
    """Join the other processes of `ranks`; again does nothing. All ranks must reach this.

    Raises:
        LayoutError: This process belongs to a group of another size.
    """
    from fulgur.launch.last_words import leave_last_words
    from fulgur.launch.meeting import variables_set

    leave_last_words()
    _leave_other_group(ranks)
    with variables_set(_alone_variables(ranks)):
        ranks.strategy.set_up_environment()  # all ranks must reach this


def prepare_once(strategy: Strategy, prepare: Callable[[], Any], *, on_each_node: bool) -> None:
    """Call `prepare` on the first rank of each machine, or of the first one; the others wait as long as it takes.

    Raises:
        RuntimeError: It has failed on another rank.
    """
    if not strategy.is_distributed:
        prepare()
        return
    store = strategy.open_store("prepare_data")
    is_mine = strategy.local_rank == 0 and (on_each_node or strategy.node_rank == 0)
    n_ready = strategy.num_nodes if on_each_node else 1
    if is_mine:
        try:
            prepare()
        except BaseException as error:
            store.set("failure", f"rank {strategy.global_rank} raised {error!r}")
            store.add("ready", n_ready)
            raise
        store.add("ready", 1)
    _wait_until_ready(store, n_ready)


def _wait_until_ready(store: Any, n_ready: int) -> None:
    """The store, not a collective: collectives have a timeout, and a download may take hours."""
    while store.add("ready", 0) < n_ready:
        time.sleep(_POLL_S)
    if store.check(["failure"]):
        time.sleep(_GIVE_WAY_S)  # order matters: what is to be read last is the error itself, not this
        raise RuntimeError(f"prepare_data failed on another rank: {store.get('failure').decode()}.")


def watch_failure(trainer: Trainer, error: BaseException) -> AbstractContextManager[Any]:
    """Within its block the hooks that follow `error` may run, but not wait for ranks that do not come."""
    if trainer.world_size == 1 or isinstance(error, (KeyboardInterrupt, SystemExit)):  # all stop together
        return nullcontext()
    from fulgur.launch.failing import FailureWatch

    return FailureWatch(error, _own_store, trainer.world_size)


def _own_store() -> Any:
    """A connection to the ranks' store that no other thread uses."""
    c10d: Any = torch.distributed.distributed_c10d
    return c10d.PrefixStore("fulgur/shared", c10d._get_default_store().clone())


def _leave_other_group(ranks: Ranks) -> None:
    """A process group of another size, as an earlier Trainer of one process leaves it, cannot be used."""
    distributed, layout = torch.distributed, Layout(ranks.num_devices, ranks.num_nodes)
    is_joined = distributed.is_available() and distributed.is_initialized()
    if not is_joined:
        return
    size = distributed.get_world_size()
    if size == layout.size:
        return
    if size > 1:
        raise LayoutError(
            f"This process belongs to a process group of {size} ranks, and this Trainer has {layout}. Use as many "
            "devices, or call torch.distributed.destroy_process_group() first."
        )
    distributed.destroy_process_group()


def _alone_variables(ranks: Ranks) -> dict[str, str]:
    """What a process group of one process needs of the environment."""
    strategy = ranks.strategy
    environment = strategy.cluster_environment
    is_joined = torch.distributed.is_available() and torch.distributed.is_initialized()
    if environment is None or is_joined or ranks.world_size > 1 or environment.creates_processes_externally:
        return {}
    from fulgur.launch.ports import find_free_port

    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_port())}


def check_own_world(ranks: Ranks) -> None:
    """See that `ranks` has as many processes as this one has been started with.

    Raises:
        LayoutError: It has not.
    """
    started = find_own_layout()
    if started is None or _is_alone(ranks):
        return
    from fulgur.launch.script import check_layout

    check_layout(started, Layout(ranks.num_devices, ranks.num_nodes))


def _is_alone(ranks: Ranks) -> bool:
    """Whether the program has said that this process trains by itself."""
    asked = ranks._settings.strategy
    return isinstance(asked, SingleDeviceStrategy) or str(asked).lower() == "single_device"
