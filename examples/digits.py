"""Train a small convolutional network to read handwritten digits, test it, and use it.

    python examples/digits.py                  # one run, about twenty seconds
    python examples/digits.py --seeds 0 1 2    # three runs, each with its own split, weights and order
    python examples/digits.py --devices 2      # the same training, on two processes

The data are 1,797 real 8x8 images that come with scikit-learn, so nothing is downloaded. Read the file from the top:
first the data, then the model, then the `Trainer` that puts the two together.
"""

from __future__ import annotations

import argparse
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fulgur as fl
from fulgur.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from fulgur.loggers import CSVLogger, Logger, TensorBoardLogger

Batch = tuple[Tensor, Tensor]  # images of shape (n, 1, 8, 8) and the digits they show, of shape (n,)


def shift_and_rotate(images: Tensor, max_degrees: float = 10.0, max_pixels: float = 0.5) -> Tensor:
    """Move and turn each image a little, at random, so that the network never sees the same picture twice."""
    n, _, _, width = images.shape
    angle = torch.empty(n, device=images.device).uniform_(-1, 1) * math.radians(max_degrees)
    shift = torch.empty(n, 2, device=images.device).uniform_(-1, 1) * (2 * max_pixels / width)
    cos, sin = angle.cos(), angle.sin()
    matrices = torch.stack([cos, -sin, shift[:, 0], sin, cos, shift[:, 1]], dim=1).view(n, 2, 3)
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


class Digits(fl.LightningDataModule):
    """The images, split into 68 % to train on, 12 % to choose the best epoch by, and 20 % to test on."""

    def __init__(self, seed: int, batch_size: int = 64) -> None:
        super().__init__()
        self.seed = seed
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        """Called before each `fit`, `test` or `predict`. The seed makes the split the same every time."""
        digits = load_digits()
        images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16  # pixels are 0 to 16
        labels = torch.tensor(digits.target)

        def split(indices: list[int], fraction: float) -> tuple[list[int], list[int]]:
            rest, part = train_test_split(indices, test_size=fraction, stratify=labels[indices], random_state=self.seed)
            return rest, part

        development, test = split(list(range(len(labels))), 0.20)
        train, val = split(development, 0.15)
        self.train, self.val, self.test = (TensorDataset(images[i], labels[i]) for i in (train, val, test))

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.val, batch_size=256)

    def test_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.test, batch_size=256)

    def predict_dataloader(self) -> DataLoader[Any]:
        return self.test_dataloader()

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Change training images a little, once they are on the device that trains."""
        images, labels = batch
        if self.trainer is not None and self.trainer.training:
            images = shift_and_rotate(images)
        return images, labels


class DigitReader(fl.LightningModule):
    """Three convolutions and a linear layer: 31,000 weights."""

    def __init__(self, width: int = 32, lr: float = 5e-3, weight_decay: float = 1e-2) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = nn.Sequential(
            *self._convolution(1, width),
            *self._convolution(width, width),
            nn.MaxPool2d(2),
            *self._convolution(width, 2 * width),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(2 * width * 2 * 2, 10),
        )

    @staticmethod
    def _convolution(n_in: int, n_out: int) -> list[nn.Module]:
        return [nn.Conv2d(n_in, n_out, kernel_size=3, padding=1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU()]

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.network(images)
        return scores

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, labels = batch
        loss = F.cross_entropy(self(images), labels, label_smoothing=0.1)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def _evaluate(self, batch: Batch, stage: str) -> None:
        images, labels = batch
        scores = self(images)
        self.log(f"{stage}_loss", F.cross_entropy(scores, labels, label_smoothing=0.1))
        self.log(f"{stage}_acc", (scores.argmax(dim=1) == labels).float().mean(), prog_bar=True)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, _ = batch
        digits: Tensor = self(images).argmax(dim=1)
        return digits

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW, with a learning rate that rises and falls once over the whole run, changed after every step."""
        lr, weight_decay = self.hparams.lr, self.hparams.weight_decay
        optimizer = torch.optim.AdamW(self.parameters(), lr=lr, weight_decay=weight_decay)
        total_steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def build_loggers(folder: Path) -> list[Logger]:
    """A CSV file always, and TensorBoard where it is installed."""
    loggers: list[Logger] = [CSVLogger(folder, name="csv")]
    if find_spec("tensorboard"):
        loggers.append(TensorBoardLogger(folder, name="tensorboard"))
    return loggers


def run(seed: int, max_epochs: int, folder: Path, devices: int | str = "auto") -> float:
    """Train, test and predict once.

    Returns:
        Accuracy on the test images, 0 to 1.
    """
    fl.seed_everything(seed)
    data = Digits(seed)
    model = DigitReader()
    best = ModelCheckpoint(monitor="val_loss", filename="{epoch}-{val_acc:.3f}")
    trainer = fl.Trainer(
        devices=devices,
        max_epochs=max_epochs,
        callbacks=[best, EarlyStopping(monitor="val_loss", patience=10), LearningRateMonitor()],
        logger=build_loggers(folder),
        default_root_dir=folder,
        log_every_n_steps=10,
    )
    trainer.fit(model, datamodule=data)

    # Without arguments: the best checkpoint of the run above, on the test images of the same data.
    (scores,) = trainer.test()
    found = trainer.predict(datamodule=data, ckpt_path="best", return_predictions="ordered")
    predictions = torch.cat(found or [])  # of all processes, in the order of the data

    labels = data.test.tensors[1]
    for i in (predictions != labels).nonzero().flatten().tolist():
        trainer.print(f"misread: test image {i} shows {labels[i]}, taken for {predictions[i]}")
    trainer.print(f"seed {seed}: {scores['test_acc']:.2%} of {len(labels)} test images read correctly")
    trainer.print(f"  best checkpoint  {best.best_model_path}")
    for logger in trainer.loggers:
        trainer.print(f"  logs             {logger.log_dir}")
    return scores["test_acc"]


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small network on handwritten digits.")
    seeds = parser.add_mutually_exclusive_group()
    seeds.add_argument("--seed", type=int, default=0, help="seed of the split, the weights and the order")
    seeds.add_argument("--seeds", type=int, nargs="+", help="several seeds, one run each")
    parser.add_argument("--max-epochs", type=int, default=40)
    parser.add_argument("--devices", default="auto", help="how many processes, each on a device of its own")
    parser.add_argument("--folder", type=Path, default=Path("demo_run"), help="where logs and checkpoints go")
    args = parser.parse_args()

    seeds_to_run = args.seeds or [args.seed]
    accuracies = [run(seed, args.max_epochs, args.folder, args.devices) for seed in seeds_to_run]
    if len(accuracies) > 1:
        print(f"accuracy over seeds {seeds_to_run}: lowest {min(accuracies):.2%}, highest {max(accuracies):.2%}")


if __name__ == "__main__":
    main()
