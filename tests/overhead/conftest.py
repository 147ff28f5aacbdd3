"""Runs that are all steps: one batch again and again, and nothing around it that the test did not ask for."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fulgur import LightningModule, Trainer
from fulgur.testing import CallCount, HostRead, calls_per_step, count_host_reads

NEVER = 10_000  # more steps than any of these runs has


ALL_OFF: dict[str, Any] = {
    "accelerator": "cpu",
    "max_epochs": 1,
    "limit_val_batches": 0,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": NEVER,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class SameBatch:
    """A loader of `n_batches` times one batch."""

    def __init__(self, n_batches: int) -> None:
        self.n_batches = n_batches
        self.batch = (torch.ones(4, 3), torch.zeros(4, 1))

    def __len__(self) -> int:
        return self.n_batches

    def __iter__(self) -> Iterator[Any]:
        return iter([self.batch] * self.n_batches)


class Line(LightningModule):
    """One layer with SGD.

    Args:
        logs: The keyword arguments of each ``self.log`` in a training step.
    """

    def __init__(self, logs: Sequence[dict[str, Any]] = ()) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.logs = logs

    def loss(self, batch: Any) -> Tensor:
        return nn.functional.mse_loss(self.layer(batch[0]), batch[1])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(batch)
        for index, options in enumerate(self.logs):
            self.log(f"value_{index}", loss, **options)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fit(module: LightningModule, n_batches: int, **arguments: Any) -> Trainer:
    """Train one epoch of `n_batches`, with nothing switched on but what `arguments` say."""
    trainer = Trainer(**{**ALL_OFF, **arguments})
    trainer.fit(module, SameBatch(n_batches), SameBatch(2))
    return trainer


Run = Callable[[int], object]
"""Trains with this many batches, with everything new."""


def calls(run: Run) -> CallCount:
    """Framework calls in one steady step."""
    return calls_per_step(run, n_batches=8)


def new_folder() -> str:
    """An empty folder, so that a run does not see what an earlier one left."""
    return tempfile.mkdtemp(dir=".")


def added_reads(run: Run, n_batches: int = 16) -> list[HostRead]:
    """Host reads that a run of twice `n_batches` has and one of `n_batches` has not, told apart by their places."""
    with count_host_reads() as short:
        run(n_batches)
    with count_host_reads() as long:
        run(2 * n_batches)
    expected = [repr(read) for read in short]
    added = []
    for read in long:
        if repr(read) in expected:
            expected.remove(repr(read))
        else:
            added.append(read)
    return added
