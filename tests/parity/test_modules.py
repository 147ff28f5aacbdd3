"""A LightningModule is an nn.Module, wherever one stands."""

from __future__ import annotations

from typing import Any

import torch
from tests.parity.conftest import (
    Regression,
    adam,
    assert_same_bits,
    assert_same_training,
    build_loader,
    build_net,
    loss_of,
    quiet_trainer,
    train_by_hand,
)
from torch import Tensor, nn

from fulgur import LightningModule


class Body(LightningModule):
    """Has a training of its own, which is not asked for where it is a part."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(9)
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        result = self.layer(x).tanh()
        self.log("mean_output", result.mean())
        return result

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        raise AssertionError("the outer module is trained")

    def configure_optimizers(self) -> Any:
        raise AssertionError("the outer module is trained")


def with_body(seed: int = 3) -> nn.Sequential:
    return nn.Sequential(Body(), *build_net(seed=seed))


def test_module_in_a_hand_written_loop() -> None:
    expected, module = build_net(), Regression(build_net())
    train_by_hand(expected, adam(expected), build_loader())

    optimizer = module.configure_optimizers()
    for _ in range(2):
        for batch_idx, batch in enumerate(build_loader()):
            optimizer.zero_grad()
            module.training_step(batch, batch_idx).backward()
            optimizer.step()

    assert_same_bits(module.net.state_dict(), expected.state_dict())


def test_module_as_a_part_of_another() -> None:
    expected, module, trainer = with_body(), Regression(with_body()), quiet_trainer()
    optimizer = adam(expected)
    train_by_hand(expected, optimizer, build_loader())  # its self.log does nothing here

    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.net, expected, optimizer)


def test_part_logs_through_the_outer_trainer() -> None:
    module, trainer = Regression(with_body()), quiet_trainer()

    trainer.fit(module, build_loader())

    assert trainer.callback_metrics.keys() == {"mean_output"}
    assert trainer.callback_metrics["mean_output"].shape == ()
    assert module.net[0].trainer is trainer  # type: ignore[index]


def test_module_as_a_part_of_a_plain_module_in_a_plain_loop() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Regression(build_net())

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.inner.net(x)
            return result

    expected, outer = build_net(), Outer()
    train_by_hand(expected, adam(expected), build_loader())

    train_by_hand(outer, adam(outer), build_loader())

    assert_same_bits(outer.inner.net.state_dict(), expected.state_dict())


def test_teacher_that_is_a_trained_module_stays_as_it_is() -> None:
    class Distilled(Regression):
        def __init__(self, teacher: Regression) -> None:
            super().__init__(build_net(seed=4))
            self.teacher = teacher.freeze()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return loss_of(self.net, (batch[0], self.teacher.net(batch[0])))

    teacher, trainer = Regression(build_net()), quiet_trainer()
    trainer.fit(teacher, build_loader())
    before = {name: tensor.clone() for name, tensor in teacher.net.state_dict().items()}
    expected, module, second = build_net(seed=4), Distilled(teacher), quiet_trainer()
    optimizer = adam(expected)
    for _ in range(2):
        for x, _ in build_loader():
            optimizer.zero_grad()
            loss_of(expected, (x, teacher.net(x))).backward()
            optimizer.step()

    second.fit(module, build_loader())

    assert_same_training(second, module.net, expected, optimizer)
    assert_same_bits(teacher.net.state_dict(), before)


def test_two_modules_share_layers_in_turn() -> None:
    """Fit with one module, then with another that holds the same layers."""
    net, expected = build_net(), build_net()
    for _ in range(2):
        train_by_hand(expected, adam(expected), build_loader())

    quiet_trainer().fit(Regression(net), build_loader())
    quiet_trainer().fit(Regression(net), build_loader())

    assert_same_bits(net.state_dict(), expected.state_dict())
