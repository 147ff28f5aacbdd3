"""Steps that the user or the optimizer runs himself: LBFGS, overridden hooks, optimizers that evaluate twice."""

from __future__ import annotations

from collections.abc import Callable
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
    train_by_hand,
)
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from fulgur.errors import MisconfigurationException


def lbfgs(net: Any) -> Any:
    return torch.optim.LBFGS(net.parameters(), lr=0.1, max_iter=5, history_size=4)


def lbfgs_with_line_search(net: Any) -> Any:
    return torch.optim.LBFGS(net.parameters(), max_iter=5, line_search_fn="strong_wolfe")


class SharpnessAware(torch.optim.SGD):
    """Evaluates its closure at the weights, and again where the loss is highest near them (arXiv:2010.01412)."""

    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        with torch.enable_grad():
            loss = closure()
        parameters = [p for group in self.param_groups for p in group["params"]]
        norm = torch.stack([p.grad.norm() for p in parameters]).norm()
        with torch.no_grad():
            offsets = [0.05 * p.grad / norm for p in parameters]
            torch._foreach_add_(parameters, offsets)
        with torch.enable_grad():
            closure()
        with torch.no_grad():
            torch._foreach_sub_(parameters, offsets)
        super().step()
        return loss


def sharpness_aware(net: Any) -> Any:
    return SharpnessAware(net.parameters(), lr=0.1, momentum=0.9)


def step_with_closures(net: Any, optimizer: Any, *, after_backward: Callable[[], Any] = lambda: None) -> list[Tensor]:
    """The loop that torch's documentation shows for optimizers with a closure."""
    losses = []
    for _ in range(2):
        for batch in build_loader():

            def closure(batch: Any = batch) -> Any:
                optimizer.zero_grad()
                loss = loss_of(net, batch)
                loss.backward()
                after_backward()
                losses.append(loss.detach())
                return loss

            optimizer.step(closure)
    return losses


@pytest.mark.parametrize("configure", [lbfgs, lbfgs_with_line_search, sharpness_aware])
def test_optimizers_that_evaluate_the_loss_several_times(configure: Any) -> None:
    expected, module = build_net(dropout=0.2), Regression(build_net(dropout=0.2), configure)
    trainer, optimizer = quiet_trainer(), configure(expected)
    seed_generators()
    losses = step_with_closures(expected, optimizer)

    seed_generators()
    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.net, expected, optimizer)
    assert_same_bits(module.losses, losses)
    assert len(losses) > 2 * N_BATCHES
    assert trainer.global_step == 2 * N_BATCHES


def test_gradients_are_clipped_at_every_evaluation() -> None:
    expected, module = build_net(), Regression(build_net(), sharpness_aware)
    trainer, optimizer = quiet_trainer(gradient_clip_val=0.02), sharpness_aware(expected)
    step_with_closures(expected, optimizer, after_backward=lambda: clip_grad_norm_(expected.parameters(), 0.02))

    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.net, expected, optimizer)


def test_evaluating_several_times_within_a_window_is_refused() -> None:
    module, trainer = Regression(build_net(), sharpness_aware), quiet_trainer(accumulate_grad_batches=2)

    with pytest.raises(MisconfigurationException, match="SharpnessAware evaluated its closure more than once"):
        trainer.fit(module, build_loader())


class Plain(torch.optim.SGD):
    """An optimizer of a third party, which may or may not use the closure: it gets one."""

    def step(self, closure: Any = None) -> Any:
        assert closure is not None
        return super().step(closure)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_optimizer_of_a_third_party(accumulate: int) -> None:
    def configure(net: Any) -> Any:
        return Plain(net.parameters(), lr=0.1, momentum=0.9)

    expected, module = build_net(), Regression(build_net(), configure)
    trainer, optimizer = quiet_trainer(accumulate_grad_batches=accumulate), sgd(expected)
    accumulate_by_hand(expected, optimizer, build_loader(), accumulate)

    trainer.fit(module, build_loader())

    assert_same_bits(module.net.state_dict(), expected.state_dict())
    assert trainer.global_step == 2 * -(-N_BATCHES // accumulate)


# --------------------------------------------------------------------------------------------------- optimizer_step


class CallsSuper(Regression):
    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)


class CallsStep(Regression):
    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        optimizer.step(closure=optimizer_closure)


class RunsTheClosureFirst(Regression):
    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        optimizer_closure()
        optimizer.step()


class TakesAnything(Regression):
    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("clip", [0.0, 0.05])
@pytest.mark.parametrize("module_class", [CallsSuper, CallsStep, RunsTheClosureFirst, TakesAnything])
def test_overridden_optimizer_step(module_class: Any, clip: float, accumulate: int) -> None:
    plain, module = Regression(build_net(dropout=0.2)), module_class(build_net(dropout=0.2))
    trainers = [quiet_trainer(gradient_clip_val=clip, accumulate_grad_batches=accumulate) for _ in range(2)]
    for trainer, each in zip(trainers, (plain, module), strict=True):
        seed_generators()
        trainer.fit(each, build_loader())

    assert_same_training(trainers[1], module.net, plain.net, *trainers[0].optimizers)
    assert_same_bits(module.losses, plain.losses)
    assert trainers[1].global_step == trainers[0].global_step


