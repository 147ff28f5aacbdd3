"""A training_step that returns None skips the batch, as ``continue`` does in a hand-written loop (D10)."""

from __future__ import annotations

from typing import Any

import pytest
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
)


class Skipping(Regression):
    """Returns None for some batches, after the forward pass."""

    skipped: tuple[int, ...] = ()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return None if batch_idx in self.skipped else loss


def skipping(*skipped: int, configure: Any = adam) -> Skipping:
    module = Skipping(build_net(), configure)
    module.skipped = skipped
    return module


# tests/errors holds the warning that an epoch without any loss gives.
_ALL = pytest.param(tuple(range(N_BATCHES)), marks=pytest.mark.filterwarnings("ignore:training_step returned None"))


@pytest.mark.parametrize("skipped", [(0,), (2,), (5,), (1, 2, 5), _ALL])
def test_skipped_batch_steps_nothing_and_does_not_count(skipped: tuple[int, ...]) -> None:
    expected, module, trainer = build_net(), skipping(*skipped), quiet_trainer()
    optimizer = adam(expected)
    for _ in range(2):
        for batch_idx, batch in enumerate(build_loader()):
            loss = loss_of(expected, batch)
            if batch_idx in skipped:
                continue
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.net, expected, optimizer)
    assert trainer.global_step == 2 * (N_BATCHES - len(skipped))


def test_skipping_every_batch_trains_nothing() -> None:
    module, trainer = skipping(*range(N_BATCHES)), quiet_trainer(max_epochs=1)

    with pytest.warns(UserWarning, match="training_step returned None for all 6 batches"):
        trainer.fit(module, build_loader())

    weights = dict(build_net().named_parameters())
    assert all(torch.equal(parameter, weights[name]) for name, parameter in module.net.named_parameters())
    assert trainer.global_step == 0


@pytest.mark.parametrize("skipped", [(0,), (1, 2), (3,), (5,), (4, 5), (0, 1, 2, 3)])
def test_window_is_averaged_over_the_batches_that_had_a_loss(skipped: tuple[int, ...]) -> None:
    expected, module = build_net().double(), skipping(*skipped, configure=sgd)
    trainer = quiet_trainer(accumulate_grad_batches=4, precision="64-true")
    optimizer = sgd(expected)
    windows = [[0, 1, 2, 3], [4, 5]]
    batches = [[tensor.double() for tensor in batch] for batch in build_loader()]
    n_steps = 0
    for _ in range(2):
        for window in windows:
            optimizer.zero_grad()
            kept = [i for i in window if i not in skipped]
            for i in window:
                loss = loss_of(expected, batches[i])
                if i in kept:
                    (loss / len(kept)).backward()
            if kept:
                optimizer.step()
                n_steps += 1

    trainer.fit(module, build_loader())

    for got, wanted in zip(module.net.state_dict().values(), expected.state_dict().values(), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    assert trainer.global_step == n_steps


def test_skipped_batch_does_not_step_step_schedulers() -> None:
    def configure(net: Any) -> Any:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    module, trainer = skipping(1, 4, configure=configure), quiet_trainer(max_epochs=1)

    trainer.fit(module, build_loader())

    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == N_BATCHES - 2


def test_skipping_with_an_overridden_optimizer_step() -> None:
    class Stepping(Skipping):
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
            optimizer.step(closure=optimizer_closure)

    plain, stepping, trainers = skipping(1, 5), Stepping(build_net()), (quiet_trainer(), quiet_trainer())
    stepping.skipped = (1, 5)

    trainers[0].fit(plain, build_loader())
    trainers[1].fit(stepping, build_loader())

    assert_same_training(trainers[1], stepping.net, plain.net, *trainers[0].optimizers)
    assert trainers[1].global_step == 2 * (N_BATCHES - 2)


def test_skipping_with_clipping() -> None:
    expected, module, trainer = build_net(), skipping(0, 3), quiet_trainer(gradient_clip_val=0.1)
    optimizer = adam(expected)
    for _ in range(2):
        for batch_idx, batch in enumerate(build_loader()):
            loss = loss_of(expected, batch)
            if batch_idx not in (0, 3):
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(expected.parameters(), 0.1)
                optimizer.step()

    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.net, expected, optimizer)
