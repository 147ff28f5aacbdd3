"""Callbacks that keep nothing in a checkpoint: a resumed run logs and does what the whole one does."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fulgur import LightningModule, Trainer
from fulgur.callbacks import (
    Callback,
    DeviceStatsMonitor,
    GradientAccumulationScheduler,
    LearningRateMonitor,
)
from fulgur.loggers import DummyLogger

N_BATCHES, N_EPOCHS = 4, 3


class Rows(DummyLogger):
    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[tuple[tuple[str, float], ...], int]] = []

    def log_metrics(self, metrics: Any, step: Any = None) -> None:
        self.rows.append((tuple(sorted(metrics.items())), step))


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return (self.layer(batch) - 1).square().mean()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.5)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.9)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


class SavesAfter(Callback):
    """Saves after the batch with this number, counted over all epochs."""

    def __init__(self, path: Any, batch: int) -> None:
        self.path, self.batch, self.n_rows, self.n_seen = path, batch, 0, 0

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        self.n_seen += 1
        if self.n_seen == self.batch:
            trainer.save_checkpoint(self.path)
            self.n_rows = len(trainer.logger.rows)


def train(*callbacks: Callback, ckpt_path: Any = None) -> tuple[Net, list[Any]]:
    net, rows = Net(), Rows()
    values = torch.randn(2 * N_BATCHES, 2, generator=torch.Generator().manual_seed(5))
    trainer = Trainer(
        accelerator="cpu", logger=rows, callbacks=list(callbacks), max_epochs=N_EPOCHS, log_every_n_steps=1,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(net, torch.utils.data.DataLoader(values, batch_size=2), ckpt_path=ckpt_path)  # type: ignore[arg-type]
    return net, rows.rows


def resume(make: Any, batch: int, folder: Any) -> tuple[tuple[Net, list[Any]], tuple[Net, list[Any]]]:
    """A whole run, its rows after a batch; and a run resumed from there, with its rows."""
    saver = SavesAfter(folder / "file.ckpt", batch)
    net, rows = train(make(), saver)
    return (net, rows[saver.n_rows :]), train(make(), ckpt_path=folder / "file.ckpt")


@pytest.mark.parametrize("batch", range(1, N_BATCHES * N_EPOCHS))
def test_windows_of_a_schedule_end_at_the_same_bits(batch: int, tmp_path: Any) -> None:
    (whole, _), (resumed, _) = resume(lambda: GradientAccumulationScheduler({1: 2, 2: 3}), batch, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


@pytest.mark.parametrize("batch", [1, 4, 6])
def test_rates_are_logged_as_by_the_whole_run(batch: int, tmp_path: Any) -> None:
    (_, whole), (_, resumed) = resume(lambda: LearningRateMonitor(log_momentum=True), batch, tmp_path)
    assert len(whole) == N_BATCHES * N_EPOCHS - batch
    assert resumed == whole


def test_statistics_are_logged_at_the_steps_of_the_whole_run(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fulgur.callbacks.device_stats_monitor.cpu_stats", lambda: {"cpu_percent": 1.0})
    (_, whole), (_, resumed) = resume(DeviceStatsMonitor, 5, tmp_path)
    assert [(key, step) for ((key, _),), step in whole] == [(key, step) for ((key, _),), step in resumed]
