"""Log what optimizers are set to: learning rate, momentum, weight decay."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer

from fulgur.errors import MisconfigurationException, PossibleUserWarning
from fulgur.hooks import Callback
from fulgur.rank import rank_zero_warn

if TYPE_CHECKING:
    from fulgur.module import LightningModule
    from fulgur.trainer import Trainer


@dataclass(slots=True, frozen=True)
class _Watched:
    """An optimizer, the prefix of its keys, and the interval of its scheduler; ``None`` without one."""

    name: str
    optimizer: Optimizer
    interval: str | None


class LearningRateMonitor(Callback):
    """Send learning rates to the loggers, and to ``trainer.callback_metrics``.

    Keys are ``lr-SGD``; ``lr-SGD-1`` and so on for more optimizers of one class; ``lr-SGD/pg1``, ``lr-SGD/pg2`` or
    ``lr-SGD/<name of the group>`` for parameter groups. The ``name`` of a scheduler's configuration takes the place
    of ``lr-SGD``. Costs one call a step; values are read only where they are logged.

    Args:
        logging_interval: ``"step"`` logs at the steps for which loggers get values, ``"epoch"`` at the start of
            epochs. ``None`` takes the interval of each scheduler, and both for optimizers without one.
        log_momentum: Add ``<key>-momentum``: ``momentum``, or the first of ``betas``.
        log_weight_decay: Add ``<key>-weight_decay``.

    Attributes:
        lrs: Learning rates logged so far, by key.
        last_momentum_values: Momentum logged last, by key.
        last_weight_decay_values: Weight decay logged last, by key.

    Raises:
        MisconfigurationException: `logging_interval` is unknown; or, when a fit begins, there is no logger, or two
            groups of an optimizer have the same name.

    Example:
        >>> trainer = Trainer(callbacks=[LearningRateMonitor(logging_interval="epoch")])
    """

    def __init__(
        self, logging_interval: str | None = None, log_momentum: bool = False, log_weight_decay: bool = False
    ) -> None:
        if logging_interval not in (None, "step", "epoch"):
            raise MisconfigurationException(
                f"LearningRateMonitor(logging_interval={logging_interval!r}): use 'step', 'epoch' or None."
            )
        self.logging_interval = logging_interval
        self.log_momentum = log_momentum
        self.log_weight_decay = log_weight_decay
        self.lrs: dict[str, list[float]] = {}
        self.last_momentum_values: dict[str, float] = {}
        self.last_weight_decay_values: dict[str, float] = {}
        self._at_step: tuple[_Watched, ...] = ()
        self._at_epoch: tuple[_Watched, ...] = ()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and not trainer.loggers:
            raise MisconfigurationException(
                "LearningRateMonitor has no logger to write to. Give Trainer(logger=...), or remove the callback."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        watched = _find_watched(trainer.lr_scheduler_configs, trainer.optimizers)
        for one in watched:
            _check_group_names(one.optimizer)
        if self.log_momentum and not any(_find_momentum(g) is not None for w in watched for g in _groups(w)):
            rank_zero_warn(
                "LearningRateMonitor(log_momentum=True): no optimizer here has a momentum or betas to log.",
                PossibleUserWarning,
            )
        self._at_step = tuple(w for w in watched if (self.logging_interval or w.interval) != "epoch")
        self._at_epoch = tuple(w for w in watched if (self.logging_interval or w.interval) != "step")
        self.lrs = {key: [] for w in watched for key, _ in _keyed_groups(w)}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.is_logging_step and self._at_step:
            self._log(self._at_step, trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._at_epoch:
            self._log(self._at_epoch, trainer)

    def _log(self, watched: tuple[_Watched, ...], trainer: Trainer) -> None:
        values: dict[str, float] = {}
        for one in watched:
            for key, group in _keyed_groups(one):
                values |= self._read(key, group)
        trainer.callback_metrics.update({key: torch.tensor(value) for key, value in values.items()})
        for logger in trainer.loggers:
            logger.log_metrics(dict(values), step=trainer.global_step)

    def _read(self, key: str, group: dict[str, Any]) -> dict[str, float]:
        lr = float(group["lr"])  # waits for the device, if the optimizer keeps it there
        self.lrs.setdefault(key, []).append(lr)
        values = {key: lr}
        momentum = _find_momentum(group) if self.log_momentum else None
        if momentum is not None:
            values[f"{key}-momentum"] = self.last_momentum_values[f"{key}-momentum"] = float(momentum)
        if self.log_weight_decay and "weight_decay" in group:
            decay = float(group["weight_decay"])
            values[f"{key}-weight_decay"] = self.last_weight_decay_values[f"{key}-weight_decay"] = decay
        return values


def _find_watched(configs: Iterable[Any], optimizers: Sequence[Optimizer]) -> list[_Watched]:
    names = _optimizer_names(optimizers)
    watched = []
    for config in configs:
        optimizer = optimizers[config.opt_idx]
        watched.append(_Watched(config.name or names[id(optimizer)], optimizer, config.interval))
    scheduled = {id(one.optimizer) for one in watched}
    free = [_Watched(names[id(o)], o, None) for o in optimizers if id(o) not in scheduled]
    return watched + free


def _optimizer_names(optimizers: Iterable[Optimizer]) -> dict[int, str]:
    """Key prefix by the id of the optimizer: ``lr-SGD``, then ``lr-SGD-1``, ..."""
    seen: dict[str, int] = {}
    names = {}
    for optimizer in optimizers:
        kind = type(optimizer).__name__
        count = seen.get(kind, 0)
        names[id(optimizer)] = f"lr-{kind}-{count}" if count else f"lr-{kind}"
        seen[kind] = count + 1
    return names


def _groups(watched: _Watched) -> list[dict[str, Any]]:
    return watched.optimizer.param_groups


def _keyed_groups(watched: _Watched) -> Iterator[tuple[str, dict[str, Any]]]:
    # Read anew each time: callbacks add groups while training.
    groups = _groups(watched)
    for number, group in enumerate(groups, start=1):
        name = group.get("name", f"pg{number}" if len(groups) > 1 else None)
        yield (watched.name if name is None else f"{watched.name}/{name}"), group


def _check_group_names(optimizer: Optimizer) -> None:
    names = [group["name"] for group in optimizer.param_groups if "name" in group]
    repeated = sorted({str(name) for name in names if names.count(name) > 1})
    if repeated:
        raise MisconfigurationException(
            f"Parameter groups of {type(optimizer).__name__} share the name {', '.join(map(repr, repeated))}. "
            "LearningRateMonitor needs a different name for each group, or none."
        )


def _find_momentum(group: dict[str, Any]) -> float | None:
    if "momentum" in group:
        return float(group["momentum"])
    return float(group["betas"][0]) if "betas" in group else None
