"""Each process holds a part of the model, and sees its own data: torch's `fully_shard` (FSDP2)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from fulgur.errors import MisconfigurationException
from fulgur.mesh import REPLICATE, SHARD, build_mesh, is_mesh
from fulgur.strategies.batch_norm import share_batch_norms
from fulgur.strategies.distributed_state import place_without_parameters, share_initial_state
from fulgur.strategies.fsdp_arguments import check_rest, to_policy, to_sharding, wants_offload
from fulgur.strategies.parallel import ParallelStrategy
from fulgur.strategies.routing import (
    GradientSync,
    RoutedCalls,
    RoutedTraining,
    demanding_loss,
    is_sharded_whole,
    route_evaluation,
    route_training,
)
from fulgur.strategies.sharded_files import ShardedFiles
from fulgur.strategies.units import callable_children, find_units, materialize, recompute_in_backward, select
from fulgur.strategies.votes import Votes, open_votes
from fulgur.strategies.zero_pass import ZeroPass

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import MixedPrecisionPolicy

    from fulgur.agreement import Agreement
    from fulgur.checkpoint.io import CheckpointIO
    from fulgur.launch.environments import ClusterEnvironment


class FSDPStrategy(RoutedCalls, ShardedFiles, ParallelStrategy):
    """Train with parameters, gradients and optimizer states spread over the processes (FSDP2).

    The module's parameters become DTensors, under their own names; optimizers, clipping and checkpoints take them as
    they are. `training_step` and the other steps run with what belongs to no unit gathered; units gather theirs when
    they are called. So in a step everything can be called as usual; outside of steps call the module itself
    (``self(x)``), on all ranks. With manual optimization each child of the module is a unit, and has to be
    called itself.

    Args:
        accelerator: Kind of the devices, for a Trainer that is given none.
        parallel_devices: Device of each process of this machine. None takes those of the Trainer.
        cluster_environment: Says which of the processes this one is. None finds it.
        checkpoint_io: Writes and reads checkpoints; None is the default one.
        precision_plugin: Number formats, for a Trainer that is given none.
        process_group_backend: "gloo", "nccl", …; None takes what suits the devices.
        timeout: How long a collective waits for the other ranks.
        cpu_offload: Keep parameters, gradients and optimizer states in the host's memory. Does nothing on the CPU.
        mixed_precision: torch's ``MixedPrecisionPolicy`` for all units. None takes what the Trainer's precision says:
            with "bf16-mixed" and "16-mixed" parameters are gathered in 16 bits, gradients reduced in 32.
        auto_wrap_policy: Which modules are units: a set of classes, or a function of a module. None: blocks that a list
            or sequence holds several of, or else the whole model is one.
        activation_checkpointing: The older name of `activation_checkpointing_policy`.
        activation_checkpointing_policy: Which modules keep only their inputs and are computed again in the backward
            pass: a set of classes, or a function of a module.
        sharding_strategy: "FULL_SHARD"; "SHARD_GRAD_OP" keeps parameters gathered from forward to backward;
            "HYBRID_SHARD" and "_HYBRID_SHARD_ZERO2" are these two within each machine (or row of `device_mesh`), with
            gradients averaged over machines.
        state_dict_type: "full" writes checkpoints of one file, "sharded" directories to which each rank writes its
            part. Either is read by any strategy.
        device_mesh: For hybrid sharding: (groups, ranks that share), or a `DeviceMesh` of two axes.
        **kwargs: ``reshard_after_forward`` and ``ignored_modules``. Of the arguments of the earlier FSDP those are
            accepted that mean what is always done (``use_orig_params=True``).

    Raises:
        ValueError: An argument has a value that is unknown, or that FSDP2 has nothing for.
        TypeError: An argument is unknown.
    """

    forward_is_collective = True
    restores_after_setup = True

    def __init__(
        self,
        accelerator: Any = None,
        parallel_devices: list[torch.device] | None = None,
        cluster_environment: ClusterEnvironment | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision_plugin: Any = None,
        process_group_backend: str | None = None,
        timeout: timedelta | None = None,
        cpu_offload: Any = None,
        mixed_precision: Any = None,
        auto_wrap_policy: Any = None,
        activation_checkpointing: Any = None,
        activation_checkpointing_policy: Any = None,
        sharding_strategy: Any = "FULL_SHARD",
        state_dict_type: Literal["full", "sharded"] = "full",
        device_mesh: tuple[int, int] | DeviceMesh | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            accelerator,
            parallel_devices,
            cluster_environment,
            checkpoint_io,
            precision_plugin,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )
        self.cpu_offload = wants_offload(cpu_offload)
        self.mixed_precision = to_policy(mixed_precision)
        self.auto_wrap_policy = auto_wrap_policy
        self.activation_checkpointing_policy = activation_checkpointing_policy or activation_checkpointing
        self.is_hybrid, self.reshard_after_forward = to_sharding(sharding_strategy, device_mesh)
        if state_dict_type not in ("full", "sharded"):
            raise ValueError(f"state_dict_type={state_dict_type!r} is unknown. Use 'full' or 'sharded'.")
        self.saves_shards = state_dict_type == "sharded"
        self._rest = check_rest(kwargs)
        self._mesh: Any = device_mesh
        self._sync: Any = None
        self._zero_pass: Any = None
        self._training: RoutedTraining | None = None

    @property
    def device_mesh(self) -> DeviceMesh | None:
        """How the processes are arranged; None before the run has begun."""
        return self._mesh if is_mesh(self._mesh) else None

    def set_up_environment(self) -> None:
        if self.process_group_backend is None and self.cpu_offload and self.root_device.type == "cuda":
            self.process_group_backend = "cpu:gloo,cuda:nccl"  # gradients to be clipped are in the host's memory
        super().set_up_environment()
        if is_mesh(self._mesh):
            return
        kind = self.root_device.type
        if self.is_hybrid:
            groups, ranks = self._mesh or (self.num_nodes, self.num_processes)
            self._mesh = build_mesh(kind, {REPLICATE: groups, SHARD: ranks})
        else:
            self._mesh = build_mesh(kind, {SHARD: self.world_size})

    # ------------------------------------------------------------------------------------------------ the model

    def prepare_configuration(self, module: nn.Module) -> None:
        share_initial_state(module, self.root_device)

    def setup_module(self, module: Any) -> nn.Module:
        """Shard `module`, which has the same weights on all ranks from here on. All ranks must reach this."""
        if module is not self.lightning_module:
            self._zero_pass = None
        self.lightning_module = self.model = module
        if is_sharded_whole(module) or _are_parts(module):
            self._check_manual(module)
            return self.model  # by an earlier call, or by the user in configure_model
        self._check_manual(module)
        self._spread(module, as_whole=module.automatic_optimization)
        return self.model

    def _spread(self, module: nn.Module, *, as_whole: bool) -> None:
        """Cut `module` into parts; without `as_whole`, what is its own is left as it is."""
        share_initial_state(module, self.root_device)
        if self.layer_sync is not None:
            self.layer_sync.apply(module)
        elif self.sync_batchnorm:
            share_batch_norms(module, self.root_device)
        if self.activation_checkpointing_policy is not None:
            policy = self.activation_checkpointing_policy
            recompute_in_backward(select(module, policy, "activation_checkpointing_policy"))
        self._shard(module, as_whole=as_whole)
        materialize(module, "cpu" if self._offloads else self.root_device, draws_on=self.root_device)
        place_without_parameters(module, self.root_device)

    @property
    def _offloads(self) -> bool:
        return self.cpu_offload and self.root_device.type != "cpu"

    def _shard(self, module: Any, *, as_whole: bool) -> None:
        from torch.distributed.fsdp import fully_shard

        policy = self._policy()
        arguments = self._arguments(module)
        is_begun = any(
            is_sharded_whole(inner) for inner in module.modules()
        )  # by configure_model: the rest is one unit
        if policy.param_dtype is not None and self.mixed_precision is None and not is_begun:
            for norm in _with_running_statistics(module):
                fully_shard(norm, mp_policy=type(policy)(), **arguments)  # statistics of 16 bits are of no use
        units = find_units(module, self.auto_wrap_policy) if not is_begun else []
        for unit in units:
            if not is_sharded_whole(unit):
                fully_shard(unit, mp_policy=policy, **arguments)
        if as_whole:
            # A batch is no input of a layer: autocast brings inputs and weights together, labels stay as they are.
            own = policy if self.mixed_precision is not None else replace(policy, cast_forward_inputs=False)
            known_as = type(module)
            fully_shard(module, mp_policy=own, **arguments)
            _name_like(type(module), known_as)
            return
        for child in callable_children(module):
            if not is_sharded_whole(child):
                fully_shard(child, mp_policy=policy, **arguments)

    def _policy(self) -> MixedPrecisionPolicy:
        from torch.distributed.fsdp import MixedPrecisionPolicy

        if self.mixed_precision is not None:
            return self.mixed_precision
        name = self.precision_plugin.name if self.precision_plugin is not None else "32-true"
        dtypes = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
        if name not in dtypes:
            return MixedPrecisionPolicy()
        return MixedPrecisionPolicy(param_dtype=dtypes[name], reduce_dtype=torch.float32)

    def _arguments(self, module: nn.Module) -> dict[str, Any]:
        from torch.distributed.fsdp import CPUOffloadPolicy

        arguments: dict[str, Any] = {"mesh": self._mesh}
        if self.reshard_after_forward is not None:
            arguments["reshard_after_forward"] = self.reshard_after_forward
        if "reshard_after_forward" in self._rest:
            arguments["reshard_after_forward"] = self._rest["reshard_after_forward"]
        if self._offloads:
            arguments["offload_policy"] = CPUOffloadPolicy()
        ignored = {p for inner in self._rest.get("ignored_modules", ()) for p in inner.parameters()}
        if ignored:
            for parameter in ignored:
                parameter.data = parameter.data.to(self.root_device)
            arguments["ignored_params"] = ignored
        return arguments

    def _check_manual(self, module: Any) -> None:
        if module.automatic_optimization:
            return
        if is_sharded_whole(module):
            raise MisconfigurationException(
                f"{type(module).__name__} optimizes manually, and fully_shard was applied to it as a whole: it goes "
                "backward while its forward pass is under way. Apply fully_shard to its children instead."
            )
        own = [name for name, _ in module.named_parameters(recurse=False)]
        if own:
            raise MisconfigurationException(
                f"{type(module).__name__} optimizes manually and has parameters of its own: {', '.join(own)}. Under "
                "FSDP they would be in parts whenever a step uses them. Put them into a submodule that is called."
            )

    # ------------------------------------------------------------------------------------------------- the steps

    def wrap_step(self, step: Callable[..., Any], *, name: str = "training_step") -> Callable[..., Any]:
        module = self.lightning_module
        if not is_sharded_whole(module):
            self._sync = self._training = None
            return step  # its children are called by the step, and gather themselves
        if name != "training_step":
            return route_evaluation(module, step, list(module.buffers()) if self.world_size > 1 else ())
        self._sync, self._training = GradientSync(module), None
        if module.compiler is not None:
            # dynamo's own, as it looks at parameters that have just been gathered
            warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
            step = demanding_loss(step, "a compiled module under FSDP") if self.world_size > 1 else step
        if self.world_size == 1 or module.compiler is not None:
            return route_training(module, step)
        if self._zero_pass is None:
            self._zero_pass = ZeroPass(module, [inner for inner in module.modules() if _is_unit_of(inner, module)])
        self._training = RoutedTraining(module, step, self._zero_pass, lambda: self._sync.is_on)
        return self._training

    @contextmanager
    def on_trial(self) -> Iterator[Callable[[Any], None]]:
        kept = self._sync, self._training
        try:
            yield self.wrap_training
        finally:
            self._sync, self._training = kept

    def set_grad_sync(self) -> Callable[[bool], None] | None:
        return self._sync.set if self._sync is not None else None

    def no_grad_sync(self) -> AbstractContextManager[None]:
        return GradientSync(self.lightning_module).off()

    def build_votes(self, agreement: Agreement) -> Votes | None:
        if self._sync is None or self.world_size == 1:
            return None
        return open_votes(self, agreement, self._take_zero_loss)

    def _take_zero_loss(self) -> torch.Tensor | None:
        return self._training.take_zero_loss() if self._training is not None else None

    # ------------------------------------------------------------------------------------- loops of the user's own

    def wrap_module(self, module: nn.Module, *, move_to_device: bool = True) -> nn.Module:
        if not (is_sharded_whole(module) or _are_parts(module)):  # by the user
            self._spread(module, as_whole=True)
        return module

    def init_context(self, *, is_empty: bool) -> AbstractContextManager[Any]:
        return torch.device("meta") if is_empty else nullcontext()  # order matters: parts are moved, not the whole


def _name_like(cls: type, original: type) -> None:
    """Give the class that `fully_shard` has made the names of the user's, for messages and profiles."""
    cls.__name__, cls.__qualname__, cls.__module__ = original.__name__, original.__qualname__, original.__module__


def _is_unit_of(inner: nn.Module, module: nn.Module) -> bool:
    return inner is not module and is_sharded_whole(inner)


def _are_parts(module: nn.Module) -> bool:
    """Whether there are parameters, and none of them is whole."""
    from torch.distributed.tensor import DTensor

    parameters = list(module.parameters())
    return bool(parameters) and all(isinstance(parameter, DTensor) for parameter in parameters)


def _with_running_statistics(module: nn.Module) -> list[nn.Module]:
    """Batch norms, and whatever else keeps a running mean, with parameters."""
    return [
        inner
        for inner in module.modules()
        if getattr(inner, "running_mean", None) is not None and next(inner.parameters(recurse=False), None) is not None
    ]
