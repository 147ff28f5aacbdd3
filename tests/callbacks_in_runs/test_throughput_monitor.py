"""Throughput against counted figures, with a clock that the test moves."""

from __future__ import annotations

from typing import Any

import pytest

from fulgur.callbacks import ModelCheckpoint, ThroughputMonitor, throughput_monitor
from fulgur.loggers.logger import DummyLogger


class Rows(DummyLogger):
    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((int(step or 0), dict(metrics)))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(throughput_monitor.time, "perf_counter", lambda: now[0])
    return now


def takes(clock: list[float], seconds: float) -> Any:
    """A step that takes so long."""

    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        clock[0] += seconds
        return self.layer(batch).mean()

    return training_step


def test_totals_and_rates_are_the_counted_ones(tiny: Any, make_trainer: Any, loader: Any, clock: Any) -> None:
    rows = Rows()
    module = tiny(training_step=takes(clock, 0.5), flops_per_batch=30)
    monitor = ThroughputMonitor(len, lambda batch: 10 * len(batch), window_size=3)
    make_trainer(logger=rows, callbacks=monitor, log_every_n_steps=2).fit(module, loader(8, 2))
    assert rows.rows == [
        (1, {"train/time": 1.0, "train/batches": 2, "train/samples": 4, "train/lengths": 40}),
        (3, {
            "train/time": 2.0, "train/batches": 4, "train/samples": 8, "train/lengths": 80,
            "train/device/batches_per_sec": 2.0, "train/device/samples_per_sec": 4.0,
            "train/device/items_per_sec": 40.0, "train/device/flops_per_sec": 60.0,
        }),
    ]  # fmt: skip


def test_validations_do_not_count_to_the_time_of_training(
    tiny: Any, make_trainer: Any, loader: Any, clock: Any
) -> None:
    def validation_step(self: Any, batch: Any, batch_idx: int) -> None:
        clock[0] += 50.0

    rows = Rows()
    module = tiny(
        training_step=takes(clock, 1.0), validation_step=validation_step, on_validation_epoch_end=lambda s: None
    )
    trainer = make_trainer(logger=rows, callbacks=ThroughputMonitor(len, window_size=2), max_epochs=2)
    trainer.fit(module, loader(1), loader(1))
    rows_of_training = [row for _, row in rows.rows if "train/time" in row]
    assert [row["train/time"] for row in rows_of_training] == [1.0, 2.0]
    assert rows_of_training[1]["train/device/batches_per_sec"] == 1.0


def test_resumed_run_goes_on_counting(tiny: Any, make_trainer: Any, loader: Any, clock: Any, tmp_path: Any) -> None:
    module = tiny(training_step=takes(clock, 1.0))
    saver = ModelCheckpoint(tmp_path, "file")
    make_trainer(callbacks=[ThroughputMonitor(len), saver]).fit(module, loader(3))
    rows = Rows()
    trainer = make_trainer(logger=rows, callbacks=ThroughputMonitor(len), max_epochs=2, enable_checkpointing=False)
    trainer.fit(tiny(training_step=takes(clock, 1.0)), loader(3), ckpt_path=tmp_path / "file.ckpt")
    assert rows.rows[-1] == (5, {"train/time": 6.0, "train/batches": 6, "train/samples": 6})


def test_more_samples_than_items_are_refused(tiny: Any, make_trainer: Any, loader: Any) -> None:
    with pytest.raises(ValueError, match="2 samples by batch_size_fn and 1 items"):
        make_trainer(callbacks=ThroughputMonitor(len, lambda batch: 1)).fit(tiny(), loader(2, 2))


def test_window_of_one_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="window_size=1"):
        ThroughputMonitor(len, window_size=1)
