"""Optimization hooks in the signatures of 1.x."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import fulgur as fl


class Pair(fl.LightningModule):
    """Two layers, each with an optimizer of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(2, 1), nn.Linear(2, 1)])
        self.calls: list[Any] = []

    def training_step(self, batch: Any, batch_idx: int, optimizer_idx: int) -> Any:
        return self.layers[optimizer_idx](batch).pow(2).mean()

    def configure_optimizers(self) -> Any:
        optimizers = [torch.optim.SGD(layer.parameters(), 0.1) for layer in self.layers]
        return optimizers, [torch.optim.lr_scheduler.StepLR(optimizers[1], 1)]


class Earlier(Pair):
    """Overrides every hook that took the index."""

    def optimizer_step(  # type: ignore[override]
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_idx: int,
        optimizer_closure: Any,
        on_tpu: bool = False,
        using_native_amp: bool = False,
        using_lbfgs: bool = False,
    ) -> None:
        self.calls.append(("optimizer_step", optimizer_idx))
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_idx, optimizer_closure, on_tpu=on_tpu)  # type: ignore[arg-type]

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_idx: int) -> None:  # type: ignore[override]
        self.calls.append(("zero_grad", optimizer_idx))
        optimizer.zero_grad()

    def backward(self, loss: Any, optimizer: Any, optimizer_idx: int) -> None:  # type: ignore[override]
        self.calls.append(("backward", optimizer_idx))
        super().backward(loss, optimizer, optimizer_idx)

    def on_before_optimizer_step(self, optimizer: Any, optimizer_idx: int) -> None:  # type: ignore[override]
        self.calls.append(("before_step", optimizer_idx))

    def configure_gradient_clipping(  # type: ignore[override]
        self, optimizer: Any, optimizer_idx: int, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        self.calls.append(("clip", optimizer_idx))
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def lr_scheduler_step(self, scheduler: Any, optimizer_idx: int, metric: Any) -> None:  # type: ignore[override]
        self.calls.append(("scheduler", optimizer_idx))
        scheduler.step()


def fit(module: fl.LightningModule) -> None:
    trainer = fl.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(module, DataLoader(torch.ones(4, 2), batch_size=2))


def test_each_hook_gets_the_index_of_its_optimizer() -> None:
    module = Earlier()
    fit(module)
    one_batch = [
        (name, index) for index in (0, 1) for name in ("optimizer_step", "zero_grad", "backward", "before_step", "clip")
    ]
    assert module.calls == one_batch + one_batch + [("scheduler", 1)]


@pytest.mark.parametrize("kind", [Earlier, Pair])
def test_the_hooks_change_nothing_about_the_weights(kind: Any) -> None:
    module, plain = kind(), Pair()
    fit(module)
    fit(plain)
    for name, value in plain.state_dict().items():
        assert torch.equal(module.state_dict()[name], value), name


def test_toggling_takes_the_index_too() -> None:
    class Manual(Pair):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
            for index, optimizer in enumerate(self.optimizers()):
                self.toggle_optimizer(optimizer, index)
                self.calls.append([next(layer.parameters()).requires_grad for layer in self.layers])
                self.untoggle_optimizer(index)

    module = Manual()
    fit(module)
    assert module.calls == [[True, False], [False, True]] * 2
