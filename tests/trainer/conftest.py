"""A tiny module, its data, and a Trainer without any surroundings, for tests of what a run does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from fulgur import Callback, LightningModule, Trainer


class Numbers(Dataset[torch.Tensor]):
    """Sample i is the vector (i, i)."""

    def __init__(self, n_samples: int) -> None:
        self.n_samples = n_samples

    def __len__(self) -> int:
        return self.n_samples

    def __getitem__(self, index: int) -> torch.Tensor:
        if not 0 <= index < self.n_samples:
            raise IndexError(index)
        return torch.full((2,), float(index))


class Stream(IterableDataset[torch.Tensor]):
    """The same samples, without a length; counts how many were drawn."""

    def __init__(self, n_samples: int) -> None:
        self.n_samples, self.n_drawn = n_samples, 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        for index in range(self.n_samples):
            self.n_drawn += 1
            yield torch.full((2,), float(index))


def numbers(n_batches: int, batch_size: int = 1, **kwargs: Any) -> DataLoader[torch.Tensor]:
    return DataLoader(Numbers(n_batches * batch_size), batch_size=batch_size, **kwargs)


def stream(n_batches: int) -> DataLoader[torch.Tensor]:
    return DataLoader(Stream(n_batches), batch_size=1)


def firsts(batch: torch.Tensor) -> list[int]:
    """Which samples a batch of `Numbers` holds."""
    return [int(value) for value in batch[:, 0]]


class Bare(LightningModule):
    """One layer and SGD, with a training step only."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self(batch).mean() * 1e-3

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Net(Bare):
    """`Bare` with every step; notes which samples each saw."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, list[Any]] = {"train": [], "validation": [], "test": [], "predict": []}

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen["train"].append(firsts(batch))
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.seen["validation"].append(firsts(batch))
        self.log("val", batch.mean())

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.seen["test"].append(firsts(batch))
        self.log("test", batch.mean())

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen["predict"].append(firsts(batch))
        return self(batch)


class Letters(Callback):
    """Writes the life of a fit as letters: t a training batch, V a validation, v a sanity check, E an epoch's end."""

    def __init__(self) -> None:
        self.text = ""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.text += "<"

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.text += ">"

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.text += "t"

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.text += "v" if trainer.sanity_checking else "V"

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.text += "E"


QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def quiet(**kwargs: Any) -> Trainer:
    """A Trainer with nothing around it but what is asked for; no sanity check unless asked for."""
    return Trainer(**{**QUIET, "num_sanity_val_steps": 0, **kwargs})


def letters(model: LightningModule, *loaders: Any, **kwargs: Any) -> str:
    """What `Letters` writes of one fit."""
    recorder = Letters()
    callbacks = [recorder, *kwargs.pop("callbacks", [])]
    quiet(callbacks=callbacks, **kwargs).fit(model, *loaders)
    return recorder.text
