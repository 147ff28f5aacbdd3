"""The smallest models and data that go through every part of a run. They learn nothing worth knowing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, StepLR
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from fulgur.datamodule import LightningDataModule
from fulgur.module import LightningModule


class RandomDataset(Dataset[Tensor]):
    """Rows of normal noise, drawn when it is built.

    Args:
        size: Features of a row.
        length: Rows.
    """

    def __init__(self, size: int, length: int) -> None:
        self.len = length
        self.data = torch.randn(length, size)

    def __getitem__(self, index: int) -> Tensor:
        return self.data[index]

    def __len__(self) -> int:
        return self.len


class RandomIterableDataset(IterableDataset[Tensor]):
    """A stream of rows of normal noise, without a length; drawn as it is read.

    Args:
        size: Features of a row.
        count: Rows.
    """

    def __init__(self, size: int, count: int) -> None:
        self.size, self.count = size, count

    def __iter__(self) -> Iterator[Tensor]:
        for _ in range(self.count):
            yield torch.randn(self.size)


class BoringModel(LightningModule):
    """One layer, every step, SGD with a rate of 0.1 that a `StepLR` lowers each epoch, and 64 rows of noise.

    Outputs: ``{"loss": loss}`` in training, ``{"x": loss}`` in validation, ``{"y": loss}`` in a test.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.layer(x)
        return output

    def loss(self, preds: Tensor, labels: Tensor | None = None) -> Tensor:
        """The mean of what the layer gives; labels play no part."""
        return preds.mean()

    def step(self, batch: Tensor) -> Tensor:
        """The loss of one batch."""
        return self.loss(self(batch))

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        return {"loss": self.step(batch)}

    def validation_step(self, batch: Tensor, batch_idx: int) -> Any:
        return {"x": self.step(batch)}

    def test_step(self, batch: Tensor, batch_idx: int) -> Any:
        return {"y": self.step(batch)}

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        schedulers: list[LRScheduler] = [StepLR(optimizer, step_size=1)]
        return [optimizer], schedulers

    def train_dataloader(self) -> Any:
        return DataLoader(RandomDataset(32, 64))

    def val_dataloader(self) -> Any:
        return DataLoader(RandomDataset(32, 64))

    def test_dataloader(self) -> Any:
        return DataLoader(RandomDataset(32, 64))

    def predict_dataloader(self) -> Any:
        return DataLoader(RandomDataset(32, 64))


class ManualOptimBoringModel(BoringModel):
    """The same under manual optimization."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        optimizer = self.optimizers()
        loss = self.step(batch)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return loss


class DemoModel(LightningModule):
    """One layer that has hyperparameters, trained with Adam.

    Args:
        out_dim: Outputs of the layer.
        learning_rate: Learning rate of Adam.
    """

    def __init__(self, out_dim: int = 10, learning_rate: float = 0.02) -> None:
        super().__init__()
        self.l1 = nn.Linear(32, out_dim)
        self.learning_rate = learning_rate

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.l1(x.view(x.size(0), -1)))

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        return self(batch).sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)


class BoringDataModule(LightningDataModule):
    """64 rows of noise for each stage, parts of one dataset.

    Attributes:
        random_full: The dataset, from `prepare_data` on.
        random_train, random_val, random_test, random_predict: Its parts, each from the `setup` of its stage on.
    """

    def __init__(self) -> None:
        super().__init__()
        self.random_full: RandomDataset | None = None
        self.random_train: Dataset[Tensor] | None = None
        self.random_val: Dataset[Tensor] | None = None
        self.random_test: Dataset[Tensor] | None = None
        self.random_predict: Dataset[Tensor] | None = None

    def prepare_data(self) -> None:
        self.random_full = RandomDataset(32, 64 * 4)

    def setup(self, stage: str | None = None) -> None:
        assert self.random_full is not None, "prepare_data comes first"
        if stage in ("fit", None):
            self.random_train = Subset(self.random_full, range(64))
        if stage in ("fit", "validate", None):
            self.random_val = Subset(self.random_full, range(64, 64 * 2))
        if stage in ("test", None):
            self.random_test = Subset(self.random_full, range(64 * 2, 64 * 3))
        if stage in ("predict", None):
            self.random_predict = Subset(self.random_full, range(64 * 3, 64 * 4))

    def train_dataloader(self) -> Any:
        return _loader(self.random_train)

    def val_dataloader(self) -> Any:
        return _loader(self.random_val)

    def test_dataloader(self) -> Any:
        return _loader(self.random_test)

    def predict_dataloader(self) -> Any:
        return _loader(self.random_predict)


def _loader(part: Dataset[Tensor] | None) -> DataLoader[Tensor]:
    assert part is not None, "setup comes first"
    return DataLoader(part)
