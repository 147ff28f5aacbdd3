"""Strategy: the processes of a run, their devices, and what they say to each other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fulgur.checkpoint.io import CheckpointIO, TorchCheckpointIO
from fulgur.errors import CheckpointError

if TYPE_CHECKING:
    from fulgur.agreement import Agreement
    from fulgur.launch.environments import ClusterEnvironment
    from fulgur.launch.launcher import Launcher
    from fulgur.loops.plan import StepPlan
    from fulgur.precision.precision import Precision
    from fulgur.strategies.layer_sync import LayerSync
    from fulgur.strategies.votes import Votes


class Strategy(ABC):
    """How a model is placed on one or many processes. Subclass to add one.

    A strategy is given the module and returns what the loops call; it does not know the Trainer.

    Attributes:
        model: What the steps run through: the module, or a wrapper around it. None before `setup_module`.
        lightning_module: The bare module.
        optimizers: Set by the run, for user code that looks here.
        lr_scheduler_configs: Likewise.
        checkpoint_io: Writes, reads and deletes checkpoints; a plugin of the Trainer may take its place.
        parallel_devices: Device of each process of this machine. Set by the Trainer unless given.
        num_nodes: Machines. Set by the Trainer.
        cluster_environment: Says which of the processes this one is; None on one process.
        launcher: Starts the other processes; None where there are none, or something else has started them.
        sync_batchnorm: Whether batch norm layers see the batches of all ranks in training. Set by the Trainer.
        forward_is_collective: Whether a forward pass waits for the other ranks, so that all need the same number.
        restores_after_setup: Whether weights are loaded into the module after `setup_module`, rather than before.
        accelerator: Kind of the devices; set by the Trainer.
        precision_plugin: Number formats; set by the Trainer.
        own_accelerator, own_precision: Those that the strategy was made with, which the Trainer takes; None for none.
        layer_sync: Makes layers see all ranks in training; a plugin of the Trainer.
    """

    forward_is_collective: bool = False
    restores_after_setup: bool = False

    def __init__(
        self, accelerator: Any = None, checkpoint_io: CheckpointIO | None = None, precision_plugin: Any = None
    ) -> None:
        self.accelerator = self.own_accelerator = accelerator
        self.model: nn.Module | None = None
        self.lightning_module: Any = None
        self.optimizers: list[Any] = []
        self.lr_scheduler_configs: list[Any] = []
        self.checkpoint_io: CheckpointIO = checkpoint_io or TorchCheckpointIO()
        self.parallel_devices: list[torch.device] = []
        self.num_nodes = 1
        self.cluster_environment: ClusterEnvironment | None = None
        self.launcher: Launcher | None = None
        self.sync_batchnorm = False
        self.precision_plugin: Precision | None = precision_plugin
        self.own_precision: Precision | None = precision_plugin
        self.layer_sync: LayerSync | None = None

    # ------------------------------------------------------------------------------------------- the processes

    @property
    @abstractmethod
    def root_device(self) -> torch.device:
        """Device of this process."""

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return 1

    @property
    def global_rank(self) -> int:
        """Rank among all processes."""
        return 0

    @property
    def local_rank(self) -> int:
        """Rank among the processes of this machine."""
        return 0

    @property
    def node_rank(self) -> int:
        """Index of this machine."""
        return 0

    @property
    def is_global_zero(self) -> bool:
        """Whether this process writes files and prints."""
        return self.global_rank == 0

    @property
    def is_distributed(self) -> bool:
        """Whether there is more than one process."""
        return self.world_size > 1

    @property
    def data_rank(self) -> int:
        """Rank among the processes that see different data."""
        return self.global_rank

    @property
    def data_size(self) -> int:
        """Number of processes, or groups of them, that see different data."""
        return self.world_size

    @property
    def data_leaders(self) -> Sequence[int]:
        """Global ranks that see different data, one for each data rank: what these log is all there is."""
        return range(self.world_size)

    @property
    def distributed_sampler_kwargs(self) -> dict[str, int] | None:
        """Arguments of a `DistributedSampler` for this process; None on one process."""
        return {"num_replicas": self.data_size, "rank": self.data_rank} if self.is_distributed else None

    def set_up_environment(self) -> None:
        """Join the other processes. Called in each process before anything else of a run; again does nothing.

        All ranks must reach this.
        """

    @property
    def store(self) -> Any:
        """A key-value store that all ranks share, with keys of the caller's choice; None on one process.

        A thread that waits on it holds up the others of its process: `open_stores` gives a thread its own.
        """
        return None

    def open_store(self, name: str) -> Any:
        """A key-value store that all ranks share, with keys of its own; None on one process.

        It is for the main thread, where it must not keep others waiting for long; see `open_stores`. All ranks must ask
        for the same names in the same order: asked again, a name stands for another, empty store.
        """
        stores = self.open_stores(name, ("main",))
        return stores[0] if stores else None

    def open_stores(self, name: str, connections: Sequence[str]) -> list[Any]:
        """The store `name`, once for each connection; an empty list on one process.

        While one thread waits for a key, no other can use the same connection. A connection is opened when it is first
        asked for, which takes a while, and kept.
        """
        return []

    # ------------------------------------------------------------------------------------------------ the model

    def prepare_configuration(self, module: nn.Module) -> None:
        """Called before ``configure_model`` of a module that has one. All ranks must reach this."""

    def setup_module(self, module: Any) -> nn.Module:
        """Place `module` on the device and wrap it. Returns what is kept as `model`."""
        self.connect(module)
        self.model_to_device()
        assert self.model is not None
        return self.model

    def connect(self, model: Any) -> None:
        """Take a module as the one that is trained."""
        self.lightning_module = self.model = model

    def model_to_device(self) -> None:
        """Move the module to the device of this process."""
        self.lightning_module.to(self.root_device)

    def batch_to_device(self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0) -> Any:
        """A batch on `device`, by default that of this process. Override it to bring batches there another way."""
        from fulgur.data.transfer import move_to_device

        return move_to_device(batch, device or self.root_device)

    def wrap_step(self, step: Callable[..., Any], *, name: str = "training_step") -> Callable[..., Any]:
        """`step`, the method `name` of the module, routed through the wrapper that synchronises gradients.

        Called before `wrap_training`; what is returned is called after it.
        """
        return step

    def adapt_plan(
        self, plan: StepPlan, *, clip_val: float | None, clip_algorithm: str | None, accumulate: int
    ) -> None:
        """Change what a step calls, where an engine of the strategy's does part of it. Called before `wrap_training`.

        Args:
            plan: Of automatic or manual optimization.
            clip_val, clip_algorithm: The Trainer's clipping.
            accumulate: Batches to an optimizer step, as training begins.
        """

    def wrap_training(self, module: Any) -> None:
        """Make `module` ready to train, with its optimizers built and everything restored. All ranks must reach this.

        The weights of rank 0 are those of all ranks from here on.
        """

    @contextmanager
    def on_trial(self) -> Iterator[Callable[[Any], None]]:
        """Within the block other steps than the run's may be wrapped and trained; afterwards the run's are as before.

        Yields what stands for `wrap_training` there. All ranks must reach this.
        """
        yield self.wrap_training

    def prepare_backward(self, loss: Tensor) -> None:
        """Before each backward pass of manual optimization: make it reduce gradients."""

    def no_grad_sync(self) -> AbstractContextManager[None]:
        """A context in which backward passes of manual optimization do not reduce gradients."""
        return nullcontext()

    def build_votes(self, agreement: Agreement) -> Votes | None:
        """What counts the ranks that have a loss; None where every rank must have one. All ranks must reach this."""
        return None

    def prepare_evaluation(self, module: Any) -> None:
        """Make `module` ready to be evaluated without having been trained. All ranks must reach this.

        The weights of rank 0 are those of all ranks from here on.
        """

    def set_grad_sync(self) -> Callable[[bool], None] | None:
        """A function that turns gradient reduction on or off; None where there is nothing to reduce."""
        return None

    def teardown(self) -> None:
        """Take the module off the device, and leave the process as it was found."""

    # ------------------------------------------------------------------------------------- loops of the user's own

    def wrap_module(self, module: nn.Module, *, move_to_device: bool = True) -> nn.Module:
        """Make any module ready for a loop of the user's own. Returns what synchronises gradients when it is called.

        `Fabric` calls it once for each of its modules, where the Trainer calls `setup_module`. All ranks must reach
        this.
        """
        return module.to(self.root_device) if move_to_device else module

    def route(self, wrapped: nn.Module, method: Callable[..., Any] | None = None) -> Callable[..., Any]:
        """What such a loop calls: `wrapped`, or `method` of the module in it, with its gradients synchronised."""
        return wrapped if method is None else method

    def route_compiled(self, wrapped: nn.Module, compiled: Callable[..., Any]) -> Callable[..., Any]:
        """What such a loop calls where ``torch.compile`` has made `compiled` of `wrapped`."""
        return compiled

    def no_sync_of(self, wrapped: nn.Module) -> Callable[[], AbstractContextManager[Any]]:
        """Makes contexts in which backward passes through `wrapped` do not reduce gradients."""
        return nullcontext

    def init_context(self, *, is_empty: bool) -> AbstractContextManager[Any]:
        """A context in which modules are made where they will be; `is_empty` where their values do not matter."""
        return self.root_device

    # --------------------------------------------------------------------------------------- talking to each other

    @abstractmethod
    def barrier(self, name: str | None = None) -> None:
        """Wait until all ranks are here."""

    @abstractmethod
    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """`obj` of rank `src`, on all ranks."""

    def all_reduce(self, tensor: Any, group: Any = None, reduce_op: str = "mean") -> Any:
        """Another name of `reduce`."""
        return self.reduce(tensor, group, reduce_op)

    @abstractmethod
    def reduce(self, tensor: Any, group: Any = None, reduce_op: str = "mean") -> Any:
        """`tensor` reduced over all ranks."""

    @abstractmethod
    def all_gather(self, tensor: Tensor, group: Any = None, sync_grads: bool = False) -> Tensor:
        """`tensor` of all ranks, stacked along a new first dimension; unchanged on one process."""

    def all_gather_object(self, obj: Any) -> list[Any]:
        """`obj` of each rank, in their order, on all ranks. Objects are pickled. All ranks must reach this."""
        return [obj]

    def gather_object(self, obj: Any) -> list[Any] | None:
        """`obj` of each rank, in their order, on rank 0; None on the others. All ranks must reach this."""
        return [obj]

    def all_gather_nested(self, data: Any, group: Any = None, sync_grads: bool = False) -> Any:
        """`all_gather` of every tensor in a nesting of lists, tuples and dicts."""
        if self.world_size == 1:
            return data
        if isinstance(data, Tensor):
            return self.all_gather(data, group, sync_grads)
        if isinstance(data, dict):
            return type(data)((k, self.all_gather_nested(v, group, sync_grads)) for k, v in data.items())
        if isinstance(data, (list, tuple)):
            return type(data)(self.all_gather_nested(v, group, sync_grads) for v in data)
        return data

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        """Whether all ranks (or, with ``all=False``, any) decided for it."""
        if self.world_size == 1:
            return bool(decision)
        votes = int(self.reduce(torch.tensor(int(decision), device=self.root_device), reduce_op="sum"))
        return votes == self.world_size if all else votes > 0

    def follow_trainable(self, module: Any) -> None:
        """After parameters were frozen or unfrozen between two steps: reduce the gradients of those that learn now.

        All ranks must reach this.
        """

    # -------------------------------------------------------------------------------- under the names of Lightning
    # What a subclass overrides of these takes part in a run of the Trainer: see `own_parts`.

    def setup_environment(self) -> None:
        """Join the other processes."""
        type(self).set_up_environment(self)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """The module's step, on one batch."""
        return self._run_named_step("training_step", args, kwargs)

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """The module's step, on one batch."""
        return self._run_named_step("validation_step", args, kwargs)

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        """The module's step, on one batch."""
        return self._run_named_step("test_step", args, kwargs)

    def predict_step(self, *args: Any, **kwargs: Any) -> Any:
        """The module's step, on one batch."""
        return self._run_named_step("predict_step", args, kwargs)

    def process_dataloader(self, dataloader: Any) -> Any:
        """A loader, or a collection of them, as the program or a hook gave it; what is returned takes its place."""
        return dataloader

    def backward(self, closure_loss: Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """The backward pass of a loss."""
        closure_loss.backward(*args, **kwargs)

    def optimizer_step(self, optimizer: Any, closure: Callable[[], Any], model: Any = None, **kwargs: Any) -> Any:
        """One step; `closure` runs forward and backward pass, hooks and clipping, and returns the loss."""
        return optimizer.step(closure=closure, **kwargs)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """State of the module as it is saved."""
        return type(self).model_state(self, self.lightning_module)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Load the module's state from a checkpoint."""
        type(self).load_model_state(self, self.lightning_module, checkpoint["state_dict"], strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load the states of `optimizers` from a checkpoint, in their order."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            self.load_optimizer_state(optimizer, state)

    def has_own(self, name: str) -> bool:
        """Whether a subclass overrides the method `name`."""
        return getattr(type(self), name) is not getattr(Strategy, name)

    def _run_named_step(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        step = self.__dict__.get("_steps", {}).get(name) or getattr(self.lightning_module, name)
        return step(*args, **kwargs)

    # ------------------------------------------------------------------------------------------------- states

    def model_state(self, module: nn.Module) -> dict[str, Any]:
        """State of `module` as it is saved: whole tensors under its own names. All ranks must reach this.

        What is returned counts on rank 0; elsewhere it may be empty.
        """
        return module.state_dict()

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """State of `optimizer` as it is saved. All ranks must reach this; what is returned counts on rank 0."""
        state: dict[str, Any] = optimizer.state_dict()
        return state

    def load_model_state(self, module: nn.Module, state: Mapping[str, Any], *, strict: bool = True) -> Any:
        """Load what `model_state` of any strategy returned. Returns what ``load_state_dict`` does."""
        return module.load_state_dict(state, strict=strict)

    def load_optimizer_state(self, optimizer: Any, state: Mapping[str, Any]) -> None:
        """Load what `optimizer_state` of any strategy returned."""
        optimizer.load_state_dict(state)

    # ------------------------------------------------------------------------------------------------- files

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        filepath: Any,
        storage_options: Any = None,
        *,
        checkpoint_io: CheckpointIO | None = None,
    ) -> None:
        """Write a checkpoint from rank 0. All ranks must call it, and all get the error if it fails.

        Args:
            checkpoint: What to write.
            filepath: Path or URL.
            storage_options: For the `CheckpointIO`.
            checkpoint_io: What to write with. ``None`` is the one that is also read with.
        """
        failure: CheckpointError | None = None
        if self.is_global_zero:
            try:
                (checkpoint_io or self.checkpoint_io).save_checkpoint(
                    checkpoint, filepath, storage_options=storage_options
                )
            except CheckpointError as error:
                failure = error
        failure = self.broadcast(failure)  # all ranks must reach this
        if failure is not None:
            raise failure

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint into host memory."""
        trust = {} if weights_only is None else {"weights_only": weights_only}
        return self.checkpoint_io.load_checkpoint(checkpoint_path, map_location="cpu", **trust)

    def remove_checkpoint(self, filepath: Any) -> None:
        """Delete a checkpoint, from rank 0."""
        if self.is_global_zero:
            self.checkpoint_io.remove_checkpoint(filepath)
