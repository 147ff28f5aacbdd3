"""Statistics of the device: keys, when they are logged, what is refused."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from fulgur.callbacks import DeviceStatsMonitor
from fulgur.errors import MisconfigurationException, MissingExtraError
from fulgur.loggers.logger import DummyLogger

STATS = ("cpu_percent", "cpu_vm_percent", "cpu_swap_percent")


class Rows(DummyLogger):
    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if any("DeviceStats" in key for key in metrics):
            self.rows.append((int(step or 0), dict(metrics)))


@pytest.fixture(autouse=True)
def _psutil(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = SimpleNamespace(percent=20.0)
    fake = SimpleNamespace(cpu_percent=lambda: 10.0, virtual_memory=lambda: memory, swap_memory=lambda: memory)
    monkeypatch.setitem(sys.modules, "psutil", fake)


def test_statistics_are_logged_where_loggers_get_values(tiny: Any, make_trainer: Any, loader: Any) -> None:
    rows = Rows()
    make_trainer(logger=rows, callbacks=DeviceStatsMonitor(), log_every_n_steps=2).fit(tiny(), loader(4))
    hooks = ["on_train_batch_start", "on_train_batch_end"] * 2
    assert [(step, list(row)) for step, row in rows.rows] == [
        (step, [f"DeviceStatsMonitor.{hook}/{stat}" for stat in STATS])
        for step, hook in zip((1, 1, 3, 3), hooks, strict=True)
    ]
    assert list(rows.rows[0][1].values()) == [10.0, 20.0, 20.0]


@pytest.mark.parametrize(("method", "stage"), [("validate", "validation"), ("test", "test")])
def test_evaluations_are_logged_too(method: str, stage: str, tiny: Any, make_trainer: Any, loader: Any) -> None:
    rows = Rows()
    trainer = make_trainer(logger=rows, callbacks=DeviceStatsMonitor(), log_every_n_steps=2)
    getattr(trainer, method)(tiny(), loader(3), verbose=False)
    assert [next(iter(row)) for _, row in rows.rows] == [
        f"DeviceStatsMonitor.on_{stage}_batch_{end}/cpu_percent" for end in ("start", "end")
    ]


def test_a_fit_without_a_logger_is_refused(tiny: Any, make_trainer: Any, loader: Any) -> None:
    with pytest.raises(MisconfigurationException, match="no logger to write to"):
        make_trainer(callbacks=DeviceStatsMonitor()).fit(tiny(), loader(1))


def test_a_missing_package_is_named_before_anything_runs(
    tiny: Any, make_trainer: Any, loader: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    with pytest.raises(MissingExtraError, match="psutil"):
        make_trainer(logger=Rows(), callbacks=DeviceStatsMonitor()).fit(tiny(), loader(1))
    make_trainer(logger=Rows(), callbacks=DeviceStatsMonitor(cpu_stats=False)).fit(tiny(), loader(1))
