"""Accumulation windows: averaged over their true length, cleared once, stepped once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.parity.conftest import (
    N_BATCHES,
    Regression,
    accumulate_by_hand,
    adam,
    assert_same_bits,
    assert_same_training,
    build_loader,
    build_net,
    loss_of,
    quiet_trainer,
    seed_generators,
    sgd,
)

from fulgur.callbacks import GradientAccumulationScheduler


class Unsized:
    """A loader without a length."""

    def __init__(self, n_batches: int = N_BATCHES) -> None:
        self.batches = list(build_loader())[:n_batches]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


class EndsEarly(Unsized):
    """A loader with fewer batches than its length says."""

    def __len__(self) -> int:
        return 2 * N_BATCHES


@pytest.mark.parametrize("configure", [sgd, adam])
@pytest.mark.parametrize("accumulate", [2, 3, 4, 5, 7])
def test_every_window_is_averaged_over_its_true_length(accumulate: int, configure: Any) -> None:
    expected, module = build_net(dropout=0.5), Regression(build_net(dropout=0.5), configure)
    trainer = quiet_trainer(accumulate_grad_batches=accumulate)
    optimizer = configure(expected)
    seed_generators()
    accumulate_by_hand(expected, optimizer, build_loader(shuffle=True), accumulate)

    seed_generators()
    trainer.fit(module, build_loader(shuffle=True))

    assert_same_training(trainer, module.net, expected, optimizer)
    assert trainer.global_step == 2 * -(-N_BATCHES // accumulate)


def test_limited_epoch_ends_in_a_short_window() -> None:
    expected, module = build_net(), Regression(build_net())
    trainer = quiet_trainer(accumulate_grad_batches=3, limit_train_batches=5)
    optimizer = adam(expected)
    accumulate_by_hand(expected, optimizer, list(build_loader())[:5], 3)

    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.net, expected, optimizer)
    assert trainer.global_step == 4


@pytest.mark.parametrize("loader_class", [Unsized, EndsEarly])
def test_window_that_turns_out_short_is_averaged_over_its_true_length(loader_class: Any) -> None:
    """Its losses were divided by the nominal length, so that gradients are scaled once more: equal but for rounding."""
    expected, module = build_net().double(), Regression(build_net().double(), sgd)
    trainer = quiet_trainer(accumulate_grad_batches=4, precision="64-true")
    optimizer = sgd(expected)
    batches = [[tensor.double() for tensor in batch] for batch in build_loader()]
    accumulate_by_hand(expected, optimizer, batches, 4)

    trainer.fit(module, loader_class())

    for got, wanted in zip(module.net.state_dict().values(), expected.state_dict().values(), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    assert trainer.global_step == 4


def test_last_window_of_a_loader_that_ends_early_steps_schedulers_of_steps() -> None:
    module, trainer = Regression(build_net(), sgd), quiet_trainer(accumulate_grad_batches=4, max_epochs=1)

    def configure() -> Any:
        optimizer = sgd(module.net)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1), "interval": "step"}]

    module.configure_optimizers = configure  # type: ignore[method-assign]
    trainer.fit(module, EndsEarly())

    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == trainer.global_step == 2


def test_loader_that_ends_early_is_validated_in_due_epochs_only() -> None:
    epochs = []

    class Validating(Regression):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            epochs.append(self.trainer.current_epoch)

    trainer = quiet_trainer(check_val_every_n_epoch=2, max_epochs=4, num_sanity_val_steps=0)
    trainer.fit(Validating(build_net()), EndsEarly(), list(build_loader())[:1])

    assert epochs == [1, 3]


def test_unsized_loader_with_full_windows() -> None:
    expected, module, trainer = build_net(), Regression(build_net()), quiet_trainer(accumulate_grad_batches=3)
    optimizer = adam(expected)
    accumulate_by_hand(expected, optimizer, build_loader(), 3)

    trainer.fit(module, Unsized())

    assert_same_training(trainer, module.net, expected, optimizer)


def test_loader_that_ends_early_without_accumulation() -> None:
    expected, module, trainer = build_net(), Regression(build_net()), quiet_trainer()
    optimizer = adam(expected)
    accumulate_by_hand(expected, optimizer, build_loader(), 1)

    trainer.fit(module, EndsEarly())

    assert_same_training(trainer, module.net, expected, optimizer)
    assert trainer.global_step == 2 * N_BATCHES


def test_validation_within_a_window_leaves_its_gradients_alone() -> None:
    class Validating(Regression):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            loss_of(self.net, batch)

    expected, module = build_net(dropout=0.5), Validating(build_net(dropout=0.5))
    trainer = quiet_trainer(accumulate_grad_batches=4, val_check_interval=1)
    optimizer, batches = adam(expected), list(build_loader())
    seed_generators()
    accumulate_by_hand(expected, optimizer, batches, 4)

    seed_generators()
    trainer.fit(module, batches, batches)

    assert_same_training(trainer, module.net, expected, optimizer)


def test_scheduled_accumulation() -> None:
    expected, module = build_net(), Regression(build_net())
    trainer = quiet_trainer(callbacks=[GradientAccumulationScheduler({0: 1, 1: 4, 3: 2})], max_epochs=4)
    optimizer = adam(expected)
    for accumulate in (1, 4, 4, 2):
        accumulate_by_hand(expected, optimizer, build_loader(), accumulate, epochs=1)

    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.net, expected, optimizer)
    assert trainer.global_step == 6 + 2 + 2 + 3


def test_hooks_that_listen_to_gradients_being_cleared_change_nothing() -> None:
    class Listening(Regression):
        def on_before_zero_grad(self, optimizer: Any) -> None:
            self.heard = getattr(self, "heard", 0) + 1

    expected, module, trainer = build_net(), Listening(build_net()), quiet_trainer(accumulate_grad_batches=4)
    optimizer = adam(expected)
    accumulate_by_hand(expected, optimizer, build_loader(), 4)

    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.net, expected, optimizer)
    assert module.heard == 4


def test_loss_that_backward_sees_is_the_share_of_its_window() -> None:
    class Seeing(Regression):
        def on_before_backward(self, loss: torch.Tensor) -> None:
            self.seen = [*getattr(self, "seen", []), loss.detach()]

    module = Seeing(build_net())

    quiet_trainer(accumulate_grad_batches=4, max_epochs=1).fit(module, build_loader())

    lengths = [4, 4, 4, 4, 2, 2]
    assert_same_bits(module.seen, [loss / n for loss, n in zip(module.losses, lengths, strict=True)])
