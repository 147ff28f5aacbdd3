"""Averages of the weights of a training: of all steps alike, or exponentially weighted."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fulgur.callbacks.own_engine import has_own_engine
from fulgur.errors import MisconfigurationException, PossibleUserWarning
from fulgur.hooks import Callback, ignores_outputs
from fulgur.rank import rank_zero_warn

if TYPE_CHECKING:
    from fulgur.module import LightningModule
    from fulgur.trainer import Trainer

_PREFIX = "module."


class WeightAveraging(Callback):
    """Keep an average of the weights beside those that are trained, and validate, save and end with the average.

    The average is torch's `AveragedModel`. Until it holds anything, the weights themselves take its place. In a
    checkpoint ``state_dict`` is the average, so that it loads like any other; a resumed training goes on with the
    weights it had, which are there as ``current_model_state``. Files saved with ``save_weights_only=True`` hold the
    average alone.

    On several ranks each keeps the same average, for all have the same weights. Costs one call a step, one more set of
    weights, and the arithmetic of the average where `should_update` asks for it.

    Args:
        device: Where the average is kept. None is where the module is.
        use_buffers: Average the buffers too, such as the statistics of batch norm; else those of the latest update
            are kept.
        **kwargs: For `torch.optim.swa_utils.AveragedModel`: ``avg_fn`` or ``multi_avg_fn``. Without them all
            updates have the same weight.

    Raises:
        MisconfigurationException: When a fit begins: the strategy splits the weights over ranks.

    Example:
        >>> class FromEpochTen(WeightAveraging):
        ...     def should_update(self, step_idx=None, epoch_idx=None):
        ...         return epoch_idx is not None and epoch_idx >= 10
        >>> trainer = Trainer(callbacks=[FromEpochTen()])
    """

    def __init__(self, device: torch.device | str | int | None = None, use_buffers: bool = True, **kwargs: Any) -> None:
        self._device = device
        self._kwargs: dict[str, Any] = {"use_buffers": use_buffers, **kwargs}
        self._average_model: AveragedModel | None = None
        self._restored: tuple[list[Tensor], dict[str, Any]] | None = None
        self._latest_update_step = 0
        self._has_average = False
        self._is_swapped = False

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Whether the weights as they are now join the average. Override it for less than after every step.

        Args:
            step_idx: After an optimizer step, its index from 0; else None.
            epoch_idx: At the end of an epoch, its index from 0; else None. Not asked where a limit cuts an epoch short.
        """
        return step_idx is not None

    def state_dict(self) -> dict[str, Any]:
        return {"latest_update_step": self._latest_update_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._latest_update_step = state_dict["latest_update_step"]

    # ----------------------------------------------------------------------------------------------- the average

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        require_whole_weights(trainer, type(self).__name__)
        self._average_model, self._restored, self._latest_update_step = None, None, 0
        self._has_average = self._is_swapped = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._average_model = AveragedModel(pl_module, device=self._device, **self._kwargs)  # type: ignore[arg-type]
        self._average_model.requires_grad_(False)
        if self._restored is not None:
            self._take_restored(self._average_model, *self._restored)
            self._restored = None

    @torch.no_grad()
    def _take_restored(self, model: AveragedModel, tensors: list[Tensor], state: dict[str, Any]) -> None:
        for average, saved in zip(_tensors(model.module), tensors, strict=True):
            average.copy_(saved)
        model.load_state_dict(state, strict=False)
        self._has_average = bool(model.n_averaged > 0)

    @ignores_outputs
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        has_stepped = step > trainer.log_step and step > self._latest_update_step
        if has_stepped and self.should_update(step_idx=step - 1):
            self._update(pl_module)
            self._latest_update_step = step

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A run resumed from an epoch cut short comes to the end of that epoch again.
        if not trainer.fit_loop.is_epoch_cut and self.should_update(epoch_idx=trainer.current_epoch):
            self._update(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The trained weights stay in the average's place: a file saved from now on can still be resumed from.
        self._swap(pl_module, to_average=True)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._swap(pl_module, to_average=True)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._swap(pl_module, to_average=False)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._swap(pl_module, to_average=False)

    def _update(self, module: nn.Module) -> None:
        assert self._average_model is not None
        self._average_model.update_parameters(module)
        self._has_average = True

    @torch.no_grad()
    def _swap(self, module: nn.Module, *, to_average: bool) -> None:
        """Exchange the values of the module and the average, unless the module holds what is asked for."""
        if self._average_model is None or not self._has_average or self._is_swapped is to_average:
            return
        for own, average in zip(_tensors(module), _tensors(self._average_model.module), strict=True):
            kept = own.clone()
            own.copy_(average)
            average.copy_(kept)
        self._is_swapped = to_average

    # ---------------------------------------------------------------------------------------------- checkpoints

    def weights_to_deploy(self, weights: dict[str, Any]) -> dict[str, Any]:
        """What a file of weights alone holds: the average, once there is one.

        Args:
            weights: Those of the module.
        """
        if self._average_model is None or not self._has_average or self._is_swapped:
            return weights
        return self._average_model.module.state_dict()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._average_model is None:
            return
        other = self._average_model.module.state_dict()
        current, average = (other, checkpoint["state_dict"]) if self._is_swapped else (checkpoint["state_dict"], other)
        checkpoint["state_dict"] = average if self._has_average else current
        checkpoint["current_model_state"] = current
        state = self._average_model.state_dict()
        checkpoint["averaging_state"] = {k: v for k, v in state.items() if not k.startswith(_PREFIX)}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != "fit":
            return
        if "current_model_state" not in checkpoint:
            rank_zero_warn(
                f"The checkpoint was saved without {type(self).__name__} and holds no average. It begins with the "
                "weights of the checkpoint.",
                PossibleUserWarning,
            )
            return
        average = [tensor.detach().clone() for tensor in _tensors(pl_module)]
        self._restored = average, dict(checkpoint["averaging_state"])
        pl_module.load_state_dict(checkpoint["current_model_state"], strict=pl_module.strict_loading)


class EMAWeightAveraging(WeightAveraging):
    """Keep an exponential moving average of the weights: ``average = decay * average + (1 - decay) * weights``.

    See `WeightAveraging` for what is done with it. The first update takes the weights as they are.

    Args:
        device: Where the average is kept. None is where the module is.
        use_buffers: Average the buffers too.
        decay: Share of the average that an update keeps. 0 to 1.
        update_every_n_steps: Update after the optimizer steps whose index is a multiple of it; 0 for none.
        update_starting_at_step: Index of the first step that updates; None is the first of all.
        update_starting_at_epoch: Update at the end of epochs too, from this one on; None for no such updates. An epoch
            that a limit cuts short has no end: a resumed run goes on with it.
        **kwargs: For `torch.optim.swa_utils.AveragedModel`.

    Raises:
        ValueError: `decay` is not between 0 and 1, or `update_every_n_steps` is negative.

    Example:
        >>> trainer = Trainer(callbacks=[EMAWeightAveraging(decay=0.99)])
    """

    def __init__(
        self,
        device: torch.device | str | int | None = None,
        use_buffers: bool = True,
        decay: float = 0.999,
        update_every_n_steps: int = 1,
        update_starting_at_step: int | None = None,
        update_starting_at_epoch: int | None = None,
        **kwargs: Any,
    ) -> None:
        if not 0 <= decay <= 1:
            raise ValueError(f"EMAWeightAveraging(decay={decay}): use a number from 0 to 1, such as 0.999.")
        if update_every_n_steps < 0:
            raise ValueError(
                f"EMAWeightAveraging(update_every_n_steps={update_every_n_steps}): use 1 or more, or 0 for no updates "
                "after steps."
            )
        super().__init__(device=device, use_buffers=use_buffers, multi_avg_fn=get_ema_multi_avg_fn(decay), **kwargs)
        self.update_every_n_steps = update_every_n_steps
        self.update_starting_at_step = update_starting_at_step
        self.update_starting_at_epoch = update_starting_at_epoch

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        if step_idx is not None:
            every, start = self.update_every_n_steps, self.update_starting_at_step
            return every > 0 and step_idx % every == 0 and (start is None or step_idx >= start)
        start = self.update_starting_at_epoch
        return epoch_idx is not None and start is not None and epoch_idx >= start


def require_whole_weights(trainer: Trainer, name: str) -> None:
    """Refuse a strategy under which no rank holds all weights, or an engine holds those that count.

    Raises:
        MisconfigurationException: The Trainer has one.
    """
    strategy = trainer.strategy
    if strategy.restores_after_setup:
        raise MisconfigurationException(
            f"{name} needs the whole model on each rank, and {type(strategy).__name__} splits it. Use strategy='ddp', "
            "or remove the callback."
        )
    if has_own_engine(strategy):
        raise MisconfigurationException(
            f"{name} changes or reads weights between steps, and DeepSpeed's engine holds those that count. Use "
            "strategy='ddp', or remove the callback."
        )


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    return chain(module.parameters(), module.buffers())
