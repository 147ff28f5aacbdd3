from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import StepLR

from fulgur.callbacks import LearningRateMonitor
from fulgur.errors import MisconfigurationException, PossibleUserWarning
from fulgur.optim.configure import LRSchedulerConfig


class RecordingLogger:
    def __init__(self) -> None:
        self.calls: list[tuple[dict[str, float], int]] = []

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.calls.append((metrics, step))


def make_sgd(lr: float = 0.5, **options: Any) -> SGD:
    return SGD([nn.Parameter(torch.zeros(1))], lr=lr, **options)


def make_groups(*names: str | None) -> SGD:
    groups = [{"params": [nn.Parameter(torch.zeros(1))]} | ({"name": name} if name else {}) for name in names]
    return SGD(groups, lr=0.5)


def make_trainer(*optimizers: Optimizer, configs: tuple[LRSchedulerConfig, ...] = ()) -> Any:
    return SimpleNamespace(
        optimizers=list(optimizers),
        lr_scheduler_configs=list(configs),
        loggers=[RecordingLogger()],
        callback_metrics={},
        global_step=7,
        is_logging_step=True,
    )


def config_for(optimizer: Optimizer, opt_idx: int = 0, **options: Any) -> LRSchedulerConfig:
    return LRSchedulerConfig(StepLR(optimizer, 1), opt_idx=opt_idx, **options)


def calls(monitor: LearningRateMonitor, trainer: Any, *, epoch: bool = False, step: bool = False) -> list[Any]:
    """What the logger gets at one epoch start, one batch start, or both."""
    monitor.on_train_start(trainer, None)  # type: ignore[arg-type]
    if epoch:
        monitor.on_train_epoch_start(trainer, None)  # type: ignore[arg-type]
    if step:
        monitor.on_train_batch_start(trainer, None, None, 0)  # type: ignore[arg-type]
    recorded: list[Any] = trainer.loggers[0].calls
    return recorded


def logged_keys(*optimizers: Optimizer, configs: tuple[LRSchedulerConfig, ...] = (), **options: bool) -> list[str]:
    trainer = make_trainer(*optimizers, configs=configs)
    return list(calls(LearningRateMonitor("step", **options), trainer, step=True)[0][0])


def test_value_goes_to_the_logger_at_the_step_before_the_batch() -> None:
    assert calls(LearningRateMonitor(), make_trainer(make_sgd(0.5)), step=True) == [({"lr-SGD": 0.5}, 7)]


def test_value_goes_to_callback_metrics_as_a_tensor() -> None:
    trainer = make_trainer(make_sgd(0.5))
    calls(LearningRateMonitor(), trainer, step=True)
    assert torch.equal(trainer.callback_metrics["lr-SGD"], torch.tensor(0.5))


def test_nothing_is_logged_at_a_step_without_logging() -> None:
    trainer = make_trainer(make_sgd())
    trainer.is_logging_step = False
    assert calls(LearningRateMonitor(), trainer, step=True) == []


def test_optimizer_without_scheduler_is_logged_at_epochs_and_steps() -> None:
    assert len(calls(LearningRateMonitor(), make_trainer(make_sgd()), epoch=True, step=True)) == 2


@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_scheduler_is_logged_at_its_own_interval(interval: str) -> None:
    optimizer = make_sgd()
    for at_epoch in (True, False):
        trainer = make_trainer(optimizer, configs=(config_for(optimizer, interval=interval),))
        recorded = calls(LearningRateMonitor(), trainer, epoch=at_epoch, step=not at_epoch)
        assert bool(recorded) == (at_epoch == (interval == "epoch"))


@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_logging_interval_wins_over_the_schedulers(interval: str) -> None:
    optimizer = make_sgd()
    other = "step" if interval == "epoch" else "epoch"
    trainer = make_trainer(optimizer, configs=(config_for(optimizer, interval=other),))
    assert len(calls(LearningRateMonitor(interval), trainer, epoch=True, step=True)) == 1


