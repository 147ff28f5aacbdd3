"""A small net that draws from every generator, and a Trainer that does nothing unasked."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fulgur import LightningModule, Trainer, seed_everything

N_SAMPLES = 64


class Net(LightningModule):
    """Dropout and shuffling draw; batch norm has buffers; a list and a counter are what users keep by hand."""

    def __init__(self, lr: float = 0.1, batch_size: int = 4) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lr, self.batch_size = lr, batch_size
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 1))
        self.kept: list[Tensor] = []
        self.n_steps = 0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        loss = nn.functional.mse_loss(self.layers(x), y) * (1 + 0.01 * random.random() + 0.01 * np.random.rand())
        self.kept.append(loss.detach())
        self.n_steps += 1
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("val_loss", nn.functional.mse_loss(self.layers(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)

    def loader(self, **options: Any) -> Any:
        x = torch.randn(N_SAMPLES, 4, generator=torch.Generator().manual_seed(1))
        return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=self.batch_size, **options)

    def train_dataloader(self) -> Any:
        return self.loader(shuffle=True)

    def val_dataloader(self) -> Any:
        return self.loader()

    test_dataloader = predict_dataloader = val_dataloader
    test_step = validation_step

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layers(batch[0])


@pytest.fixture
def net() -> Callable[..., Any]:
    """Builds a `Net` from the same seed, with some of its methods replaced."""

    def build(methods: dict[str, Any] | None = None, **arguments: Any) -> Net:
        seed_everything(3, verbose=False)
        kind = type("Net", (Net,), methods) if methods else Net
        return kind(**arguments)

    return build


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., Trainer]:
    def make(**arguments: Any) -> Trainer:
        defaults: dict[str, Any] = {
            "accelerator": "cpu",
            "logger": False,
            "max_epochs": 2,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": tmp_path,
        }
        return Trainer(**(defaults | arguments))

    return make
