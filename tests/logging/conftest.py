"""A tiny module, a logger that remembers, and a Trainer that does nothing unasked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fulgur import LightningModule, Trainer
from fulgur.loggers import Logger


class Tiny(LightningModule):
    """One weight; steps that log nothing. Loaders are passed, or attached as attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1, bias=False)

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        return self.layer(batch).mean()

    def validation_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return None

    def test_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return None

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class RecordingLogger(Logger):
    """Remembers every call, in order."""

    def __init__(self) -> None:
        self.rows: list[tuple[dict[str, float], int | None]] = []
        self.calls: list[str] = []

    @property
    def name(self) -> str:
        return "recording"

    @property
    def version(self) -> int:
        return 0

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((metrics, step))
        self.calls.append("log_metrics")

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.calls.append("log_hyperparams")

    def save(self) -> None:
        self.calls.append("save")

    def rows_with(self, key: str) -> list[tuple[float, int | None]]:
        """Value and axis of each row that has `key`."""
        return [(row[key], step) for row, step in self.rows if key in row]


@pytest.fixture
def tiny() -> Callable[..., Any]:
    """Builds a `Tiny` with some of its methods replaced."""
    return lambda **methods: type("Tiny", (Tiny,), methods)()


@pytest.fixture
def recorder() -> RecordingLogger:
    return RecordingLogger()


@pytest.fixture
def make_trainer(recorder: RecordingLogger) -> Callable[..., Trainer]:
    def make(**arguments: Any) -> Trainer:
        defaults: dict[str, Any] = {
            "accelerator": "cpu",
            "logger": recorder,
            "max_epochs": 1,
            "log_every_n_steps": 1,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        }
        return Trainer(**(defaults | arguments))

    return make


@pytest.fixture
def loader() -> Callable[..., DataLoader[Tensor]]:
    """A loader of the numbers 0 to n-1, as batches of shape (batch_size, 1); the last may be short."""

    def make(n: int = 2, batch_size: int = 1, dtype: torch.dtype = torch.float32) -> DataLoader[Tensor]:
        return DataLoader(torch.arange(n, dtype=dtype).reshape(n, 1), batch_size=batch_size)  # type: ignore[arg-type]

    return make
