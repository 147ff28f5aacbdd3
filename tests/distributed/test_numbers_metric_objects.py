"""torchmetrics on several ranks: they see the samples of all, also where a rank had no batch."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from fulgur import LightningModule, Trainer
from fulgur.testing import run_ranks

torchmetrics = pytest.importorskip("torchmetrics")

SIZES = [(1, 1), (3, 2), (5, 2), (7, 3), (16, 4)]


def build_loader(n_samples: int, batch_size: int) -> Any:
    values = torch.randn(n_samples, 1, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return torch.utils.data.DataLoader(values, batch_size=batch_size)


class Median(torchmetrics.Metric):
    """Needs all samples at once."""

    full_state_update = False
    values: list[torch.Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("values", default=[], dist_reduce_fx="cat")

    def update(self, values: torch.Tensor) -> None:
        self.values.append(values)

    def compute(self) -> torch.Tensor:
        values = self.values
        return torch.cat(list(values)).median() if isinstance(values, list) else values.median()


class Evaluated(LightningModule):
    """Logs a metric of sums and one of lists, from steps and from an epoch's end."""

    def __init__(self) -> None:
        super().__init__()
        self.average, self.median, self.late = torchmetrics.MeanMetric(), Median(), Median()

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.average.update(batch)
        self.log("average", self.average)
        self.median.update(batch.flatten())
        self.log("median", self.median)
        self.late.update(batch.flatten())

    def on_validation_epoch_end(self) -> None:
        self.log("late", self.late)


def evaluated() -> list[dict[str, float]]:
    found = []
    for n_samples, batch_size in SIZES:
        trainer = Trainer(
            accelerator="cpu",
            devices=int(os.environ["WORLD_SIZE"]),
            strategy="ddp",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        (results,) = trainer.validate(Evaluated(), build_loader(n_samples, batch_size), verbose=False)
        found.append(results)
    return found


@pytest.fixture(scope="module", params=[2, 3])
def by_rank(request: pytest.FixtureRequest) -> list[list[dict[str, float]]]:
    return run_ranks(evaluated, request.param, timeout_s=100)


@pytest.mark.world_size(3)
@pytest.mark.parametrize("index", range(len(SIZES)))
def test_metric_objects_see_the_samples_of_all_ranks(by_rank: list[list[dict[str, float]]], index: int) -> None:
    values = build_loader(*SIZES[index]).dataset
    for results in by_rank:
        assert results[index]["average"] == pytest.approx(float(values.mean()), rel=1e-6)  # it adds up in float32
        assert results[index]["median"] == results[index]["late"] == float(values.median())
