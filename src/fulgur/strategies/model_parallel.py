"""Each layer is shared by several processes, as ``configure_model`` says: tensor parallelism, and FSDP2 over it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from fulgur.errors import MisconfigurationException
from fulgur.mesh import DATA_PARALLEL, build_mesh, resolve_parallel_sizes
from fulgur.strategies.distributed_state import place_without_parameters, share_initial_state
from fulgur.strategies.parallel import ParallelStrategy
from fulgur.strategies.routing import (
    GradientSync,
    RoutedCalls,
    demanding_loss,
    is_sharded_whole,
    route_evaluation,
    route_training,
)
from fulgur.strategies.sharded_files import ShardedFiles
from fulgur.strategies.units import materialize
from fulgur.strategies.votes import Votes, open_votes

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from fulgur.agreement import Agreement
    from fulgur.checkpoint.io import CheckpointIO
    from fulgur.launch.environments import ClusterEnvironment

_PRECISIONS = ("32-true", "64-true", "bf16-mixed", "bf16-true", "16-true")


class ModelParallelStrategy(RoutedCalls, ShardedFiles, ParallelStrategy):
    """Train a model that its ``configure_model`` spreads over the processes.

    There ``self.device_mesh`` has the axes ``"data_parallel"`` and ``"tensor_parallel"``: apply
    `torch.distributed.tensor.parallel.parallelize_module` over the one, `torch.distributed.fsdp.fully_shard` over the
    other. Processes with the same place along ``"data_parallel"`` see the same data.

    Args:
        data_parallel_size: Groups of processes that see different data. "auto": one for each machine.
        tensor_parallel_size: Processes that share each layer. "auto": all of a machine.
        save_distributed_checkpoint: Write directories of shards; False: one file. Either is read by any strategy.
        process_group_backend: "gloo", "nccl", …; None takes what suits the devices.
        timeout: How long a collective waits for the other ranks.
        parallelize_fn: For `Fabric`: takes a module and the mesh, and returns the module spread over it. None leaves
            that to the program, between ``fabric.launch`` and ``fabric.setup``.
        parallel_devices: Device of each process of this machine. None takes those of the Trainer.
        cluster_environment: Says which of the processes this one is. None finds it.
        checkpoint_io: Writes and reads checkpoints; None is the default one.

    Raises:
        ValueError: A size is less than 1.
    """

    forward_is_collective = True
    restores_after_setup = True

    def __init__(
        self,
        data_parallel_size: int | Literal["auto"] = "auto",
        tensor_parallel_size: int | Literal["auto"] = "auto",
        save_distributed_checkpoint: bool = True,
        process_group_backend: str | None = None,
        timeout: timedelta | None = None,
        *,
        parallelize_fn: Callable[[Any, DeviceMesh], Any] | None = None,
        parallel_devices: list[torch.device] | None = None,
        cluster_environment: ClusterEnvironment | None = None,
        checkpoint_io: CheckpointIO | None = None,
    ) -> None:
        super().__init__(
            parallel_devices=parallel_devices,
            cluster_environment=cluster_environment,
            process_group_backend=process_group_backend,
            timeout=timeout,
            checkpoint_io=checkpoint_io,
        )
        self.parallelize_fn = parallelize_fn
        resolve_parallel_sizes(data_parallel_size, tensor_parallel_size, num_nodes=1, num_processes=1)  # refuse now
        self.data_parallel_size, self.tensor_parallel_size = data_parallel_size, tensor_parallel_size
        self.saves_shards = save_distributed_checkpoint
        self._mesh: DeviceMesh | None = None
        self._sync: GradientSync | None = None

    @property
    def device_mesh(self) -> DeviceMesh | None:
        """How the processes are arranged; None before the run has begun."""
        return self._mesh

    @property
    def data_rank(self) -> int:
        return int(self._mesh.get_local_rank(DATA_PARALLEL)) if self._mesh is not None else self.global_rank

    @property
    def data_size(self) -> int:
        return int(self._mesh[DATA_PARALLEL].size()) if self._mesh is not None else self.world_size

    @property
    def data_leaders(self) -> Sequence[int]:
        if self._mesh is None:
            return super().data_leaders
        return [int(rank) for rank in self._mesh.mesh[:, 0].tolist()]

    def set_up_environment(self) -> None:
        self._check_precision()
        super().set_up_environment()
        if self._mesh is None:
            sizes = resolve_parallel_sizes(
                self.data_parallel_size,
                self.tensor_parallel_size,
                num_nodes=self.num_nodes,
                num_processes=self.num_processes,
            )
            self._mesh = build_mesh(self.root_device.type, sizes)

    def _check_precision(self) -> None:
        name = self.precision_plugin.name if self.precision_plugin is not None else "32-true"
        if name not in _PRECISIONS:
            raise ValueError(
                f"precision={name!r} does not go with ModelParallelStrategy: one scale of the loss for all parts of a "
                f"layer is not kept. Use one of {', '.join(map(repr, _PRECISIONS))}."
            )

    # ------------------------------------------------------------------------------------------------ the model

    def prepare_configuration(self, module: nn.Module) -> None:
        share_initial_state(module, self.root_device)

    def setup_module(self, module: Any) -> nn.Module:
        """Place what ``configure_model`` has made of `module`, and check that its parts will stay together.

        Raises:
            TypeError: There is no ``configure_model``.
            MisconfigurationException: Parameters are spread over no axis along which the data differs.
        """
        self.lightning_module = self.model = module
        if not _configures_model(module):
            raise TypeError(
                f"{type(module).__name__} has no configure_model, which is where ModelParallelStrategy expects the "
                "model to be spread over self.device_mesh. Define it, or use strategy='fsdp'."
            )
        self._check_parameters(module)
        self._place(module)
        return self.model

    def _place(self, module: nn.Module) -> None:
        materialize(module, self.root_device, draws_on=self.root_device)
        place_without_parameters(module, self.root_device)
        _place_rest(module, self.root_device)
        if len(self.data_leaders) < self.world_size:
            _count_data_once(module, OverData(tuple(self.data_leaders)))

    def _check_parameters(self, module: nn.Module) -> None:
        """Gradients are averaged over data by FSDP only: parameters it does not know of would drift apart."""
        if self.data_size == 1:
            return
        from torch.distributed.tensor import DTensor

        axis = set(self._mesh[DATA_PARALLEL].mesh.flatten().tolist())  # type: ignore[index]
        loose = [
            name
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
            and not (isinstance(parameter, DTensor) and axis <= set(parameter.device_mesh.mesh.flatten().tolist()))
        ]
        if loose:
            raise MisconfigurationException(
                f"With data_parallel_size={self.data_size}, nothing averages the gradients of {', '.join(loose[:3])}"
                f"{f' and {len(loose) - 3} more' if len(loose) > 3 else ''}. Apply fully_shard(module, "
                'mesh=self.device_mesh["data_parallel"]) in configure_model to the modules that hold them.'
            )

    def wrap_step(self, step: Callable[..., Any], *, name: str = "training_step") -> Callable[..., Any]:
        module = self.lightning_module
        if name != "training_step":
            return route_evaluation(module, step) if is_sharded_whole(module) else step
        self._sync = GradientSync(module)
        if self.data_size > 1:
            step = demanding_loss(step, "ModelParallelStrategy with data_parallel_size > 1")
        return route_training(module, step) if is_sharded_whole(module) else step

    @contextmanager
    def on_trial(self) -> Iterator[Callable[[Any], None]]:
        kept = self._sync
        try:
            yield self.wrap_training
        finally:
            self._sync = kept

    def set_grad_sync(self) -> Callable[[bool], None] | None:
        return self._sync.set if self._sync is not None and self._sync.roots else None

    def no_grad_sync(self) -> AbstractContextManager[None]:
        return GradientSync(self.lightning_module).off()

    # ------------------------------------------------------------------------------------- loops of the user's own

    def wrap_module(self, module: nn.Module, *, move_to_device: bool = True) -> nn.Module:
        """Spread `module` over `device_mesh`, place it, and check that its parts will stay together.

        Raises:
            MisconfigurationException: Parameters are spread over no axis along which the data differs.
            TypeError: `parallelize_fn` returns no module.
        """
        if self.parallelize_fn is not None:
            share_initial_state(module, self.root_device)
            module = self.parallelize_fn(module, self._mesh)  # type: ignore[arg-type]
            if not isinstance(module, nn.Module):
                raise TypeError(
                    f"parallelize_fn returned a {type(module).__name__}. Let it return the module that it was given."
                )
        self._check_parameters(module)
        self._place(module)
        return module

    def init_context(self, *, is_empty: bool) -> AbstractContextManager[Any]:
        return torch.device("meta") if is_empty else nullcontext()

    def build_votes(self, agreement: Agreement) -> Votes | None:
        if self.data_size == 1 or not self.lightning_module.automatic_optimization:
            return None
        return open_votes(self, agreement, lambda: None)


def _configures_model(module: Any) -> bool:
    from fulgur.hooks import overrides

    base = next((cls for cls in type(module).__mro__ if cls.__name__ == "LightningModule"), nn.Module)
    return overrides(module, "configure_model", base) or hasattr(module, "configure_sharded_model")


def _place_rest(module: nn.Module, device: torch.device) -> None:
    """Move what is not distributed; DTensors are where their mesh is."""
    from torch.distributed.tensor import DTensor

    for inner in module.modules():
        for tensor in (*inner.parameters(recurse=False), *inner.buffers(recurse=False)):
            if not isinstance(tensor, DTensor) and tensor.device != device:
                tensor.data = tensor.data.to(device)


@dataclass(frozen=True)
class OverData:
    """Gathers the states of a torchmetrics metric from one process of each group that sees the same data.

    Attributes:
        leaders: Global ranks of those processes.
    """

    leaders: tuple[int, ...]

    def __call__(self, state: Tensor, group: Any = None) -> list[Tensor]:
        from torchmetrics.utilities.distributed import gather_all_tensors

        gathered = gather_all_tensors(state, group)  # all ranks must reach this
        return [gathered[rank] for rank in self.leaders]


def _count_data_once(module: nn.Module, gather: OverData) -> None:
    """Metrics that nobody told whom to gather from would count a sample once for each process that has seen it."""
    torchmetrics = sys.modules.get("torchmetrics")
    if torchmetrics is None:
        return
    for metric in module.modules():
        if isinstance(metric, torchmetrics.Metric) and metric.process_group is None and metric.dist_sync_fn is None:
            metric.dist_sync_fn = gather
