"""More of the small data that tests of other packages use."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from fulgur.datamodule import LightningDataModule
from fulgur.testing.boring import RandomIterableDataset


class RandomDictDataset(Dataset[dict[str, Tensor]]):
    """Rows of normal noise, each in a dict with a second tensor.

    Args:
        size: Features of a row.
        length: Rows.
    """

    def __init__(self, size: int, length: int) -> None:
        self.len = length
        self.data = torch.randn(length, size)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = self.data[index]
        return {"a": row, "b": row + 2}

    def __len__(self) -> int:
        return self.len


class RandomIterableDatasetWithLen(IterableDataset[Tensor]):
    """A stream of rows of normal noise that knows its length."""

    def __init__(self, size: int, count: int) -> None:
        self.size, self.count = size, count

    def __iter__(self) -> Iterator[Tensor]:
        for _ in range(len(self)):
            yield torch.randn(self.size)

    def __len__(self) -> int:
        return self.count


class BoringDataModuleNoLen(LightningDataModule):
    """Streams without a length."""

    def train_dataloader(self) -> Any:
        return DataLoader(RandomIterableDataset(32, 64))

    def val_dataloader(self) -> Any:
        return DataLoader(RandomIterableDataset(32, 64))

    def test_dataloader(self) -> Any:
        return DataLoader(RandomIterableDataset(32, 64))

    def predict_dataloader(self) -> Any:
        return DataLoader(RandomIterableDataset(32, 64))


class IterableBoringDataModule(LightningDataModule):
    """Two streams for each stage."""

    def setup(self, stage: str) -> None:
        self.train_datasets = [RandomIterableDataset(4, 32), RandomIterableDataset(4, 32)]
        self.val_datasets = [RandomIterableDataset(4, 32), RandomIterableDataset(4, 32)]
        self.test_datasets = [RandomIterableDataset(4, 32), RandomIterableDataset(4, 32)]
        self.predict_datasets = [RandomIterableDataset(4, 32), RandomIterableDataset(4, 32)]

    def train_dataloader(self) -> Any:
        return [DataLoader(dataset, batch_size=2) for dataset in self.train_datasets]

    def val_dataloader(self) -> Any:
        return [DataLoader(dataset, batch_size=2) for dataset in self.val_datasets]

    def test_dataloader(self) -> Any:
        return [DataLoader(dataset, batch_size=1) for dataset in self.test_datasets]

    def predict_dataloader(self) -> Any:
        return [DataLoader(dataset, batch_size=1) for dataset in self.predict_datasets]


class Net(nn.Module):
    """Two layers.

    Args:
        out_dim: Outputs.
    """

    def __init__(self, out_dim: int = 1) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, out_dim))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layers(x)
        return result
