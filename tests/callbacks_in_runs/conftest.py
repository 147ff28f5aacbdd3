"""A tiny module and a Trainer that does nothing unasked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fulgur import LightningModule, Trainer


class Tiny(LightningModule):
    """One weight. Logs in each validation the next number of `scores` as "score", the last one again and again."""

    def __init__(self, scores: tuple[float, ...] = (0.0,)) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1, bias=False)
        self.scores = list(scores)

    def forward(self, batch: Tensor) -> Tensor:
        return self.layer(batch)

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        return self.layer(batch).mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> Any: ...

    def test_step(self, batch: Tensor, batch_idx: int) -> Any: ...

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.log("score", self.scores.pop(0) if len(self.scores) > 1 else self.scores[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def tiny() -> Callable[..., Any]:
    """Builds a `Tiny` with some of its methods replaced."""
    return lambda *scores, **methods: type("Tiny", (Tiny,), methods)(scores or (0.0,))


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., Trainer]:
    def make(**arguments: Any) -> Trainer:
        defaults: dict[str, Any] = {
            "accelerator": "cpu",
            "logger": False,
            "max_epochs": 1,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": tmp_path,
        }
        return Trainer(**(defaults | arguments))

    return make


@pytest.fixture
def loader() -> Callable[..., DataLoader[Tensor]]:
    """A loader of the numbers 0 to n-1, as batches of shape (batch_size, 1); the last may be short."""

    def make(n: int = 2, batch_size: int = 1, **options: Any) -> DataLoader[Tensor]:
        return DataLoader(torch.arange(float(n)).reshape(n, 1), batch_size=batch_size, **options)  # type: ignore[arg-type]

    return make
