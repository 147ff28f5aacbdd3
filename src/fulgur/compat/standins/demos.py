"""More of the small data that tests of other packages use."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader

from fulgur.datamodule import LightningDataModule
from fulgur.testing.boring import RandomDataset, RandomIterableDataset


class RandomDictDataset(RandomDataset):
    """Rows of normal noise, each in a dict with a second tensor."""

    def __getitem__(self, index: int) -> Any:
        row = super().__getitem__(index)
        return {"a": row, "b": row + 2}


class RandomIterableDatasetWithLen(RandomIterableDataset):
    """A stream of rows of normal noise that knows its length."""

    def __len__(self) -> int:
        return self.count


class BoringDataModuleNoLen(LightningDataModule):
    """Streams without a length."""

    def train_dataloader(self) -> Any:
        return DataLoader(RandomIterableDataset(32, 64))

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


class IterableBoringDataModule(LightningDataModule):
    """Two streams for each stage."""

    def setup(self, stage: str) -> None:
        self.train_datasets, self.val_datasets, self.test_datasets, self.predict_datasets = (
            [RandomIterableDataset(4, 32), RandomIterableDataset(4, 32)] for _ in range(4)
        )

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
