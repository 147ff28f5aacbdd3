"""Learning-rate schedulers step when a hand-written loop steps them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.parity.conftest import (
    N_BATCHES,
    Regression,
    assert_same_bits,
    assert_same_training,
    build_loader,
    build_net,
    loss_of,
    quiet_trainer,
    train_by_hand,
)
from torch.optim import lr_scheduler

EPOCHS = 4


def momentum_sgd(net: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.5)


def with_scheduler(build: Any, **config: Any) -> Any:
    def configure(net: Any) -> Any:
        optimizer = momentum_sgd(net)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": build(optimizer), **config}}

    return configure


def assert_same_schedule(trainer: Any, *schedulers: Any) -> None:
    got = [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs]
    assert_same_bits(got, [scheduler.state_dict() for scheduler in schedulers], "schedulers")


BY_STEP = {
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.3, total_steps=EPOCHS * N_BATCHES),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.1, total_iters=9),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=5),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.1, 4), lr_scheduler.ExponentialLR(o, 0.9)], [4]
    ),
}


@pytest.mark.parametrize("frequency", [1, 2, 4])
@pytest.mark.parametrize("name", BY_STEP)
def test_scheduler_by_step(name: str, frequency: int) -> None:
    build = BY_STEP[name]
    expected = build_net()
    module = Regression(build_net(), with_scheduler(build, interval="step", frequency=frequency))
    trainer, optimizer = quiet_trainer(max_epochs=EPOCHS), momentum_sgd(expected)
    scheduler = build(optimizer)

    def after_step(batch_idx: int) -> None:
        if (batch_idx + 1) % frequency == 0:
            scheduler.step()

    train_by_hand(expected, optimizer, build_loader(), epochs=EPOCHS, after_step=after_step)

    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.net, expected, optimizer)
    assert_same_schedule(trainer, scheduler)


@pytest.mark.parametrize("frequency", [1, 2, 3])
def test_scheduler_by_epoch(frequency: int) -> None:
    def build(optimizer: Any) -> Any:
        return lr_scheduler.StepLR(optimizer, 1, 0.5)

    expected, module = build_net(), Regression(build_net(), with_scheduler(build, frequency=frequency))
    trainer, optimizer = quiet_trainer(max_epochs=EPOCHS), momentum_sgd(expected)
    scheduler = build(optimizer)
    for epoch in range(EPOCHS):
        train_by_hand(expected, optimizer, build_loader(), epochs=1)
        if (epoch + 1) % frequency == 0:
            scheduler.step()

    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.net, expected, optimizer)
    assert_same_schedule(trainer, scheduler)


def test_scheduler_by_step_counts_windows() -> None:
    build = BY_STEP["LinearLR"]
    expected, module = build_net(), Regression(build_net(), with_scheduler(build, interval="step"))
    trainer, optimizer = quiet_trainer(accumulate_grad_batches=4), momentum_sgd(expected)
    scheduler = build(optimizer)
    for _ in range(2):
        for batch_idx, batch in enumerate(build_loader()):
            if batch_idx % 4 == 0:
                optimizer.zero_grad()
            (loss_of(expected, batch) / (4 if batch_idx < 4 else 2)).backward()
            if batch_idx in (3, 5):
                optimizer.step()
                scheduler.step()

    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.net, expected, optimizer)
    assert_same_schedule(trainer, scheduler)


def test_two_schedulers_of_one_optimizer() -> None:
    def configure(net: Any) -> Any:
        optimizer = momentum_sgd(net)
        by_step = {"scheduler": lr_scheduler.LinearLR(optimizer, 0.1, total_iters=9), "interval": "step"}
        return [optimizer], [lr_scheduler.StepLR(optimizer, 1, 0.5), by_step]

    expected, module, trainer = build_net(), Regression(build_net(), configure), quiet_trainer()
    [optimizer], [by_epoch, by_step] = configure(expected)
    train_by_hand(
        expected,
        optimizer,
        build_loader(),
        after_step=lambda batch_idx: by_step["scheduler"].step(),
        after_epoch=by_epoch.step,
    )

    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.net, expected, optimizer)


class Validating(Regression):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", loss_of(self.net, batch))


def validate_by_hand(net: Any) -> float:
    net.eval()
    with torch.no_grad():
        pairs = [(loss_of(net, batch).double(), len(batch[0])) for batch in build_loader()]
    net.train()
    return float((sum(loss * n for loss, n in pairs) / sum(n for _, n in pairs)).float())  # type: ignore[union-attr]


def build_plateau(optimizer: Any) -> Any:
    return lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=0.5)


def test_plateau_by_epoch() -> None:
    expected = build_net()
    module = Validating(build_net(), with_scheduler(build_plateau, monitor="val_loss"))
    trainer, optimizer = quiet_trainer(max_epochs=EPOCHS), momentum_sgd(expected)
    scheduler = build_plateau(optimizer)
    train_by_hand(
        expected,
        optimizer,
        build_loader(),
        epochs=EPOCHS,
        after_epoch=lambda: scheduler.step(validate_by_hand(expected)),
    )

    trainer.fit(module, build_loader(), build_loader())

    assert_same_training(trainer, module.net, expected, optimizer)
    assert_same_schedule(trainer, scheduler)
    assert scheduler.get_last_lr()[0] < 0.1


def test_plateau_by_step_watches_the_loss_of_the_step() -> None:
    class LoggingLoss(Regression):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            self.log("loss", loss)
            return loss

    expected = build_net()
    configure = with_scheduler(build_plateau, monitor="loss", interval="step", frequency=2)
    module, trainer, optimizer = LoggingLoss(build_net(), configure), quiet_trainer(), momentum_sgd(expected)
    scheduler = build_plateau(optimizer)
    for _ in range(2):
        for batch_idx, batch in enumerate(build_loader()):
            [loss] = train_by_hand(expected, optimizer, [batch], epochs=1)
            if (batch_idx + 1) % 2 == 0:
                scheduler.step(loss)

    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.net, expected, optimizer)
    assert scheduler.get_last_lr()[0] < 0.1


def test_overridden_lr_scheduler_step() -> None:
    class Stepping(Regression):
        def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
            assert metric is None
            scheduler.step()
            scheduler.step()

    def build(optimizer: Any) -> Any:
        return lr_scheduler.ExponentialLR(optimizer, 0.9)

    expected, module = build_net(), Stepping(build_net(), with_scheduler(build, interval="step"))
    trainer, optimizer = quiet_trainer(), momentum_sgd(expected)
    scheduler = build(optimizer)

    def after_step(batch_idx: int) -> None:
        scheduler.step()
        scheduler.step()

    train_by_hand(expected, optimizer, build_loader(), after_step=after_step)

    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.net, expected, optimizer)


def test_scheduler_of_another_class_with_lr_scheduler_step() -> None:
    class Halving:
        """Has nothing of torch's schedulers but their state."""

        def __init__(self, optimizer: Any) -> None:
            self.optimizer = optimizer

        def halve(self, epoch: int) -> None:
            self.optimizer.param_groups[0]["lr"] = 0.1 * 0.5 ** (epoch + 1)

        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: dict[str, Any]) -> None: ...

    class Stepping(Regression):
        def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
            scheduler.halve(self.current_epoch)

    expected, module = build_net(), Stepping(build_net(), with_scheduler(Halving))
    trainer, optimizer = quiet_trainer(max_epochs=EPOCHS), momentum_sgd(expected)
    scheduler = Halving(optimizer)
    for epoch in range(EPOCHS):
        train_by_hand(expected, optimizer, build_loader(), epochs=1)
        scheduler.halve(epoch)

    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.net, expected, optimizer)
