"""What the parity tests share: a small network, its data, a hand-written loop, and a comparison of bits."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

from fulgur import LightningModule, Trainer

N_SAMPLES, BATCH_SIZE = 22, 4  # six batches, the last of them with two samples
N_BATCHES = 6


def build_net(dropout: float = 0.0, seed: int = 3) -> nn.Sequential:
    """A network with parameters, buffers and, if asked for, random draws."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 1))


def build_samples(n: int = N_SAMPLES) -> TensorDataset:
    generator = torch.Generator().manual_seed(11)
    x = torch.randn(n, 3, generator=generator)
    return TensorDataset(x, x.sum(1, keepdim=True).sin())


def build_loader(n: int = N_SAMPLES, **arguments: Any) -> DataLoader[Any]:
    return DataLoader(build_samples(n), batch_size=BATCH_SIZE, **arguments)


def loss_of(net: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    return mse_loss(net(x), y)


def adam(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(net.parameters(), lr=0.01)


def sgd(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)


class Regression(LightningModule):
    """Trains any network with what `configure` returns; keeps the losses that its steps computed."""

    def __init__(self, net: nn.Module, configure: Callable[[nn.Module], Any] = adam) -> None:
        super().__init__()
        self.net = net
        self.configure = configure
        self.losses: list[Tensor] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = loss_of(self.net, batch)
        self.losses.append(loss.detach().clone())
        return loss

    def configure_optimizers(self) -> Any:
        return self.configure(self.net)


def quiet_trainer(**arguments: Any) -> Trainer:
    """A Trainer that writes nothing and trains for two epochs, unless `arguments` say otherwise."""
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "max_epochs": 2}
    return Trainer(**{"accelerator": "cpu", "enable_checkpointing": False, **quiet, **arguments})


def seed_generators(seed: int = 5) -> None:
    random.seed(seed)
    torch.manual_seed(seed)


def generator_states() -> tuple[Any, Tensor]:
    return random.getstate(), torch.get_rng_state()


def train_by_hand(
    net: nn.Module,
    optimizer: Any,
    batches: Iterable[Any],
    *,
    epochs: int = 2,
    before_step: Callable[[], Any] = lambda: None,
    after_step: Callable[[int], Any] = lambda batch_idx: None,
    after_epoch: Callable[[], Any] = lambda: None,
) -> list[Tensor]:
    """The loop everybody writes; returns its losses."""
    losses = []
    for _ in range(epochs):
        for batch_idx, batch in enumerate(batches):
            optimizer.zero_grad()
            loss = loss_of(net, batch)
            loss.backward()
            before_step()
            optimizer.step()
            after_step(batch_idx)
            losses.append(loss.detach())
        after_epoch()
    return losses


def accumulate_by_hand(net: nn.Module, optimizer: Any, loader: Any, accumulate: int, *, epochs: int = 2) -> None:
    """The loop with windows, each averaged over its true length."""
    n_batches = len(loader)
    for _ in range(epochs):
        for batch_idx, batch in enumerate(loader):
            start = batch_idx - batch_idx % accumulate
            end = min(start + accumulate, n_batches)
            if batch_idx == start:
                optimizer.zero_grad()
            (loss_of(net, batch) / (end - start)).backward()
            if batch_idx == end - 1:
                optimizer.step()


def assert_same_bits(got: Any, expected: Any, where: str = "") -> None:
    """Compare nested states: tensors by dtype and every bit, everything else by equality."""
    if isinstance(expected, Tensor):
        assert got.dtype == expected.dtype, f"{where}: {got.dtype} instead of {expected.dtype}"
        assert torch.equal(got, expected), f"{where}: differs by up to {(got - expected).abs().max().item()}"
    elif isinstance(expected, dict):
        assert got.keys() == expected.keys(), where
        for key in expected:
            assert_same_bits(got[key], expected[key], f"{where}[{key!r}]")
    elif isinstance(expected, (list, tuple)):
        assert len(got) == len(expected), f"{where}: {len(got)} items instead of {len(expected)}"
        for index, pair in enumerate(zip(got, expected, strict=True)):
            assert_same_bits(*pair, f"{where}[{index}]")
    else:
        assert got == expected, where


def assert_same_training(trainer: Trainer, net: nn.Module, expected: nn.Module, *optimizers: Any) -> None:
    """Parameters, buffers and the states of all optimizers are the same bits."""
    assert_same_bits(net.state_dict(), expected.state_dict(), "state_dict")
    assert_same_bits([o.state_dict() for o in trainer.optimizers], [o.state_dict() for o in optimizers], "optimizers")
