"""A loop with `Fabric` gives the bits of the same loop without it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from tests.parity.conftest import adam, assert_same_bits, build_loader, build_net, loss_of, seed_generators, sgd
from torch import nn

from fulgur import Fabric

PRECISIONS: dict[str, tuple[Callable[[nn.Module], nn.Module], Any, torch.dtype]] = {
    "32-true": (lambda net: net, nullcontext(), torch.float32),
    "64-true": (lambda net: net.double(), nullcontext(), torch.float64),
    "bf16-true": (lambda net: net.bfloat16(), nullcontext(), torch.bfloat16),
    "bf16-mixed": (lambda net: net, torch.autocast("cpu", torch.bfloat16), torch.float32),
}


def train(net: nn.Module, configure: Any, *, window: int = 1, max_norm: float | None = None, **arguments: Any) -> Any:
    fabric = Fabric(accelerator="cpu", devices=1, **arguments)
    model, optimizer = fabric.setup(net, configure(net))
    loader = fabric.setup_dataloaders(build_loader(shuffle=True))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    losses = []
    for _ in range(2):
        for index, batch in enumerate(loader):
            loss = loss_of(model, batch)
            fabric.backward(loss / window)
            losses.append(loss.detach().clone())
            if (index + 1) % window == 0:
                if max_norm is not None:
                    fabric.clip_gradients(model, optimizer, max_norm=max_norm)
                optimizer.step()
                optimizer.zero_grad()
        scheduler.step()
    return optimizer.state_dict(), losses


def train_by_hand(
    net: nn.Module, configure: Any, *, window: int = 1, max_norm: float | None = None, precision: str = "32-true"
) -> Any:
    convert, context, dtype = PRECISIONS[precision]
    net = convert(net)
    optimizer = configure(net)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    losses = []
    for _ in range(2):
        for index, (x, y) in enumerate(build_loader(shuffle=True)):
            with context:
                outputs = net(x.to(dtype))
            loss = nn.functional.mse_loss(outputs.float(), y)
            (loss / window).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach().clone())
            if (index + 1) % window == 0:
                if max_norm is not None:
                    nn.utils.clip_grad_norm_(net.parameters(), max_norm)
                optimizer.step()
                optimizer.zero_grad()
        scheduler.step()
    return optimizer.state_dict(), losses


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("configure", [sgd, adam])
def test_weights_buffers_optimizer_state_and_losses(configure: Any, precision: str) -> None:
    expected, net = build_net(dropout=0.2), build_net(dropout=0.2)
    seed_generators()
    by_hand = train_by_hand(expected, configure, precision=precision)
    seed_generators()
    got = train(net, configure, precision=precision)
    assert_same_bits(got, by_hand)
    assert_same_bits(net.state_dict(), expected.state_dict())


@pytest.mark.parametrize("max_norm", [None, 0.1])
def test_windows_of_batches_and_clipping(max_norm: float | None) -> None:
    expected, net = build_net(), build_net()
    seed_generators()
    by_hand = train_by_hand(expected, adam, window=2, max_norm=max_norm)
    seed_generators()
    assert_same_bits(train(net, adam, window=2, max_norm=max_norm), by_hand)
    assert_same_bits(net.state_dict(), expected.state_dict())


def test_an_optimizer_with_a_closure() -> None:
    def run(net: nn.Module, step: Callable[[Callable[[], Any]], Any], model: nn.Module, backward: Any) -> list[float]:
        batch = next(iter(build_loader()))

        def closure() -> Any:
            net.zero_grad()
            loss = loss_of(model, batch)
            backward(loss)
            return loss

        return [step(closure).item() for _ in range(3)]

    expected, net = build_net(), build_net()
    by_hand = run(expected, torch.optim.LBFGS(expected.parameters()).step, expected, lambda loss: loss.backward())
    fabric = Fabric(accelerator="cpu", devices=1)
    model, optimizer = fabric.setup(net, torch.optim.LBFGS(net.parameters()))
    assert run(net, optimizer.step, model, fabric.backward) == by_hand
    assert_same_bits(net.state_dict(), expected.state_dict())
