from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import fulgur as fl
from fulgur.callbacks import GradientAccumulationScheduler
from fulgur.errors import MisconfigurationException
from fulgur.loops.choose import check_turns


class Turns(fl.LightningModule):
    """Two optimizers that take turns, and when each of them steps."""

    def __init__(self, *frequencies: int) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(1, 1) for _ in frequencies)
        self.frequencies = frequencies
        self.steps: list[tuple[int, int]] = []

    def training_step(self, batch: Any, batch_idx: int, optimizer_idx: int) -> Any:
        return self.layers[optimizer_idx](batch).sum()

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        index = next(i for i, o in enumerate(self.trainer.optimizers) if o is optimizer)
        self.steps.append((self.trainer.fit_loop.progress.batch, index))

    def configure_optimizers(self) -> Any:
        return [
            {"optimizer": torch.optim.SGD(layer.parameters(), lr=0.1), "frequency": frequency}
            for layer, frequency in zip(self.layers, self.frequencies, strict=True)
        ]


def fit(module: Turns, **arguments: Any) -> None:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = fl.Trainer(accelerator="cpu", enable_model_summary=False, **({"max_epochs": 1} | quiet | arguments))
    trainer.fit(module, DataLoader(torch.ones(8, 1)))


def test_turns_of_whole_windows_step_one_optimizer_each() -> None:
    module = Turns(2, 4)
    fit(module, accumulate_grad_batches=2)
    assert module.steps == [(1, 0), (3, 1), (5, 1), (7, 0)]


def test_turns_that_end_within_a_window_are_refused_with_a_way_out() -> None:
    module = Turns(1, 3)
    with pytest.raises(MisconfigurationException, match=r"accumulate_grad_batches=2.*\[1, 3\].*\[2, 4\]"):
        fit(module, accumulate_grad_batches=2)
    assert module.steps == []


def test_turns_are_looked_at_again_where_the_window_grows() -> None:
    module = Turns(1, 1)
    with pytest.raises(MisconfigurationException, match=r"accumulate_grad_batches=2"):
        fit(module, callbacks=[GradientAccumulationScheduler({1: 2})], max_epochs=2)
    assert len(module.steps) == 8


def test_optimizers_without_turns_need_no_check() -> None:
    check_turns([], 4)
