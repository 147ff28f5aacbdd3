"""What `self.log` gives on several ranks: exact over all samples, in one exchange, or a clear error."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import pytest
import torch

from fulgur import LightningModule, Trainer
from fulgur.errors import MisconfigurationException
from fulgur.loggers import Logger
from fulgur.testing import run_ranks

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "strategy": "ddp",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "max_epochs": 1,
    "num_sanity_val_steps": 0,
}


def rank() -> int:
    return int(os.environ["RANK"])


def n_ranks() -> int:
    return int(os.environ["WORLD_SIZE"])


def build_loader(n_samples: int, batch_size: int) -> Any:
    values = torch.randn(n_samples, 1, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return torch.utils.data.DataLoader(values, batch_size=batch_size)


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> Any:
        return (self.weight * batch).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Rows(Logger):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, dict[str, float]]] = []

    name = "rows"  # type: ignore[assignment]
    version = 0  # type: ignore[assignment]

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((int(step or 0), dict(metrics)))

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        pass


class Evaluated(Net):
    """Logs each batch's mean, sum, extremes, and a plain number."""

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.log("mean", batch.mean())
        self.log("sum", batch.sum(), reduce_fx="sum")
        self.log("min", batch.min(), reduce_fx="min")
        self.log("max", batch.max(), reduce_fx="max")
        self.log("number", float(batch.mean()))
        self.log("local", batch.mean(), sync_dist=False)

    def on_validation_epoch_end(self) -> None:
        self.log("at the end", 2.0 * rank())


def evaluated(sizes: list[tuple[int, int]]) -> list[dict[str, float]]:
    found = []
    for n_samples, batch_size in sizes:
        trainer = Trainer(devices=n_ranks(), **QUIET)
        (results,) = trainer.validate(Evaluated(), build_loader(n_samples, batch_size), verbose=False)
        found.append(results)
    return found


SIZES = [(1, 1), (3, 2), (5, 2), (7, 3), (16, 4)]


@pytest.fixture(scope="module", params=[2, 3])
def by_rank(request: pytest.FixtureRequest) -> list[list[dict[str, float]]]:
    return run_ranks(evaluated, request.param, SIZES, timeout_s=100)


@pytest.mark.world_size(3)
def test_values_are_those_of_one_process(by_rank: list[list[dict[str, float]]]) -> None:
    for results in by_rank:
        for (n_samples, batch_size), result in zip(SIZES, results, strict=True):
            values = build_loader(n_samples, batch_size).dataset
            expected = {
                "mean": values.mean(),
                "number": values.mean(),
                "sum": values.sum(),
                "min": values.min(),
                "max": values.max(),
            }
            for key, value in expected.items():
                assert result[key] == pytest.approx(float(value), rel=1e-12, abs=1e-12), (n_samples, key)
            assert result["at the end"] == pytest.approx(len(by_rank) - 1.0, abs=1e-12)


@pytest.mark.world_size(3)
def test_values_with_sync_dist_false_stay_on_their_rank(by_rank: list[list[dict[str, float]]]) -> None:
    locals_ = [results[-1]["local"] for results in by_rank]
    assert len(set(locals_)) == len(by_rank)


# -------------------------------------------------------------------------------------------------- who exchanges


