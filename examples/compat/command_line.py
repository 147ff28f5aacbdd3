"""A program with a command line: options, a file, an optimizer and a scheduler by name, and a saved configuration."""

import json
import os

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningCLI
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset


class Points(LightningDataModule):
    """Points of a parabola.

    Args:
        count: How many of them.
        batch_size: Points to a batch.
    """

    def __init__(self, count: int = 64, batch_size: int = 16) -> None:
        super().__init__()
        self.count, self.batch_size = count, batch_size

    def loader(self):
        x = torch.linspace(-1, 1, self.count)[:, None]
        return DataLoader(TensorDataset(x, x**2), batch_size=self.batch_size)

    def train_dataloader(self):
        return self.loader()

    def val_dataloader(self):
        return self.loader()


class Network(LightningModule):
    """Fits a curve.

    Args:
        width: Hidden units.
        batch_size: Points to a batch.
        activation: Between the layers.
    """

    def __init__(self, width: int = 8, batch_size: int = 1, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.net = nn.Sequential(nn.Linear(1, width), activation or nn.ReLU(), nn.Linear(width, 1))

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.mse_loss(self.net(x), y)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=self.batch_size)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_loss", F.mse_loss(self.net(x), y), batch_size=self.batch_size)


class Program(LightningCLI):
    def add_arguments_to_parser(self, parser):
        parser.link_arguments("data.batch_size", "model.batch_size")

    def before_fit(self):
        self.started = self.trainer.global_step

    def after_fit(self):
        metrics = {name: value.item() for name, value in self.trainer.callback_metrics.items()}
        metrics["rate"] = self.trainer.optimizers[0].param_groups[0]["lr"]
        metrics["steps"] = self.trainer.global_step - self.started
        metrics["callbacks"] = sum(type(c).__name__ == "EarlyStopping" for c in self.trainer.callbacks)
        metrics["saved"] = int(os.path.exists(os.path.join(self.trainer.log_dir, "config.yaml")))
        print(json.dumps(metrics))


FILE = """
seed_everything: 7
trainer:
  accelerator: cpu
  max_epochs: 4
  enable_progress_bar: false
  enable_model_summary: false
  logger:
    class_path: lightning.pytorch.loggers.CSVLogger
    init_args:
      save_dir: logs
model:
  width: 4
  activation:
    class_path: torch.nn.Tanh
"""
WORDS = [
    "fit",
    "--config=config.in.yaml",
    "--model.width=16",
    "--data.batch_size=8",
    "--trainer.callbacks+=EarlyStopping",
    "--trainer.callbacks.monitor=val_loss",
    "--optimizer=SGD",
    "--optimizer.lr=0.2",
    "--lr_scheduler=StepLR",
    "--lr_scheduler.step_size=2",
]

if __name__ == "__main__":
    with open("config.in.yaml", "w") as file:
        file.write(FILE)
    Program(Network, Points, args=WORDS)