def test_warm_up_in_optimizer_step() -> None:
    class WarmingUp(Regression):
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
            optimizer.step(closure=optimizer_closure)
            if self.trainer.global_step < 8:
                for group in optimizer.param_groups:
                    group["lr"] = 0.01 * (self.trainer.global_step + 1) / 8

    expected, module, trainer = build_net(), WarmingUp(build_net()), quiet_trainer()
    optimizer, n_steps = adam(expected), 0

    def warm_up(batch_idx: int) -> None:
        nonlocal n_steps
        n_steps += 1
        if n_steps < 8:
            optimizer.param_groups[0]["lr"] = 0.01 * (n_steps + 1) / 8

    train_by_hand(expected, optimizer, build_loader(), after_step=warm_up)

    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.net, expected, optimizer)


def test_stepping_on_every_second_batch_only() -> None:
    class EverySecond(Regression):
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
            if batch_idx % 2:
                optimizer.step(closure=optimizer_closure)
            else:
                optimizer_closure()

    expected, module, trainer = build_net(), EverySecond(build_net()), quiet_trainer()
    optimizer = adam(expected)
    for _ in range(2):
        for batch_idx, batch in enumerate(build_loader()):
            optimizer.zero_grad()
            loss_of(expected, batch).backward()
            if batch_idx % 2:
                optimizer.step()

    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.net, expected, optimizer)
    assert trainer.global_step == N_BATCHES


# ------------------------------------------------------------------------------------------------------ other hooks


class OverridesBackward(Regression):
    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        loss.backward(*args, **kwargs)


class CallsSuperBackward(Regression):
    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        super().backward(loss, *args, **kwargs)


class ClearsGradients(Regression):
    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        optimizer.zero_grad(set_to_none=True)


class ZeroesGradients(Regression):
    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        optimizer.zero_grad(set_to_none=False)


class ClipsByTheDefault(Regression):
    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)


class Listens(Regression):
    def on_before_zero_grad(self, optimizer: Any) -> None: ...

    def on_before_backward(self, loss: Tensor) -> None: ...

    def on_after_backward(self) -> None: ...

    def on_before_optimizer_step(self, optimizer: Any) -> None: ...

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None: ...

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None: ...

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch

    def training_step_end(self, output: Any) -> Any:
        return output

    def training_epoch_end(self, outputs: Any) -> None: ...


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize(
    "module_class",
    [OverridesBackward, CallsSuperBackward, ClearsGradients, ZeroesGradients, ClipsByTheDefault, Listens],
)
def test_overridden_hooks_change_no_bit(module_class: Any, accumulate: int) -> None:
    expected, module = build_net(), module_class(build_net())
    trainer, optimizer = quiet_trainer(accumulate_grad_batches=accumulate), adam(expected)
    accumulate_by_hand(expected, optimizer, build_loader(), accumulate)

    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.net, expected, optimizer)


def test_backward_that_adds_its_own_gradient() -> None:
    class Decaying(Regression):
        def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
            loss.backward()
            for parameter in self.parameters():
                parameter.grad.add_(parameter.detach(), alpha=0.1)

    expected, module, trainer = build_net(), Decaying(build_net()), quiet_trainer()
    optimizer = adam(expected)

    def decay() -> None:
        for parameter in expected.parameters():
            parameter.grad.add_(parameter.detach(), alpha=0.1)

    train_by_hand(expected, optimizer, build_loader(), before_step=decay)

    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.net, expected, optimizer)


def test_gradient_noise_in_on_after_backward_and_batch_changed_in_transfer() -> None:
    class Noisy(Regression):
        def on_after_backward(self) -> None:
            for parameter in self.parameters():
                parameter.grad.add_(torch.randn_like(parameter), alpha=0.01)

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return [batch[0] + 0.1 * torch.randn_like(batch[0]), batch[1]]

    expected, module, trainer = build_net(), Noisy(build_net()), quiet_trainer()
    optimizer = adam(expected)
    seed_generators()
    for _ in range(2):
        for x, y in build_loader():
            x = x + 0.1 * torch.randn_like(x)
            optimizer.zero_grad()
            loss_of(expected, [x, y]).backward()
            for parameter in expected.parameters():
                parameter.grad.add_(torch.randn_like(parameter), alpha=0.01)
            optimizer.step()

    seed_generators()
    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.net, expected, optimizer)


def test_gradients_zeroed_but_kept() -> None:
    """``set_to_none=False`` gives weight decay a gradient of zero for parameters that a step leaves out."""

    class Sparse(Regression):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            net = self.net if batch_idx % 2 == 0 else self.net[:4]  # type: ignore[index]
            return net(batch[0]).square().mean()

        def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
            optimizer.zero_grad(set_to_none=False)

    expected, module, trainer = build_net(), Sparse(build_net(), sgd), quiet_trainer()
    optimizer = sgd(expected)
    expected.zero_grad()
    for _ in range(2):
        for batch_idx, (x, _) in enumerate(build_loader()):
            optimizer.zero_grad(set_to_none=False)
            (expected if batch_idx % 2 == 0 else expected[:4])(x).square().mean().backward()
            optimizer.step()

    trainer.fit(module, build_loader())

    assert_same_training(trainer, module.net, expected, optimizer)