def test_optimizers_of_one_class_are_numbered() -> None:
    adam = Adam([nn.Parameter(torch.zeros(1))])
    assert logged_keys(make_sgd(), adam, make_sgd(), make_sgd()) == ["lr-SGD", "lr-Adam", "lr-SGD-1", "lr-SGD-2"]


def test_number_of_an_optimizer_does_not_depend_on_schedulers() -> None:
    first, second = make_sgd(0.1), make_sgd(0.2)
    trainer = make_trainer(first, second, configs=(config_for(second, opt_idx=1),))
    assert calls(LearningRateMonitor("step"), trainer, step=True)[0][0] == {"lr-SGD": 0.1, "lr-SGD-1": 0.2}


def test_name_of_the_scheduler_replaces_the_prefix() -> None:
    optimizer = make_groups(None, None)
    assert logged_keys(optimizer, configs=(config_for(optimizer, name="rate"),)) == ["rate/pg1", "rate/pg2"]


def test_groups_go_by_number_or_name() -> None:
    assert logged_keys(make_groups(None, "head")) == ["lr-SGD/pg1", "lr-SGD/head"]


def test_groups_with_one_name_are_refused() -> None:
    with pytest.raises(MisconfigurationException, match="'head'"):
        logged_keys(make_groups("head", "head"))


def test_group_added_while_training_is_logged_from_then_on() -> None:
    optimizer = make_groups(None)
    trainer = make_trainer(optimizer)
    monitor = LearningRateMonitor("step")
    monitor.on_train_start(trainer, None)  # type: ignore[arg-type]
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    monitor.on_train_batch_start(trainer, None, None, 0)  # type: ignore[arg-type]
    assert list(trainer.loggers[0].calls[0][0]) == ["lr-SGD/pg1", "lr-SGD/pg2"]


def test_momentum_and_weight_decay_come_with_suffixes() -> None:
    optimizer = make_sgd(0.5, momentum=0.25, weight_decay=0.125)
    monitor = LearningRateMonitor("step", log_momentum=True, log_weight_decay=True)
    values = {"lr-SGD": 0.5, "lr-SGD-momentum": 0.25, "lr-SGD-weight_decay": 0.125}
    assert calls(monitor, make_trainer(optimizer), step=True)[0][0] == values


def test_momentum_of_adam_is_its_first_beta() -> None:
    monitor = LearningRateMonitor("step", log_momentum=True)
    trainer = make_trainer(Adam([nn.Parameter(torch.zeros(1))], betas=(0.75, 0.9)))
    assert calls(monitor, trainer, step=True)[0][0]["lr-Adam-momentum"] == 0.75


def test_momentum_that_no_optimizer_has_warns() -> None:
    trainer = make_trainer(torch.optim.Adagrad([nn.Parameter(torch.zeros(1))]))
    with pytest.warns(PossibleUserWarning, match="momentum"):
        calls(LearningRateMonitor(log_momentum=True), trainer)


def test_lrs_keeps_the_history() -> None:
    optimizer = make_sgd(0.5)
    monitor = LearningRateMonitor("step")
    trainer = make_trainer(optimizer)
    calls(monitor, trainer, step=True)
    optimizer.param_groups[0]["lr"] = 0.25
    monitor.on_train_batch_start(trainer, None, None, 1)  # type: ignore[arg-type]
    assert monitor.lrs == {"lr-SGD": [0.5, 0.25]}


def test_fit_without_a_logger_is_refused() -> None:
    trainer: Any = SimpleNamespace(loggers=[])
    with pytest.raises(MisconfigurationException, match="no logger"):
        LearningRateMonitor().setup(trainer, None, "fit")  # type: ignore[arg-type]


def test_unknown_interval_is_refused() -> None:
    with pytest.raises(MisconfigurationException, match="'batch'"):
        LearningRateMonitor("batch")