def collectives_of_an_epoch() -> dict[str, int]:
    class Two(Net):
        def training_step(self, batch: torch.Tensor, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            for name in ("a", "b", "c"):
                self.log(name, loss, on_step=True, on_epoch=True)
            return loss

        def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
            for name in ("d", "e"):
                self.log(name, batch.mean())

    counts: Counter[str] = Counter()
    from fulgur.strategies import DDPStrategy

    original = DDPStrategy.all_gather

    def counting(self: Any, *args: Any, **kwargs: Any) -> Any:
        counts["all_gather"] += 1
        return original(self, *args, **kwargs)

    DDPStrategy.all_gather = counting  # type: ignore[method-assign]
    try:
        trainer = Trainer(devices=2, **{**QUIET, "max_epochs": 3, "log_every_n_steps": 1})
        trainer.fit(Two(), build_loader(24, 2), build_loader(8, 2))
    finally:
        DDPStrategy.all_gather = original  # type: ignore[method-assign]
    return dict(counts)


@pytest.mark.world_size(2)
def test_an_epoch_exchanges_its_values_once_for_training_and_once_for_validation() -> None:
    assert run_ranks(collectives_of_an_epoch, 2) == [{"all_gather": 6}] * 2


class ManyKeys(Net):
    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        for key in range(300):
            self.log(f"key {key}", batch.mean() * key)


def many_keys() -> list[dict[str, float]]:
    return [Trainer(devices=2, **QUIET).validate(ManyKeys(), build_loader(n, 1), verbose=False)[0] for n in (1, 2, 5)]


@pytest.mark.world_size(2)
def test_any_number_of_keys_is_exchanged() -> None:
    for results in run_ranks(many_keys, 2):
        for n_samples, result in zip((1, 2, 5), results, strict=True):
            mean = float(build_loader(n_samples, 1).dataset.mean())
            assert len(result) == 300
            for key in range(300):
                assert result[f"key {key}"] == pytest.approx(mean * key, rel=1e-12, abs=1e-12)


# ------------------------------------------------------------------------------------------------ keys that differ


class Different(Net):
    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.log("common", batch.mean())
        self.log("odd" if rank() else "even", batch.mean())


def log_different_keys() -> None:
    Trainer(devices=2, **QUIET).validate(Different(), build_loader(8, 2), verbose=False)


@pytest.mark.world_size(2)
def test_keys_that_differ_are_an_error_that_names_those_of_each_rank() -> None:
    with pytest.raises(MisconfigurationException, match=r"rank 0: even; rank 1: odd.*sync_dist=False"):
        run_ranks(log_different_keys, 2)


class OnlyOnZero(Net):
    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        if rank() == 0:
            self.log("own", batch.mean(), rank_zero_only=True)
        else:
            self.log("other", batch.mean(), sync_dist=False)


def log_on_zero() -> dict[str, float]:
    return Trainer(devices=2, **QUIET).validate(OnlyOnZero(), build_loader(8, 2), verbose=False)[0]


@pytest.mark.world_size(2)
def test_values_of_one_rank_are_not_exchanged() -> None:
    assert [sorted(result) for result in run_ranks(log_on_zero, 2)] == [["own"], ["other"]]


# ------------------------------------------------------------------------------------------------ values of steps


class Steps(Net):
    def training_step(self, batch: torch.Tensor, batch_idx: int) -> Any:
        self.log("own", float(rank()), on_step=True)
        self.log("shared", float(rank()), on_step=True, sync_dist=True)
        self.log("total", float(batch_idx + rank()), on_step=False, on_epoch=True)
        return None if batch_idx == 3 and rank() == 1 else super().training_step(batch, batch_idx)


def rows_of_loggers() -> tuple[list[Any], float]:
    rows = Rows()
    trainer = Trainer(devices=2, **{**QUIET, "logger": rows, "log_every_n_steps": 2})
    trainer.fit(Steps(), build_loader(16, 1))
    return rows.rows, float(trainer.callback_metrics["total"])


@pytest.mark.world_size(2)
def test_rows_of_steps_are_of_rank_zero_and_means_where_asked_for() -> None:
    (rows, epoch), (other_rows, other_epoch) = run_ranks(rows_of_loggers, 2)
    for own, found in ((0.0, rows), (1.0, other_rows)):  # fulgur's own loggers write on rank 0 alone
        assert found[:-1] == [(step, {"own": own, "shared": 0.5, "epoch": 0}) for step in (1, 3, 5, 7)]
    assert rows[-1] == (7, {"total": 4.0, "epoch": 0})
    assert epoch == other_epoch == 4.0
