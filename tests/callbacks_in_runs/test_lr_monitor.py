"""LearningRateMonitor in real fits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import StepLR

from fulgur.callbacks import LearningRateMonitor
from fulgur.errors import MisconfigurationException
from fulgur.loggers import DummyLogger


class Recorder(DummyLogger):
    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[dict[str, float], int]] = []

    def log_metrics(self, metrics: Any, step: Any = None) -> None:
        self.rows.append(({key: round(value, 6) for key, value in metrics.items()}, step))


@pytest.fixture
def fit(tiny: Any, make_trainer: Any, loader: Any) -> Any:
    """Fits two epochs of three batches, logged every second step; rows, callback and Trainer."""

    def run(configure: Any, *, manual: bool = False, **options: Any) -> Any:
        logger, monitor = Recorder(), LearningRateMonitor(**options)
        trainer = make_trainer(
            callbacks=monitor, logger=logger, enable_checkpointing=False, max_epochs=2, log_every_n_steps=2
        )
        methods: dict[str, Any] = {"configure_optimizers": configure}
        if manual:
            methods["training_step"] = step_all
        module = tiny(**methods)
        module.automatic_optimization = not manual
        trainer.fit(module, loader(3))
        return logger.rows, monitor, trainer

    return run


def step_all(self: Any, batch: Any, batch_idx: int) -> None:
    for optimizer in self.optimizers():
        optimizer.zero_grad()
        self.manual_backward(self.layer(batch).mean())
        optimizer.step()


def sgd(self: Any, **options: Any) -> Any:
    return torch.optim.SGD(self.parameters(), **({"lr": 0.1} | options))


def by_interval(interval: str, name: str | None = None) -> Any:
    def configure(self: Any) -> Any:
        optimizer = sgd(self)
        config: dict[str, Any] = {"scheduler": StepLR(optimizer, 1, gamma=0.5), "interval": interval}
        return {"optimizer": optimizer, "lr_scheduler": config | ({"name": name} if name else {})}

    return configure


def test_scheduler_of_epochs_is_logged_at_their_start(fit: Any) -> None:
    rows, monitor, trainer = fit(by_interval("epoch"))
    assert rows == [({"lr-SGD": 0.1}, 0), ({"lr-SGD": 0.05}, 3)]
    assert monitor.lrs == {"lr-SGD": [0.1, 0.05]}
    assert trainer.callback_metrics["lr-SGD"] == torch.tensor(0.05)


def test_scheduler_of_steps_is_logged_with_the_steps(fit: Any) -> None:
    rows, _, _ = fit(by_interval("step"))
    assert rows == [({"lr-SGD": 0.05}, 1), ({"lr-SGD": 0.0125}, 3), ({"lr-SGD": 0.003125}, 5)]


@pytest.mark.parametrize(("interval", "axes"), [(None, [0, 1, 3, 3, 5]), ("step", [1, 3, 5]), ("epoch", [0, 3])])
def test_optimizer_without_a_scheduler(interval: Any, axes: list[int], fit: Any) -> None:
    rows, _, _ = fit(sgd, logging_interval=interval)
    assert rows == [({"lr-SGD": 0.1}, axis) for axis in axes]


def test_interval_given_wins_over_the_schedulers(fit: Any) -> None:
    rows, _, _ = fit(by_interval("step"), logging_interval="epoch")
    assert [step for _, step in rows] == [0, 3]


def test_name_of_the_scheduler_is_the_key(fit: Any) -> None:
    rows, _, _ = fit(by_interval("epoch", name="my_rate"))
    assert [set(row) for row, _ in rows] == [{"my_rate"}] * 2


def test_several_optimizers_of_a_class_are_numbered(fit: Any) -> None:
    def configure(self: Any) -> Any:
        return [sgd(self), sgd(self, lr=0.2), torch.optim.Adam(self.parameters(), lr=0.3)]

    rows, _, _ = fit(configure, manual=True, logging_interval="epoch")
    assert rows[0] == ({"lr-SGD": 0.1, "lr-SGD-1": 0.2, "lr-Adam": 0.3}, 0)
    assert rows[1][1] == 3


def groups(self: Any, *names: str) -> Any:
    self.extra = torch.nn.Parameter(torch.ones(()))
    parameters = [{"params": [self.layer.weight]}, {"params": [self.extra], "lr": 0.2}]
    return torch.optim.SGD([g | ({"name": n} if n else {}) for g, n in zip(parameters, names, strict=True)], lr=0.1)


def test_groups_are_numbered_or_named(fit: Any) -> None:
    rows, _, _ = fit(lambda self: groups(self, "", "head"), logging_interval="epoch")
    assert rows[0] == ({"lr-SGD/pg1": 0.1, "lr-SGD/head": 0.2}, 0)


def test_groups_of_one_name_are_an_error(fit: Any) -> None:
    with pytest.raises(MisconfigurationException, match="share the name 'head'"):
        fit(lambda self: groups(self, "head", "head"))


def test_momentum_and_weight_decay_follow_the_group(fit: Any) -> None:
    def configure(self: Any) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.1, betas=(0.8, 0.9), weight_decay=0.01)

    rows, _, trainer = fit(configure, logging_interval="epoch", log_momentum=True, log_weight_decay=True)
    expected = {"lr-Adam": 0.1, "lr-Adam-momentum": 0.8, "lr-Adam-weight_decay": 0.01}
    assert rows[0] == (expected, 0)
    assert set(trainer.callback_metrics) == set(expected)


def test_needs_a_logger(tiny: Any, make_trainer: Any, loader: Any) -> None:
    with pytest.raises(MisconfigurationException, match="no logger"):
        make_trainer(callbacks=LearningRateMonitor()).fit(tiny(), loader(1))


def test_no_optimizer_has_nothing_to_log(fit: Any) -> None:
    with pytest.warns(UserWarning, match="optimizer"):
        rows, monitor, _ = fit(lambda self: None)
    assert rows == []
    assert monitor.lrs == {}
