"""Manual optimization: what `training_step` does is what happens."""

from __future__ import annotations

from typing import Any

import torch
from tests.parity.conftest import (
    N_BATCHES,
    Regression,
    adam,
    assert_same_training,
    build_loader,
    build_net,
    loss_of,
    quiet_trainer,
    sgd,
    train_by_hand,
)
from torch.nn.utils import clip_grad_norm_, clip_grad_value_


class Manual(Regression):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss_of(self.net, batch))
        optimizer.step()


class ManualAccumulation(Manual):
    """Steps on every third batch, and never on the last ones of an epoch that has five."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        optimizer = self.optimizers()
        self.manual_backward(loss_of(self.net, batch) / 3)
        if (batch_idx + 1) % 3 == 0:
            optimizer.step()
            optimizer.zero_grad()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        loss_of(self.net, batch)


def accumulate_manually(net: Any, optimizer: Any, batches: Any) -> None:
    for _ in range(2):
        for batch_idx, batch in enumerate(batches):
            (loss_of(net, batch) / 3).backward()
            if (batch_idx + 1) % 3 == 0:
                optimizer.step()
                optimizer.zero_grad()


def test_backward_and_step() -> None:
    expected, module, trainer = build_net(), Manual(build_net()), quiet_trainer()
    optimizer = adam(expected)
    train_by_hand(expected, optimizer, build_loader())

    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.net, expected, optimizer)
    assert trainer.global_step == 2 * N_BATCHES


def test_bare_optimizer_and_bare_backward() -> None:
    class Bare(Manual):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            optimizer = self.optimizers(use_pl_optimizer=False)
            optimizer.zero_grad()
            loss_of(self.net, batch).backward()
            optimizer.step()

    expected, module, trainer = build_net(), Bare(build_net()), quiet_trainer()
    optimizer = adam(expected)
    train_by_hand(expected, optimizer, build_loader())

    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.net, expected, optimizer)


def test_accumulation_by_hand() -> None:
    expected, module, trainer = build_net(), ManualAccumulation(build_net()), quiet_trainer()
    optimizer = adam(expected)
    accumulate_manually(expected, optimizer, build_loader())

    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.net, expected, optimizer)
    assert trainer.global_step == 4


def test_gradients_accumulated_by_hand_survive_validation() -> None:
    batches = list(build_loader())[:5]
    expected, module = build_net(), ManualAccumulation(build_net())
    trainer, optimizer = quiet_trainer(val_check_interval=1), adam(expected)
    accumulate_manually(expected, optimizer, batches)

    trainer.fit(module, batches, batches)

    assert_same_training(trainer, module.net, expected, optimizer)


def test_clipping_by_hand() -> None:
    class Clipping(Manual):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss_of(self.net, batch))
            self.clip_gradients(optimizer, gradient_clip_val=0.05)
            self.clip_gradients(optimizer, gradient_clip_val=0.01, gradient_clip_algorithm="value")
            optimizer.step()

    expected, module, trainer = build_net(), Clipping(build_net()), quiet_trainer()
    optimizer = adam(expected)

    def clip() -> None:
        clip_grad_norm_(expected.parameters(), 0.05)
        clip_grad_value_(expected.parameters(), 0.01)

    train_by_hand(expected, optimizer, build_loader(), before_step=clip)

    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.net, expected, optimizer)


def test_closure_passed_to_step() -> None:
    class WithClosure(Manual):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            optimizer = self.optimizers()

            def closure() -> Any:
                optimizer.zero_grad()
                loss = loss_of(self.net, batch)
                self.manual_backward(loss)
                return loss

            self.losses.append(optimizer.step(closure=closure).detach())

    expected, module, trainer = build_net(), WithClosure(build_net()), quiet_trainer()
    optimizer = sgd(expected)
    module.configure = sgd
    losses = train_by_hand(expected, optimizer, build_loader())

    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.net, expected, optimizer)
    assert torch.equal(torch.stack(module.losses), torch.stack(losses))
    assert trainer.global_step == 2 * N_BATCHES


def test_lbfgs_with_its_closure() -> None:
    def lbfgs(net: Any) -> Any:
        return torch.optim.LBFGS(net.parameters(), lr=0.1, max_iter=4, history_size=3)

    class WithClosure(Manual):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            optimizer = self.optimizers()

            def closure() -> Any:
                optimizer.zero_grad()
                loss = loss_of(self.net, batch)
                self.manual_backward(loss)
                return loss

            optimizer.step(closure)

    expected, module, trainer = build_net(), WithClosure(build_net(), lbfgs), quiet_trainer()
    optimizer = lbfgs(expected)
    for _ in range(2):
        for batch in build_loader():

            def closure(batch: Any = batch) -> Any:
                optimizer.zero_grad()
                loss = loss_of(expected, batch)
                loss.backward()
                return loss

            optimizer.step(closure)

    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.net, expected, optimizer)
    assert trainer.global_step == 2 * N_BATCHES


def test_several_steps_in_one_batch_count_once() -> None:
    class Twice(Manual):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            super().training_step(batch, batch_idx)
            super().training_step(batch, batch_idx)

    expected, module, trainer = build_net(), Twice(build_net()), quiet_trainer()
    optimizer = adam(expected)
    train_by_hand(expected, optimizer, [batch for batch in build_loader() for _ in range(2)])

    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.net, expected, optimizer)
    assert trainer.global_step == 2 * N_BATCHES


def test_schedulers_stepped_by_hand() -> None:
    def configure(net: Any) -> Any:
        optimizer = sgd(net)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]

    class Scheduling(Manual):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            super().training_step(batch, batch_idx)
            self.lr_schedulers().step()

    expected, module, trainer = build_net(), Scheduling(build_net(), configure), quiet_trainer()
    [optimizer], [scheduler] = configure(expected)
    train_by_hand(expected, optimizer, build_loader(), after_step=lambda batch_idx: scheduler.step())

    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.net, expected, optimizer)


def test_backward_with_a_retained_graph_and_gradient_argument() -> None:
    class Retaining(Manual):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            errors = (self.net(batch[0]) - batch[1]).flatten()
            self.manual_backward(errors, torch.ones_like(errors), retain_graph=True)
            self.manual_backward(errors.square().mean())
            optimizer.step()

    expected, module, trainer = build_net(), Retaining(build_net()), quiet_trainer()
    optimizer = adam(expected)
    for _ in range(2):
        for x, y in build_loader():
            optimizer.zero_grad()
            errors = (expected(x) - y).flatten()
            errors.backward(torch.ones_like(errors), retain_graph=True)
            errors.square().mean().backward()
            optimizer.step()

    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.net, expected, optimizer)
