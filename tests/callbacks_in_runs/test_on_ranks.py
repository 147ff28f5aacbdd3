"""Callbacks whose work depends on the rank: what each of two ranks logs, shows and writes."""

from __future__ import annotations

import csv
import io
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from fulgur import LightningModule, Trainer
from fulgur.callbacks import (
    BasePredictionWriter,
    DeviceStatsMonitor,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateMonitor,
    ModelSummary,
    OnExceptionCheckpoint,
    RichProgressBar,
    ThroughputMonitor,
    TQDMProgressBar,
)
from fulgur.loggers import CSVLogger
from fulgur.testing import run_ranks


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layer = torch.nn.Linear(1, 1)
        self.steps: list[int] = []

    def forward(self, batch: Any) -> Any:
        return self.layer(batch)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.layer(batch).square().mean()
        self.log("mine", float(batch.max()))
        return loss

    def on_train_epoch_end(self) -> None:
        self.steps.append(self.global_step)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def build_loader(n: int = 8) -> Any:
    return DataLoader(torch.arange(float(n)).reshape(n, 1), batch_size=1)  # type: ignore[arg-type]


def make_trainer(folder: Path, **arguments: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu", "strategy": "ddp", "devices": 2, "max_epochs": 1, "log_every_n_steps": 1,
        "logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
        "default_root_dir": folder,
    }  # fmt: skip
    return Trainer(**(defaults | arguments))


def log(folder: Path) -> tuple[list[str], int]:
    logger = CSVLogger(folder / "logs", name="", version=0)
    monitors = [LearningRateMonitor(), ThroughputMonitor(len, window_size=2), DeviceStatsMonitor(cpu_stats=False)]
    trainer = make_trainer(folder, logger=logger, callbacks=monitors)
    trainer.fit(Net(), build_loader())
    throughput: Any = monitors[1]
    return sorted(throughput._counts), trainer.global_step


def test_monitors_log_once_and_the_rate_of_all_ranks_is_the_devices_times_their_number(tmp_path: Path) -> None:
    assert run_ranks(log, 2, tmp_path) == [(["train"], 4), ([], 4)]
    with open(tmp_path / "logs/version_0/metrics.csv") as file:
        rows = list(csv.DictReader(file))
    counted = [row for row in rows if row["train/batches"]]
    assert [row["train/samples"] for row in counted] == ["1", "2", "3", "4"]
    rates = [(float(r["train/global/batches_per_sec"]), float(r["train/device/batches_per_sec"])) for r in counted[1:]]
    assert all(whole == 2 * one for whole, one in rates)
    assert [row["step"] for row in rows if row["lr-SGD"]] == ["0", "0", "1", "2", "3"]


def show(folder: Path, bar: type) -> str:
    text = io.StringIO()
    with redirect_stdout(text):
        callbacks = [ModelSummary(), bar()]
        make_trainer(folder, callbacks=callbacks, enable_progress_bar=True, enable_model_summary=True).fit(
            Net(), build_loader()
        )
    return text.getvalue()


def test_only_rank_zero_shows_the_summary_and_the_bar(tmp_path: Path) -> None:
    first, second = run_ranks(show, 2, tmp_path, RichProgressBar)
    assert "Total params" in first
    assert "Epoch 0" in first
    assert second == ""


def show_tqdm(folder: Path) -> str:
    import sys

    text = io.StringIO()
    own, sys.stdout = sys.stdout, text
    errors, sys.stderr = sys.stderr, text
    try:
        make_trainer(folder, callbacks=TQDMProgressBar(), enable_progress_bar=True).fit(Net(), build_loader())
    finally:
        sys.stdout, sys.stderr = own, errors
    return text.getvalue()


def test_only_rank_zero_shows_the_bar_of_tqdm(tmp_path: Path) -> None:
    first, second = run_ranks(show_tqdm, 2, tmp_path)
    assert "Epoch 0" in first
    assert "Epoch 0" not in second


def accumulate(folder: Path) -> list[int]:
    net = Net()
    make_trainer(folder, max_epochs=3, callbacks=GradientAccumulationScheduler({1: 2, 2: 4})).fit(net, build_loader())
    return net.steps


def test_windows_of_a_schedule_are_the_same_on_all_ranks(tmp_path: Path) -> None:
    assert run_ranks(accumulate, 2, tmp_path) == [[4, 6, 7]] * 2


def stop_early(folder: Path) -> int:
    class OneRankIsBetter(Net):
        def on_train_epoch_end(self) -> None:
            value = -float(self.current_epoch) if self.global_rank else 1.0
            self.log("score", value, sync_dist=False)

    trainer = make_trainer(folder, max_epochs=9, callbacks=EarlyStopping("score", patience=2))
    trainer.fit(OneRankIsBetter(), build_loader())
    return trainer.current_epoch


def test_a_rank_that_is_still_better_stops_with_the_other(tmp_path: Path) -> None:
    assert run_ranks(stop_early, 2, tmp_path) == [3, 3]


class Writer(BasePredictionWriter):
    def __init__(self) -> None:
        super().__init__("batch_and_epoch")
        self.seen: list[Any] = []

    def write_on_batch_end(self, trainer: Any, pl_module: Any, prediction: Any, batch_indices: Any, *rest: Any) -> None:
        self.seen.append((prediction.flatten().tolist(), batch_indices))

    def write_on_epoch_end(self, trainer: Any, pl_module: Any, predictions: Any, batch_indices: Any) -> None:
        self.seen.append(batch_indices)


class Same(Net):
    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return batch


def predict(folder: Path) -> Any:
    writer = Writer()
    make_trainer(folder, callbacks=writer).predict(Same(), build_loader(5), return_predictions=False)
    return writer.seen


def test_each_rank_writes_its_own_samples_once(tmp_path: Path) -> None:
    seen = run_ranks(predict, 2, tmp_path)
    written = [index for *batches, _ in seen for _, indices in batches for index in indices]
    assert sorted(written) == [0, 1, 2, 3, 4]
    assert all(values == [float(i) for i in indices] for *batches, _ in seen for values, indices in batches)
    assert [epoch for *_, epoch in seen] == [[[indices for _, indices in batches]] for *batches, _ in seen]


def break_on_both(folder: Path) -> None:
    class Breaks(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if batch_idx == 2:
                raise RuntimeError("broken")
            return super().training_step(batch, batch_idx)

    with pytest.raises(RuntimeError, match="broken"):
        make_trainer(folder, callbacks=OnExceptionCheckpoint(folder, "left"), enable_checkpointing=True).fit(
            Breaks(), build_loader()
        )


def test_an_exception_on_all_ranks_leaves_one_file(tmp_path: Path) -> None:
    run_ranks(break_on_both, 2, tmp_path)
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["left.ckpt"]
    assert torch.load(tmp_path / "left.ckpt", weights_only=True)["global_step"] == 2
