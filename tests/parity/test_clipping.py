"""Gradients are clipped as torch's own functions clip them, between backward and step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.parity.conftest import (
    Regression,
    adam,
    assert_same_training,
    build_loader,
    build_net,
    quiet_trainer,
    sgd,
    train_by_hand,
)
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

TINY = 0.02  # below every gradient here, so that clipping is what is tested


@pytest.mark.parametrize("configure", [sgd, adam])
@pytest.mark.parametrize(("algorithm", "clip"), [("norm", clip_grad_norm_), ("value", clip_grad_value_)])
def test_clipping_by_the_trainer(algorithm: str, clip: Any, configure: Any) -> None:
    expected, module = build_net(), Regression(build_net(), configure)
    trainer = quiet_trainer(gradient_clip_val=TINY, gradient_clip_algorithm=algorithm)
    optimizer = configure(expected)
    train_by_hand(expected, optimizer, build_loader(), before_step=lambda: clip(expected.parameters(), TINY))

    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.net, expected, optimizer)


@pytest.mark.parametrize("value", [0, None])
def test_no_clipping(value: Any) -> None:
    expected, module, trainer = build_net(), Regression(build_net()), quiet_trainer(gradient_clip_val=value)
    optimizer = adam(expected)
    train_by_hand(expected, optimizer, build_loader())

    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.net, expected, optimizer)


def test_norm_is_taken_over_all_parameter_groups() -> None:
    def configure(net: Any) -> Any:
        return torch.optim.SGD([{"params": net[0].parameters(), "lr": 0.2}, {"params": net[4].parameters()}], lr=0.05)

    expected, module = build_net(), Regression(build_net(), configure)
    trainer, optimizer = quiet_trainer(gradient_clip_val=TINY), configure(expected)

    def clip() -> None:
        clip_grad_norm_([*expected[0].parameters(), *expected[4].parameters()], TINY)

    train_by_hand(expected, optimizer, build_loader(), before_step=clip)

    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.net, expected, optimizer)


def test_clipping_applies_to_the_whole_window() -> None:
    expected, module = build_net(), Regression(build_net())
    trainer = quiet_trainer(gradient_clip_val=TINY, accumulate_grad_batches=3)
    optimizer = adam(expected)
    for _ in range(2):
        for batch_idx, batch in enumerate(build_loader()):
            if batch_idx % 3 == 0:
                optimizer.zero_grad()
            (torch.nn.functional.mse_loss(expected(batch[0]), batch[1]) / 3).backward()
            if batch_idx % 3 == 2:
                clip_grad_norm_(expected.parameters(), TINY)
                optimizer.step()

    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.net, expected, optimizer)


def test_overridden_configure_gradient_clipping() -> None:
    class Clipping(Regression):
        def configure_gradient_clipping(
            self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
        ) -> None:
            self.got = (gradient_clip_val, gradient_clip_algorithm)
            self.clip_gradients(optimizer, gradient_clip_val=TINY, gradient_clip_algorithm="value")

    expected, module, trainer = build_net(), Clipping(build_net()), quiet_trainer()
    optimizer = adam(expected)
    train_by_hand(
        expected, optimizer, build_loader(), before_step=lambda: clip_grad_value_(expected.parameters(), TINY)
    )

    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.net, expected, optimizer)
    assert module.got == (None, None)


def test_overridden_configure_gradient_clipping_that_clips_nothing() -> None:
    class Careless(Regression):
        def configure_gradient_clipping(self, optimizer: Any, **settings: Any) -> None:
            self.got = settings

    expected, module = build_net(), Careless(build_net())
    trainer = quiet_trainer(gradient_clip_val=TINY, gradient_clip_algorithm="value")
    optimizer = adam(expected)
    train_by_hand(expected, optimizer, build_loader())

    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.net, expected, optimizer)
    assert module.got == {"gradient_clip_val": TINY, "gradient_clip_algorithm": "value"}


def test_on_before_optimizer_step_sees_gradients_before_clipping() -> None:
    class Measuring(Regression):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            total = torch.nn.utils.get_total_norm([p.grad for p in self.net.parameters() if p.grad is not None])
            self.norms = [*getattr(self, "norms", []), total]

    module = Measuring(build_net())

    quiet_trainer(gradient_clip_val=TINY).fit(module, build_loader())

    assert all(norm > TINY for norm in module.norms)
