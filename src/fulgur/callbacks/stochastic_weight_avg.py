"""Stochastic weight averaging: the mean of the weights at the start of late epochs, at a constant learning rate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import SWALR, AveragedModel

from fulgur.callbacks.weight_averaging import require_whole_weights
from fulgur.errors import MisconfigurationException
from fulgur.hooks import Callback
from fulgur.optim.configure import LRSchedulerConfig
from fulgur.rank import rank_zero_info
from fulgur.rng import isolate_rng

if TYPE_CHECKING:
    from fulgur.module import LightningModule
    from fulgur.trainer import Trainer

_HOST = torch.device("cpu")


class StochasticWeightAveraging(Callback):
    """From `swa_epoch_start` on anneal the learning rate to `swa_lrs`, average the weights, and end with the average.

    The weights join the average at the start of each epoch from that one on, those that the last epoch leaves do not.
    The learning-rate scheduler is replaced by torch's `SWALR`. When training ends, the average takes the place of the
    weights; if there is batch norm, its statistics are computed anew, in one pass over the training batches that
    neither logs nor trains. Validations before see the trained weights, and so checkpoints saved before hold these,
    files of weights alone too: a file has the weights that its score was measured with. A whole checkpoint has the
    average in the callback's state.

    Args:
        swa_lrs: Learning rate to anneal to: one for all parameter groups, or one for each. > 0.
        swa_epoch_start: An int is the epoch to start with, counted from 1; a float the fraction of `max_epochs`.
        annealing_epochs: Epochs that the annealing takes. >= 0.
        annealing_strategy: "cos" or "linear".
        avg_fn: Takes average, weights and the number of averaged weights so far, and gives the new average. None is
            the mean.
        device: Where the average is kept; None is where the module is.

    Raises:
        MisconfigurationException: An argument is out of range; or, when a fit begins, there is not exactly one
            optimizer, there is more than one scheduler, the strategy splits the weights over ranks, or a fractional
            start meets no `max_epochs`.

    Source:
        Izmailov et al., arXiv:1803.05407.

    Example:
        >>> trainer = Trainer(max_epochs=10, callbacks=[StochasticWeightAveraging(swa_lrs=1e-2)])
    """

    def __init__(
        self,
        swa_lrs: float | Sequence[float],
        swa_epoch_start: int | float = 0.8,
        annealing_epochs: int = 10,
        annealing_strategy: Literal["cos", "linear"] = "cos",
        avg_fn: Callable[[Tensor, Tensor, Tensor | int], Tensor] | None = None,
        device: torch.device | str | None = _HOST,
    ) -> None:
        _check_arguments(swa_lrs, swa_epoch_start, annealing_epochs, annealing_strategy)
        if avg_fn is not None and not callable(avg_fn):
            raise MisconfigurationException(f"avg_fn={avg_fn!r} is no function. Pass one, or None for the mean.")
        if device is not None and not isinstance(device, (torch.device, str)):
            raise MisconfigurationException(f"device={device!r} is no device. Pass a torch.device, a str or None.")
        self._swa_lrs, self._swa_epoch_start = swa_lrs, swa_epoch_start
        self._annealing_epochs, self._annealing_strategy = annealing_epochs, annealing_strategy
        self._avg_fn, self._device = avg_fn, device
        self._first_epoch = 0
        self._average_model: AveragedModel | None = None
        self._scheduler: SWALR | None = None
        self._latest_update_epoch = -1
        self._restored: dict[str, Any] | None = None

    @property
    def swa_start(self) -> int:
        """Index of the first epoch at whose start the weights join the average."""
        return self._first_epoch

    def state_dict(self) -> dict[str, Any]:
        if self._average_model is None or self._scheduler is None:
            return {"n_averaged": 0, "latest_update_epoch": -1, "scheduler_state": None, "average_model_state": None}
        return {
            "n_averaged": int(self._average_model.n_averaged),  # waits for the device
            "latest_update_epoch": self._latest_update_epoch,
            "scheduler_state": self._scheduler.state_dict(),
            "average_model_state": self._average_model.module.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["average_model_state"] is not None:
            self._restored = state_dict
            self._latest_update_epoch = state_dict["latest_update_epoch"]

    # --------------------------------------------------------------------------------------------------- the run

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        require_whole_weights(trainer, type(self).__name__)
        self._average_model = self._scheduler = self._restored = None
        self._latest_update_epoch = -1
        start = self._swa_epoch_start
        if isinstance(start, float):
            if trainer.max_epochs in (None, -1):
                raise MisconfigurationException(
                    f"StochasticWeightAveraging(swa_epoch_start={start}) is a fraction of max_epochs, and this Trainer "
                    f"has max_epochs={trainer.max_epochs}. Give the Trainer max_epochs, or an int here."
                )
            self._first_epoch = int((trainer.max_epochs or 0) * start)
        else:
            self._first_epoch = max(start - 1, 0)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        n_optimizers, n_schedulers = len(trainer.optimizers), len(trainer.lr_scheduler_configs)
        if n_optimizers != 1 or n_schedulers > 1:
            raise MisconfigurationException(
                f"StochasticWeightAveraging works with one optimizer and at most one learning-rate scheduler; "
                f"configure_optimizers returned {n_optimizers} and {n_schedulers}."
            )
        takes_iterator = trainer.fit_loop.plan.takes_iterator
        if _batch_norms(pl_module) and (takes_iterator or not pl_module.automatic_optimization):
            what = "takes dataloader_iter" if takes_iterator else "optimizes by itself"
            raise MisconfigurationException(
                "StochasticWeightAveraging computes the statistics of batch norm anew by calling training_step with "
                f"each batch, and that of {type(pl_module).__name__} {what}. Use automatic optimization and "
                "training_step(self, batch, batch_idx)."
            )
        if self._restored is not None:
            state, self._restored = self._restored, None
            average = self._begin(trainer, pl_module)
            average.module.load_state_dict(state["average_model_state"])
            average.n_averaged.fill_(state["n_averaged"])

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch = trainer.current_epoch
        if epoch < self._first_epoch or epoch <= self._latest_update_epoch:
            return
        average = self._average_model or self._begin(trainer, pl_module)
        average.update_parameters(pl_module)
        self._latest_update_epoch = epoch

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._average_model is None:
            return
        with torch.no_grad():
            for own, average in zip(pl_module.parameters(), self._average_model.module.parameters(), strict=True):
                own.copy_(average)
        norms = _batch_norms(pl_module)
        if norms:
            _renew_statistics(norms, trainer, pl_module)  # all ranks must reach this

    def _begin(self, trainer: Trainer, module: LightningModule) -> AveragedModel:
        rank_zero_info("Stochastic weight averaging begins: SWALR takes the place of the learning-rate scheduler.")
        self._average_model = AveragedModel(module, device=self._device, avg_fn=self._avg_fn)  # type: ignore[arg-type]
        self._average_model.requires_grad_(False)
        lrs: Any = self._swa_lrs if isinstance(self._swa_lrs, float) else list(self._swa_lrs)
        self._scheduler = SWALR(trainer.optimizers[0], lrs, self._annealing_epochs, self._annealing_strategy)
        _put_scheduler(trainer, LRSchedulerConfig(self._scheduler))
        return self._average_model


def _check_arguments(lrs: Any, start: Any, annealing_epochs: Any, strategy: Any) -> None:
    if isinstance(start, bool) or not (
        (isinstance(start, int) and start >= 1) or (isinstance(start, float) and 0 <= start <= 1)
    ):
        raise MisconfigurationException(
            f"swa_epoch_start={start!r}: use an int of 1 or more, the epoch, or a float from 0 to 1, the fraction."
        )
    values = [lrs] if isinstance(lrs, float) else lrs
    is_list = isinstance(values, (list, tuple)) and len(values) > 0
    if not is_list or not all(isinstance(value, float) and value > 0 for value in values):
        raise MisconfigurationException(
            f"swa_lrs={lrs!r}: use a positive float, or a list of them, one for each group."
        )
    if not isinstance(annealing_epochs, int) or annealing_epochs < 0:
        raise MisconfigurationException(f"annealing_epochs={annealing_epochs!r}: use an int of 0 or more.")
    if strategy not in ("cos", "linear"):
        raise MisconfigurationException(f"annealing_strategy={strategy!r} is unknown. Use 'cos' or 'linear'.")


def _put_scheduler(trainer: Trainer, config: LRSchedulerConfig) -> None:
    """Make `config` the only learning-rate scheduler of a run."""
    trainer.lr_scheduler_configs[:] = [config]
    schedulers = trainer.fit_loop.plan.schedulers
    schedulers.by_step = schedulers.plateau_by_step = schedulers.plateau_by_epoch = ()
    schedulers.by_epoch = (config,)


# --------------------------------------------------------------------------------------------------------- batch norm


def _batch_norms(module: nn.Module) -> list[_BatchNorm]:
    """Layers that keep statistics."""
    return [m for m in module.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


@torch.no_grad()
def _renew_statistics(norms: list[_BatchNorm], trainer: Trainer, module: LightningModule) -> None:
    """Compute the statistics of `norms` for the weights as they are: the mean over all training batches."""
    loop = trainer.fit_loop
    step = loop.plan.updates[0].training_step
    with isolate_rng(), _silent(trainer), _averaging(norms), _without_broadcast(trainer.model):
        module.train()
        for batch_idx, batch in enumerate(loop.fetch):
            if loop.fetch.weight:
                step(batch, batch_idx)
    if trainer.world_size > 1:
        for norm in norms:
            for name in ("running_mean", "running_var"):
                value = getattr(norm, name)
                value.copy_(trainer.strategy.reduce(value.clone(), reduce_op="mean"))  # all ranks must reach this


@contextmanager
def _silent(trainer: Trainer) -> Iterator[None]:
    """Throw away what is logged."""
    metrics = trainer.metrics
    was, metrics.is_enabled = metrics.is_enabled, False
    try:
        yield
    finally:
        metrics.is_enabled = was


@contextmanager
def _averaging(norms: list[_BatchNorm]) -> Iterator[None]:
    """Begin statistics anew, as the mean of those of the batches."""
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


@contextmanager
def _without_broadcast(model: Any) -> Iterator[None]:
    """Keep DistributedDataParallel from overwriting the statistics of this rank with those of rank 0."""
    was = getattr(model, "broadcast_buffers", None)
    if was is None:
        yield
        return
    model.broadcast_buffers = False
    try:
        yield
    finally:
        model.broadcast_buffers = was
