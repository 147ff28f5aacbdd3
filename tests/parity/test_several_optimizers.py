"""Several optimizers: automatic with `optimizer_idx`, as in 1.x, and manual."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.parity.conftest import (
    N_BATCHES,
    assert_same_bits,
    assert_same_training,
    build_loader,
    quiet_trainer,
    seed_generators,
)
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.nn.utils import clip_grad_norm_

from fulgur import LightningModule


class Pair(nn.Module):
    """A generator and a critic, with the losses of each."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.generator = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.2), nn.Linear(4, 3))
        self.critic = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1))

    def generator_loss(self, x: Tensor) -> Tensor:
        return -self.critic(self.generator(x)).mean()

    def critic_loss(self, x: Tensor) -> Tensor:
        return self.critic(self.generator(x)).mean() - self.critic(x).tanh().mean()

    def losses(self) -> list[Any]:
        return [self.generator_loss, self.critic_loss]


def configure(pair: Pair) -> list[torch.optim.Optimizer]:
    return [
        torch.optim.Adam(pair.generator.parameters(), lr=0.02),
        torch.optim.SGD(pair.critic.parameters(), lr=0.05, momentum=0.9),
    ]


class Adversarial(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair()

    def training_step(self, batch: Any, batch_idx: int, optimizer_idx: int) -> Any:
        return self.pair.losses()[optimizer_idx](batch[0])

    def configure_optimizers(self) -> Any:
        return configure(self.pair)


class toggled:  # noqa: N801 - reads as the context it is
    """Only the parameters of one network require gradients inside."""

    def __init__(self, pair: Pair, index: int) -> None:
        self.others = [pair.critic, pair.generator][index]

    def __enter__(self) -> None:
        self.others.requires_grad_(False)

    def __exit__(self, *exception: object) -> None:
        self.others.requires_grad_(True)


def train_pair_by_hand(pair: Pair, optimizers: Any, *, turns: tuple[int, ...] = (), clip: float = 0.0) -> None:
    for _ in range(2):
        for batch_idx, (x, _) in enumerate(build_loader()):
            for index in [turns[batch_idx % len(turns)]] if turns else (0, 1):
                with toggled(pair, index):
                    optimizers[index].zero_grad()
                    pair.losses()[index](x).backward()
                    if clip:
                        clip_grad_norm_([p for g in optimizers[index].param_groups for p in g["params"]], clip)
                    optimizers[index].step()


@pytest.mark.parametrize("clip", [0.0, 0.01])
def test_automatic_with_optimizer_idx(clip: float) -> None:
    expected, module, trainer = Pair(), Adversarial(), quiet_trainer(gradient_clip_val=clip)
    optimizers = configure(expected)
    seed_generators()
    train_pair_by_hand(expected, optimizers, clip=clip)

    seed_generators()
    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.pair, expected, *optimizers)
    assert trainer.global_step == 2 * N_BATCHES


def test_only_the_active_optimizers_parameters_get_gradients() -> None:
    class Watching(Adversarial):
        def training_step(self, batch: Any, batch_idx: int, optimizer_idx: int) -> Any:
            nets = (self.pair.generator, self.pair.critic)
            self.seen = [*getattr(self, "seen", []), tuple(all(p.requires_grad for p in n.parameters()) for n in nets)]
            return super().training_step(batch, batch_idx, optimizer_idx)

    module = Watching()

    quiet_trainer(max_steps=2).fit(module, build_loader())

    assert module.seen == [(True, False), (False, True)] * 2
    assert all(p.requires_grad for p in module.parameters())


@pytest.mark.parametrize("frequencies", [(1, 1), (2, 1), (1, 3)])
def test_automatic_by_turns(frequencies: tuple[int, int]) -> None:
    class InTurns(Adversarial):
        def configure_optimizers(self) -> Any:
            pairs = zip(configure(self.pair), frequencies, strict=True)
            return [{"optimizer": optimizer, "frequency": frequency} for optimizer, frequency in pairs]

    expected, module, trainer = Pair(), InTurns(), quiet_trainer()
    optimizers = configure(expected)
    turns = (0,) * frequencies[0] + (1,) * frequencies[1]
    seed_generators()
    train_pair_by_hand(expected, optimizers, turns=turns)

    seed_generators()
    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.pair, expected, *optimizers)
    assert trainer.global_step == 2 * N_BATCHES


def test_automatic_with_accumulation() -> None:
    expected, module, trainer = Pair(), Adversarial(), quiet_trainer(accumulate_grad_batches=4)
    optimizers = configure(expected)
    seed_generators()
    for _ in range(2):
        for batch_idx, (x, _) in enumerate(build_loader()):
            for index in (0, 1):
                with toggled(expected, index):
                    if batch_idx % 4 == 0:
                        optimizers[index].zero_grad()
                    (expected.losses()[index](x) / (4 if batch_idx < 4 else 2)).backward()
                    if batch_idx in (3, 5):
                        optimizers[index].step()

    seed_generators()
    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.pair, expected, *optimizers)
    assert trainer.global_step == 4


