"""One process for each device, joined in a process group of torch.distributed."""

from __future__ import annotations

import atexit
import os
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fulgur.errors import MisconfigurationException
from fulgur.launch.rounds import open_round
from fulgur.rank import rank_zero_only
from fulgur.strategies.collectives import gather_over_ranks
from fulgur.strategies.strategy import Strategy

if TYPE_CHECKING:
    from fulgur.checkpoint.io import CheckpointIO
    from fulgur.launch.environments import ClusterEnvironment

_DEFAULT_TIMEOUT = timedelta(minutes=30)
_BACKENDS = {"cpu": "gloo", "cuda": "nccl"}
_opened: dict[str, int] = {}
"""How often each store was asked for in this process."""

_connections: dict[str, tuple[Any, Any]] = {}
"""By name: the process group's store, and a clone of it with a connection of its own."""

_REDUCTIONS = {"mean": "SUM", "avg": "SUM", "sum": "SUM", "min": "MIN", "max": "MAX", "product": "PRODUCT"}


class ParallelStrategy(Strategy):
    """Base of the strategies with one process for each device. Subclass to add one.

    Args:
        parallel_devices: Device of each process of this machine. None takes those of the Trainer.
        cluster_environment: Says which of the processes this one is. None finds it.
        process_group_backend: "gloo", "nccl", …; None takes what suits the devices.
        timeout: How long a collective waits for the other ranks.
        checkpoint_io: Writes and reads checkpoints; None is the default one.
        accelerator, precision_plugin: Those of the Trainer; None takes what the Trainer is given.
    """

    def __init__(
        self,
        accelerator: Any = None,
        parallel_devices: list[torch.device] | None = None,
        cluster_environment: ClusterEnvironment | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision_plugin: Any = None,
        *,
        process_group_backend: str | None = None,
        timeout: timedelta | None = None,
    ) -> None:
        super().__init__(accelerator, checkpoint_io, precision_plugin)
        self.parallel_devices = list(parallel_devices or [])
        self.cluster_environment = cluster_environment
        self.process_group_backend = process_group_backend
        self.timeout = _DEFAULT_TIMEOUT if timeout is None else timeout

    # ------------------------------------------------------------------------------------------- the processes

    @property
    def root_device(self) -> torch.device:
        if not self.parallel_devices:
            return torch.device("cpu")
        return self.parallel_devices[self.local_rank % len(self.parallel_devices)]

    @property
    def num_processes(self) -> int:
        """Processes of this machine."""
        return max(len(self.parallel_devices), 1)

    @property
    def world_size(self) -> int:
        return torch.distributed.get_world_size() if _is_joined() else self.num_processes * self.num_nodes

    @property
    def global_rank(self) -> int:
        if _is_joined():
            return torch.distributed.get_rank()
        return self.node_rank * self.num_processes + self.local_rank

    @property
    def local_rank(self) -> int:
        environment = self.cluster_environment
        return environment.local_rank() if environment is not None else 0

    @property
    def node_rank(self) -> int:
        environment = self.cluster_environment
        return environment.node_rank() if environment is not None else 0

    def set_up_environment(self) -> None:
        device = self.root_device
        if device.type == "cuda":
            torch.cuda.set_device(device)
        if not _is_joined():
            self._join(device)
        rank_zero_only.rank = self.global_rank

    def _join(self, device: torch.device) -> None:
        environment = self.cluster_environment
        if environment is None:
            raise MisconfigurationException(
                f"{type(self).__name__} has no cluster_environment that says which process this is. Let a Trainer "
                "set it up: Trainer(strategy=...)."
            )
        environment.set_world_size(self.num_processes * self.num_nodes)
        environment.set_global_rank(self.node_rank * self.num_processes + self.local_rank)
        os.environ["MASTER_ADDR"] = environment.main_address
        os.environ["MASTER_PORT"] = str(environment.main_port)
        torch.distributed.init_process_group(  # all ranks must reach this
            self.process_group_backend or _BACKENDS.get(device.type, "gloo"),
            rank=environment.global_rank(),
            world_size=environment.world_size(),
            timeout=self.timeout,
            store=self._meet(environment),
        )
        atexit.register(_leave_group)

    def _meet(self, environment: ClusterEnvironment) -> Any:
        """The store of these ranks, where an agent keeps one that ranks before them have used; else None."""
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            return None
        from torch.distributed.rendezvous import rendezvous

        rank, size = environment.global_rank(), environment.world_size()
        store, _, _ = next(rendezvous("env://", rank, size, timeout=self.timeout))
        # how long the ranks take to start has nothing to do with how long a collective may take
        opened = open_round(store, rank, size, timeout=max(self.timeout, _DEFAULT_TIMEOUT))
        opened.set_timeout(self.timeout)
        return opened

    @property
    def store(self) -> Any:
        if not _is_joined() or self.world_size == 1:
            return None
        c10d: Any = torch.distributed.distributed_c10d
        return c10d.PrefixStore("fulgur/shared", c10d._get_default_store())

    def open_stores(self, name: str, connections: Sequence[str]) -> list[Any]:
        if not _is_joined() or self.world_size == 1:
            return []
        c10d: Any = torch.distributed.distributed_c10d
        _opened[name] = number = _opened.get(name, 0) + 1
        return [c10d.PrefixStore(f"fulgur/{name}/{number}", _connect(connection)) for connection in connections]

    # ------------------------------------------------------------------------------------------------ the model

    def prepare_evaluation(self, module: Any) -> None:
        broadcast_module(module)

    # --------------------------------------------------------------------------------------- talking to each other

    def barrier(self, name: str | None = None) -> None:
        if not _is_joined() or self.world_size == 1:
            return
        distributed = torch.distributed
        try:
            if distributed.get_backend() == "nccl":
                distributed.barrier(device_ids=[self.root_device.index])
            else:
                distributed.barrier()
        except RuntimeError as error:
            raise RuntimeError(
                f"Rank {self.global_rank} waited at the barrier {name or 'without a name'} for the other ranks, and "
                f"not all of them came: {error}"
            ) from error

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        if not _is_joined() or self.world_size == 1:
            return obj
        box = [obj]
        torch.distributed.broadcast_object_list(box, src=src, device=self._object_device)
        return box[0]

    def reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        """`tensor` reduced over all ranks; itself unchanged. All ranks must reach this.

        Args:
            tensor: What to reduce; anything but a tensor is returned as it is.
            group: Process group; None is all ranks.
            reduce_op: "mean", "sum", "min", "max", "product", or a `torch.distributed.ReduceOp`.

        Raises:
            ValueError: `reduce_op` is unknown.
        """
        if not isinstance(tensor, Tensor) or not _is_joined():
            return tensor
        distributed = torch.distributed
        name = reduce_op.lower() if isinstance(reduce_op, str) else None
        if name is not None and name not in _REDUCTIONS:
            raise ValueError(f"reduce_op={reduce_op!r} is unknown. Use one of {', '.join(map(repr, _REDUCTIONS))}.")
        result = tensor.detach().clone()
        distributed.all_reduce(
            result, op=getattr(distributed.ReduceOp, _REDUCTIONS[name]) if name else reduce_op, group=group
        )
        if name in ("mean", "avg"):
            result = result / distributed.get_world_size(group)
        return result

    def all_gather(self, tensor: Tensor, group: Any = None, sync_grads: bool = False) -> Tensor:
        """`tensor` of all ranks, stacked along a new first dimension. All ranks must reach this, with equal shapes.

        Args:
            tensor: Of this rank.
            group: Process group; None is all ranks.
            sync_grads: Whether gradients flow back to the ranks that the parts came from.
        """
        if not _is_joined():
            return tensor
        tensor = tensor.contiguous().to(self._collective_device(tensor.device))
        if sync_grads:
            return gather_over_ranks(tensor, group)
        parts = [torch.empty_like(tensor) for _ in range(torch.distributed.get_world_size(group))]
        torch.distributed.all_gather(parts, tensor.detach(), group=group)
        return torch.stack(parts)

    def all_gather_object(self, obj: Any) -> list[Any]:
        if not _is_joined() or self.world_size == 1:
            return [obj]
        gathered: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(gathered, obj)
        return gathered

    def gather_object(self, obj: Any) -> list[Any] | None:
        if not _is_joined() or self.world_size == 1:
            return [obj]
        gathered: list[Any] | None = [None] * self.world_size if self.is_global_zero else None
        torch.distributed.gather_object(obj, gathered, dst=0)
        return gathered

    @property
    def _object_device(self) -> torch.device | None:
        return self.root_device if torch.distributed.get_backend() == "nccl" else None

    def _collective_device(self, device: torch.device) -> torch.device:
        """Where a tensor has to be for the backend: NCCL knows nothing of the host's memory."""
        return self.root_device if device.type == "cpu" and torch.distributed.get_backend() == "nccl" else device


def broadcast_module(module: nn.Module) -> None:
    """Give all ranks the parameters and buffers of rank 0. All ranks must reach this.

    Nothing is sent for tensors that are parts of something larger (DTensors), which belong to their rank.
    """
    if not _is_joined() or torch.distributed.get_world_size() == 1:
        return
    from torch.distributed.tensor import DTensor

    for tensor in (*module.parameters(), *module.buffers()):
        if not isinstance(tensor, DTensor) and not nn.parameter.is_lazy(tensor):
            torch.distributed.broadcast(tensor.detach(), src=0)


def _connect(name: str) -> Any:
    """A connection to the store of the process group, kept: every thirtieth new one or so took 5 s to be accepted."""
    c10d: Any = torch.distributed.distributed_c10d
    default = c10d._get_default_store()
    if name == "main":
        return default
    known = _connections.get(name)
    if known is None or known[0] is not default:
        known = _connections[name] = default, default.clone()
    return known[1]


def _is_joined() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _leave_group() -> None:
    if _is_joined():
        torch.distributed.destroy_process_group()
