"""A plain training gives the bits of a plain loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.parity.conftest import (
    N_BATCHES,
    Regression,
    adam,
    assert_same_bits,
    assert_same_training,
    build_loader,
    build_net,
    loss_of,
    quiet_trainer,
    sgd,
    train_by_hand,
)
from torch import nn

from fulgur import Trainer


def adamw(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=0.1)


@pytest.mark.parametrize("configure", [sgd, adam, adamw])
def test_weights_buffers_optimizer_state_and_losses(configure: Any) -> None:
    expected, module, trainer = build_net(), Regression(build_net(), configure), quiet_trainer()
    optimizer = configure(expected)
    losses = train_by_hand(expected, optimizer, build_loader())

    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.net, expected, optimizer)
    assert_same_bits(module.losses, losses)
    assert trainer.global_step == 2 * N_BATCHES


def test_two_parameter_groups() -> None:
    def configure(net: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD([{"params": net[0].parameters(), "lr": 0.2}, {"params": net[4].parameters()}], lr=0.05)

    expected, module, trainer = build_net(), Regression(build_net(), configure), quiet_trainer()
    optimizer = configure(expected)
    train_by_hand(expected, optimizer, build_loader())

    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.net, expected, optimizer)


def test_loss_in_a_dict() -> None:
    class InDict(Regression):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return {"loss": super().training_step(batch, batch_idx), "extra": batch_idx}

    expected, module, trainer = build_net(), InDict(build_net()), quiet_trainer()
    optimizer = adam(expected)
    train_by_hand(expected, optimizer, build_loader())

    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.net, expected, optimizer)


def test_frozen_layer_stays_as_it_was() -> None:
    expected, module, trainer = build_net(), Regression(build_net()), quiet_trainer()
    for net in (expected, module.net):
        net.get_submodule("0").requires_grad_(False)
    optimizer = adam(expected)
    train_by_hand(expected, optimizer, build_loader())

    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.net, expected, optimizer)
    assert_same_bits(module.net.state_dict()["0.weight"], build_net().state_dict()["0.weight"])


def test_layer_in_eval_mode_stays_in_eval_mode() -> None:
    class Validated(Regression):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            loss_of(self.net, batch)

    expected, module, trainer = build_net(), Validated(build_net()), quiet_trainer()
    for net in (expected, module.net):
        net.get_submodule("1").eval()
    optimizer = adam(expected)
    train_by_hand(expected, optimizer, build_loader())

    trainer.fit(module, build_loader(), build_loader())

    assert_same_training(trainer, module.net, expected, optimizer)
    assert [child.training for child in module.net] == [True, False, True, True, True]


def test_second_fit_goes_on_from_the_first() -> None:
    expected, module, trainer = build_net(), Regression(build_net()), quiet_trainer()
    train_by_hand(expected, adam(expected), build_loader())
    second = adam(expected)  # configure_optimizers is asked again
    train_by_hand(expected, second, build_loader(), epochs=3)

    trainer.fit(module, build_loader())
    trainer.fit_loop.max_epochs = 5
    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.net, expected, second)
    assert (trainer.current_epoch, trainer.global_step) == (5, 5 * N_BATCHES)


def test_without_optimizer_weights_stay_and_every_batch_counts() -> None:
    module, trainer = Regression(build_net(), lambda net: []), quiet_trainer()

    trainer.fit(module, build_loader())

    parameters = {name: p.detach() for name, p in build_net().named_parameters()}
    assert_same_bits({name: p.detach() for name, p in module.net.named_parameters()}, parameters)
    assert trainer.global_step == 2 * N_BATCHES


@pytest.mark.parametrize("form", [{"detect_anomaly": True}, {"barebones": True}, {"profiler": "simple"}])
def test_arguments_that_must_not_change_the_numbers(form: dict[str, Any], capsys: Any) -> None:
    expected, module = build_net(), Regression(build_net())
    trainer = Trainer(accelerator="cpu", max_epochs=2, **form) if "barebones" in form else quiet_trainer(**form)
    optimizer = adam(expected)
    train_by_hand(expected, optimizer, build_loader())

    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.net, expected, optimizer)


def test_compiled_module() -> None:
    expected, module, trainer = build_net(), Regression(build_net()), quiet_trainer()
    optimizer = adam(expected)

    def step(batch: Any) -> torch.Tensor:
        return loss_of(expected, batch)

    compiled_step = torch.compile(step, backend="eager")
    for _ in range(2):
        for batch in build_loader():
            optimizer.zero_grad()
            compiled_step(batch).backward()
            optimizer.step()

    trainer.fit(torch.compile(module, backend="eager"), build_loader())

    assert_same_training(trainer, module.net, expected, optimizer)
