"""Every process holds the whole model and sees its own data; gradients are averaged by DistributedDataParallel."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fulgur.errors import MisconfigurationException
from fulgur.strategies.batch_norm import Replaced, restore_batch_norms, share_batch_norms
from fulgur.strategies.parallel import ParallelStrategy, broadcast_module
from fulgur.strategies.single_device import move_to_host
from fulgur.strategies.votes import Votes, open_votes, zero_of

if TYPE_CHECKING:
    from fulgur.agreement import Agreement
    from fulgur.checkpoint.io import CheckpointIO
    from fulgur.launch.environments import ClusterEnvironment

StartMethod = Literal["popen", "spawn", "fork", "forkserver"]


class DDPStrategy(ParallelStrategy):
    """Train with torch's DistributedDataParallel; evaluate with the bare module.

    Args:
        accelerator: Kind of the devices, for a Trainer that is given none.
        parallel_devices: Device of each process of this machine. None takes those of the Trainer.
        cluster_environment: Says which of the processes this one is. None finds it.
        checkpoint_io: Writes and reads checkpoints; None is the default one.
        precision_plugin: Number formats, for a Trainer that is given none.
        ddp_comm_state: First argument of `ddp_comm_hook`; None where it is left out means the process group.
        ddp_comm_hook: How a bucket of gradients is reduced, see ``torch.distributed.algorithms.ddp_comm_hooks``.
        ddp_comm_wrapper: Wraps `ddp_comm_hook`.
        model_averaging_period: Not supported; None.
        process_group_backend: "gloo", "nccl", …; None takes what suits the devices.
        timeout: How long a collective waits for the other ranks.
        start_method: How the processes of this machine are started where nothing else does: "popen" runs the command
            again, "spawn", "fork" and "forkserver" start functions.
        **kwargs: For DistributedDataParallel: ``find_unused_parameters``, ``static_graph``,
            ``gradient_as_bucket_view``, ``bucket_cap_mb``, ``broadcast_buffers``, ….
            ``find_unused_parameters`` is False unless there are several optimizers, which leave out each other's
            parameters.
    """

    def __init__(
        self,
        accelerator: Any = None,
        parallel_devices: list[torch.device] | None = None,
        cluster_environment: ClusterEnvironment | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision_plugin: Any = None,
        ddp_comm_state: Any = None,
        ddp_comm_hook: Callable[..., Any] | None = None,
        ddp_comm_wrapper: Callable[..., Any] | None = None,
        model_averaging_period: int | None = None,
        process_group_backend: str | None = None,
        timeout: timedelta | None = None,
        start_method: StartMethod = "popen",
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
        if model_averaging_period is not None:
            raise MisconfigurationException(
                f"model_averaging_period={model_averaging_period}: ranks that train apart and average their models now "
                "and then are not supported. Leave it out."
            )
        self.start_method = start_method
        self.ddp_kwargs = kwargs
        self._comm_state, self._comm_hook, self._comm_wrapper = ddp_comm_state, ddp_comm_hook, ddp_comm_wrapper
        self._ddp: TrainingDDP | None = None
        self._step: Callable[..., Any] | None = None
        self._batch_norms: Replaced = []

    @property
    def _ddp_kwargs(self) -> dict[str, Any]:
        return self.ddp_kwargs  # some packages read, and fill, it by this name

    # ------------------------------------------------------------------------------------------------ the model

    def wrap_step(self, step: Callable[..., Any], *, name: str = "training_step") -> Callable[..., Any]:
        if name != "training_step":
            return step
        self._step = step
        return self._run_step

    def _run_step(self, *args: Any, **kwargs: Any) -> Any:
        if self._ddp is None:
            return self._step(*args, **kwargs)  # type: ignore[misc]
        try:
            return self._ddp(*args, **kwargs)
        except RuntimeError as error:
            explain_unused(error)
            raise

    def wrap_training(self, module: Any) -> None:
        if self.layer_sync is not None:
            self.layer_sync.apply(module)
        elif self.sync_batchnorm:
            self._batch_norms = share_batch_norms(module, self.root_device)
        self._wrap(module)

    @contextmanager
    def on_trial(self) -> Iterator[Callable[[Any], None]]:
        ddp, step = self._ddp, self._step
        try:
            yield self.wrap_training if ddp is None else self._take_step
        finally:
            self._step = step
            if ddp is None:
                self._unwrap()
            else:
                assert step is not None
                ddp.training_step = step

    def _take_step(self, module: Any) -> None:
        assert self._ddp is not None
        assert self._step is not None
        self._ddp.training_step = self._step

    def _unwrap(self) -> None:
        self._ddp, self.model = None, self.lightning_module
        self._restore_layers()
        gc.collect()  # order matters: until the reducer is gone its hooks are on the parameters

    def _restore_layers(self) -> None:
        restore_batch_norms(self._batch_norms)
        self._batch_norms = []
        if self.layer_sync is not None and self.lightning_module is not None:
            self.layer_sync.revert(self.lightning_module)

    def follow_trainable(self, module: Any) -> None:
        if self._step is None:
            return
        self._ddp, self.model = None, module
        gc.collect()  # order matters: until the reducer is gone its hooks are on the parameters
        self._wrap(module)

    def _wrap(self, module: Any) -> None:
        if not any(parameter.requires_grad for parameter in module.parameters()):  # DDP would refuse
            broadcast_module(module)
            return
        arguments = dict(self.ddp_kwargs)
        if len(self.optimizers) > 1 and not arguments.get("static_graph"):
            arguments.setdefault("find_unused_parameters", True)
        self._ddp = self.model = TrainingDDP(module, **arguments)
        assert self._step is not None
        self._ddp.training_step = self._step
        self._ddp.is_manual = not module.automatic_optimization
        self._ddp.require_backward_grad_sync = module.automatic_optimization
        self._register_hook(self._ddp)

    def _register_hook(self, ddp: DistributedDataParallel) -> None:
        if self._comm_hook is not None:
            hook = self._comm_hook if self._comm_wrapper is None else self._comm_wrapper(self._comm_hook)
            ddp.register_comm_hook(self._comm_state, hook)

    def set_grad_sync(self) -> Callable[[bool], None] | None:
        return self._set_grad_sync

    def _set_grad_sync(self, is_on: bool) -> None:
        if self._ddp is not None:
            self._ddp.require_backward_grad_sync = is_on

    def prepare_backward(self, loss: Tensor) -> None:
        if self._ddp is not None:
            try:
                self._ddp.prepare_backward(loss)
            except RuntimeError as error:
                explain_unused(error)
                raise

    @contextmanager
    def no_grad_sync(self) -> Iterator[None]:
        if self._ddp is None:
            yield
            return
        was, self._ddp.reduces = self._ddp.reduces, False
        try:
            yield
        finally:
            self._ddp.reduces = was

    def build_votes(self, agreement: Agreement) -> Votes | None:
        if self._ddp is None or self._ddp.is_manual:
            return None
        return open_votes(self, agreement, self._take_zero_loss)

    def _take_zero_loss(self) -> Tensor | None:
        return self._ddp.take_zero_loss() if self._ddp is not None else None

    def teardown(self) -> None:
        """Take the wrapper off; move module and optimizer state to the host, so that the device's memory is free."""
        self._ddp, self.model = None, self.lightning_module
        self._restore_layers()
        move_to_host(self)

    # ------------------------------------------------------------------------------------- loops of the user's own

    def wrap_module(self, module: nn.Module, *, move_to_device: bool = True) -> nn.Module:
        module = super().wrap_module(module, move_to_device=move_to_device)
        if not any(parameter.requires_grad for parameter in module.parameters()):  # DDP would refuse
            broadcast_module(module)
            return module
        wrapped = RoutedDDP(module, **self.ddp_kwargs)
        self._register_hook(wrapped)
        return wrapped

    def route(self, wrapped: nn.Module, method: Callable[..., Any] | None = None) -> Callable[..., Any]:
        if method is None or not isinstance(wrapped, RoutedDDP):
            return super().route(wrapped, method)
        return partial(wrapped.call, method)

    def no_sync_of(self, wrapped: nn.Module) -> Callable[[], AbstractContextManager[Any]]:
        return wrapped.no_sync if isinstance(wrapped, DistributedDataParallel) else nullcontext