def test_automatic_where_one_optimizer_skips() -> None:
    class Skipping(Adversarial):
        def training_step(self, batch: Any, batch_idx: int, optimizer_idx: int) -> Any:
            if optimizer_idx == 0 and batch_idx % 2:
                return None
            return super().training_step(batch, batch_idx, optimizer_idx)

    expected, module, trainer = Pair(), Skipping(), quiet_trainer()
    optimizers = configure(expected)
    seed_generators()
    for _ in range(2):
        for batch_idx, (x, _) in enumerate(build_loader()):
            for index in (0, 1):
                if index == 0 and batch_idx % 2:
                    continue
                with toggled(expected, index):
                    optimizers[index].zero_grad()
                    expected.losses()[index](x).backward()
                    optimizers[index].step()

    seed_generators()
    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.pair, expected, *optimizers)
    assert trainer.global_step == 2 * N_BATCHES


def test_automatic_with_overridden_optimizer_step() -> None:
    """The critic steps on every batch, the generator on every second one."""

    class Stepping(Adversarial):
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
            if isinstance(optimizer, torch.optim.SGD) or batch_idx % 2 == 0:
                optimizer.step(closure=optimizer_closure)
            else:
                optimizer_closure()

    expected, module, trainer = Pair(), Stepping(), quiet_trainer()
    optimizers = configure(expected)
    seed_generators()
    for _ in range(2):
        for batch_idx, (x, _) in enumerate(build_loader()):
            for index in (0, 1):
                with toggled(expected, index):
                    optimizers[index].zero_grad()
                    expected.losses()[index](x).backward()
                    if index == 1 or batch_idx % 2 == 0:
                        optimizers[index].step()

    seed_generators()
    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.pair, expected, *optimizers)
    assert trainer.global_step == 2 * N_BATCHES


def test_schedulers_of_both_optimizers() -> None:
    def with_schedulers(pair: Pair) -> tuple[Any, Any]:
        optimizers = configure(pair)
        return optimizers, [torch.optim.lr_scheduler.ExponentialLR(o, 0.5) for o in optimizers]

    class Scheduled(Adversarial):
        def configure_optimizers(self) -> Any:
            optimizers, [first, second] = with_schedulers(self.pair)
            return optimizers, [first, {"scheduler": second, "interval": "step"}]

    expected, module, trainer = Pair(), Scheduled(), quiet_trainer()
    optimizers, [by_epoch, by_step] = with_schedulers(expected)
    seed_generators()
    for _ in range(2):
        for x, _ in build_loader():
            for index in (0, 1):
                with toggled(expected, index):
                    optimizers[index].zero_grad()
                    expected.losses()[index](x).backward()
                    optimizers[index].step()
            by_step.step()
        by_epoch.step()

    seed_generators()
    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.pair, expected, *optimizers)


def test_manual_in_the_style_of_a_gan() -> None:
    class Manual(Adversarial):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
            for optimizer, loss in zip(self.optimizers(), self.pair.losses(), strict=True):
                self.toggle_optimizer(optimizer)
                optimizer.zero_grad()
                self.manual_backward(loss(batch[0]))
                self.clip_gradients(optimizer, gradient_clip_val=0.01)
                optimizer.step()
                self.untoggle_optimizer(optimizer)

    expected, module, trainer = Pair(), Manual(), quiet_trainer()
    optimizers = configure(expected)
    seed_generators()
    train_pair_by_hand(expected, optimizers, clip=0.01)

    seed_generators()
    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.pair, expected, *optimizers)
    assert trainer.global_step == 2 * N_BATCHES


def test_optimizers_that_share_a_parameter() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(3)
            self.body, self.heads = nn.Linear(3, 4), nn.ModuleList([nn.Linear(4, 1), nn.Linear(4, 1)])

        def loss(self, batch: Any, index: int) -> Tensor:
            return mse_loss(self.heads[index](self.body(batch[0])), batch[1])

        def optimizers(self) -> list[Any]:
            return [torch.optim.SGD([*self.body.parameters(), *head.parameters()], lr=0.1) for head in self.heads]

    class Sharing(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Shared()

        def training_step(self, batch: Any, batch_idx: int, optimizer_idx: int) -> Any:
            return self.net.loss(batch, optimizer_idx)

        def configure_optimizers(self) -> Any:
            return self.net.optimizers()

    expected, module, trainer = Shared(), Sharing(), quiet_trainer()
    optimizers = expected.optimizers()
    for _ in range(2):
        for batch in build_loader():
            for index, optimizer in enumerate(optimizers):
                optimizer.zero_grad()
                expected.loss(batch, index).backward()
                optimizer.step()

    trainer.fit(module, build_loader())

    assert_same_bits(module.net.state_dict(), expected.state_dict())


def test_parameters_are_not_left_frozen_by_an_error() -> None:
    class Failing(Adversarial):
        def training_step(self, batch: Any, batch_idx: int, optimizer_idx: int) -> Any:
            raise RuntimeError("broken")

    module = Failing()
    with pytest.raises(RuntimeError, match="broken"):
        quiet_trainer().fit(module, build_loader())

    assert all(parameter.requires_grad for parameter in module.parameters())
