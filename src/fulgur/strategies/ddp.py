"""Every process holds the whole model and sees its own data; gradients are averaged by DistributedDataParallel."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fulgur.errors import MisconfigurationException
from fulgur.strategies.parallel import ParallelStrategy, broadcast_module
from fulgur.strategies.votes import Votes, zero_of

if TYPE_CHECKING:
    from fulgur.agreement import Agreement
    from fulgur.checkpoint.io import CheckpointIO
    from fulgur.launch.environments import ClusterEnvironment

StartMethod = Literal["popen", "spawn", "fork", "forkserver"]


class DDPStrategy(ParallelStrategy):
    """Train with torch's DistributedDataParallel; evaluate with the bare module.

    Args:
        accelerator: Accepted for compatibility: the Trainer's counts.
        parallel_devices: Device of each process of this machine. None takes those of the Trainer.
        cluster_environment: Says which of the processes this one is. None finds it.
        checkpoint_io: Writes and reads checkpoints; None is the default one.
        precision_plugin: Accepted for compatibility: the Trainer's counts.
        ddp_comm_state: First argument of `ddp_comm_hook`; None where it is left out means the process group.
        ddp_comm_hook: How a bucket of gradients is reduced, see ``torch.distributed.algorithms.ddp_comm_hooks``.
        ddp_comm_wrapper: Wraps `ddp_comm_hook`.
        model_averaging_period: Accepted for compatibility.
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
            parallel_devices=parallel_devices,
            cluster_environment=cluster_environment,
            process_group_backend=process_group_backend,
            timeout=timeout,
            checkpoint_io=checkpoint_io,
        )
        self.start_method = start_method
        self.ddp_kwargs = kwargs
        self._comm = (ddp_comm_state, ddp_comm_hook, ddp_comm_wrapper)
        self._ddp: TrainingDDP | None = None
        self._step: Callable[..., Any] | None = None

    # ------------------------------------------------------------------------------------------------ the model

    def setup_module(self, module: Any) -> nn.Module:
        self.lightning_module = module
        self.model = module.to(self.root_device)
        return self.model

    def wrap_step(self, step: Callable[..., Any], *, name: str = "training_step") -> Callable[..., Any]:
        if name != "training_step":
            return step
        self._step = step
        return self._run_step

    def _run_step(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self._ddp(*args, **kwargs)  # type: ignore[misc]
        except RuntimeError as error:
            explain_unused(error)
            raise

    def wrap_training(self, module: Any) -> None:
        assert self._step is not None
        broadcast_module(module)
        if not any(parameter.requires_grad for parameter in module.parameters()):
            self._run_step = self._step  # type: ignore[method-assign]  # nothing to reduce: DDP would refuse
            return
        self._ddp = self.model = TrainingDDP(module, init_sync=False, **self.ddp_kwargs)
        self._ddp.training_step = self._step

    def set_grad_sync(self) -> Callable[[bool], None] | None:
        def set_sync(is_on: bool) -> None:
            self._ddp.require_backward_grad_sync = is_on  # type: ignore[union-attr]

        return set_sync

    def build_votes(self, agreement: Agreement) -> Votes | None:
        if self._ddp is None or not self.lightning_module.automatic_optimization:
            return None
        return Votes(agreement, self.open_store("votes"), take_zero_loss=self._ddp.take_zero_loss)

    def teardown(self) -> None:
        self._ddp = None
        self.model = self.lightning_module


class TrainingDDP(DistributedDataParallel):
    """DistributedDataParallel whose forward pass is the module's training step.

    Attributes:
        training_step: What a call of this object calls.
    """

    training_step: Callable[..., Any]
    _zero_loss: Tensor | None = None
    _is_zero = False

    def _run_ddp_forward(self, *inputs: Any, **kwargs: Any) -> Any:
        outputs = self.training_step(*inputs, **kwargs)
        if outputs is None and self.require_backward_grad_sync:
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