class RoutedDDP(DistributedDataParallel):
    """DistributedDataParallel whose forward pass may be another method of the module, too."""

    _method: Callable[..., Any] | None = None

    def call(self, method: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call `method` of the module as the forward pass."""
        self._method = method
        try:
            return self(*args, **kwargs)
        finally:
            self._method = None

    def _run_ddp_forward(self, *inputs: Any, **kwargs: Any) -> Any:
        if self._method is None:
            return super()._run_ddp_forward(*inputs, **kwargs)  # type: ignore[no-untyped-call]
        return self._method(*inputs, **kwargs)


class TrainingDDP(DistributedDataParallel):
    """DistributedDataParallel whose forward pass is the module's training step.

    Attributes:
        training_step: What a call of this object calls.
        is_manual: Whether the step goes backward itself; `prepare_backward` comes before each time.
        reduces: Whether that reduces gradients.
    """

    training_step: Callable[..., Any]
    is_manual = False
    reduces = True
    _zero_loss: Tensor | None = None
    _is_zero = False

    def _run_ddp_forward(self, *inputs: Any, **kwargs: Any) -> Any:
        outputs = self.training_step(*inputs, **kwargs)
        if outputs is None and self.require_backward_grad_sync and torch.is_grad_enabled():
            self._is_zero = True
            return self._nothing()
        return outputs

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        outputs = super().forward(*inputs, **kwargs)  # type: ignore[no-untyped-call]
        if self._is_zero:
            self._is_zero, self._zero_loss = False, outputs
            return None
        return outputs

    def take_zero_loss(self) -> Tensor | None:
        """The loss of no batch: zero gradients for all parameters of a forward pass that returned None.

        None where the last one did not, or gradients are not reduced after it.
        """
        loss, self._zero_loss = self._zero_loss, None
        return loss

    def prepare_backward(self, loss: Tensor) -> None:
        """Make the next backward pass, from `loss`, reduce gradients. For steps that go backward themselves."""
        self.require_forward_param_sync = True  # buffers, in the next forward pass
        if self.reduces and torch.is_grad_enabled():
            looks_for_unused = self.find_unused_parameters and not self.static_graph
            self.reducer.prepare_for_forward()
            self.reducer.prepare_for_backward([loss] if looks_for_unused else [])

    def _nothing(self) -> Tensor:
        """A loss with zero gradients for all parameters; where unused ones are looked for, one is enough."""
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        return zero_of(parameters[:1] if self.find_unused_parameters else parameters)


def explain_unused(error: RuntimeError) -> None:
    """Raise a plainer error than torch's where parameters got no gradient.

    Raises:
        MisconfigurationException: Parameters got no gradient in the step before.
    """
    if "Expected to have finished reduction in the prior iteration" in str(error):
        raise MisconfigurationException(
            "The loss of the last step did not depend on all parameters, and DistributedDataParallel waited for the "
            "gradients of the others. Use strategy='ddp_find_unused_parameters_true', or set requires_grad=False for "
            f"what is not trained. torch said: {error}"
        ) from error
