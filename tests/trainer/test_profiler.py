"""What a profiler of the Trainer measures, and that a run without one pays nothing."""

from __future__ import annotations

import logging
import pstats
from pathlib import Path
from typing import Any

import pytest
from tests.trainer.conftest import Letters, Net, numbers, quiet

from fulgur.callbacks import Callback
from fulgur.datamodule import LightningDataModule
from fulgur.profilers import AdvancedProfiler, PassThroughProfiler, Profiler, SimpleProfiler


def test_simple_profiler_counts_steps_hooks_and_batches() -> None:
    profiler = SimpleProfiler()
    quiet(max_epochs=2, profiler=profiler, callbacks=[Letters()]).fit(Net(), numbers(3), numbers(2))
    n_calls = {action: len(durations) for action, durations in profiler.recorded_durations.items()}
    expected = {
        "run_training_epoch": 2,
        "run_training_batch": 6,
        "[Strategy]SingleDeviceStrategy.batch_to_device": 10,
        "[Strategy]SingleDeviceStrategy.training_step": 6,
        "[Strategy]SingleDeviceStrategy.backward": 6,
        "[LightningModule]Net.optimizer_step": 6,
        "[LightningModule]Net.setup": 1,
        "[LightningModule]Net.configure_optimizers": 1,
        "[LightningModule]Net.teardown": 1,
        "[Strategy]SingleDeviceStrategy.validation_step": 4,
        "[Callback]Letters.setup": 1,
        "[Callback]Letters.on_train_batch_end": 6,
        "[Callback]Letters.on_train_epoch_end": 2,
        "[Callback]Letters.on_validation_end": 2,
        "[_TrainingEpochLoop].train_dataloader_next": 8,  # six batches, and the end of the loader twice
        "[_EvaluationLoop].val_next": 4,
    }
    assert {action: n_calls.get(action) for action in expected} == expected


def test_simple_profiler_counts_loaders_of_a_datamodule_checkpoints_and_manual_steps(tmp_path: Path) -> None:
    class Manual(Net):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            self.optimizers().step()  # type: ignore[union-attr]

    class Data(LightningDataModule):
        def train_dataloader(self) -> Any:
            return numbers(3)

        def predict_dataloader(self) -> Any:
            return numbers(2)

    profiler = SimpleProfiler()
    trainer = quiet(max_epochs=1, profiler=profiler, callbacks=[Saves(tmp_path)])
    trainer.fit(Manual(), datamodule=Data())
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    trainer.test(trainer.lightning_module, numbers(2), verbose=False)
    trainer.predict(datamodule=Data())
    n_calls = {action: len(durations) for action, durations in profiler.recorded_durations.items()}
    expected = {
        "optimizer_step": 3,
        "save_checkpoint": 1,
        "[LightningDataModule]Data.setup": 3,  # it stays the Trainer's
        "[LightningDataModule]Data.train_dataloader": 1,
        "[LightningDataModule]Data.predict_dataloader": 1,
        "[_EvaluationLoop].test_next": 2,
        "[_PredictionLoop].predict_next": 2,
    }
    assert {action: n_calls.get(action) for action in expected} == expected


class Saves(Callback):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        trainer.save_checkpoint(self.folder / "file.ckpt")


def test_advanced_profiler_tells_parts_of_a_step_apart() -> None:
    profiler = AdvancedProfiler()
    quiet(max_epochs=1, profiler=profiler).fit(Net(), numbers(2), numbers(2))
    called = {name: {f[2] for f in pstats.Stats(p).stats} for name, p in profiler.profiled_actions.items()}  # type: ignore[attr-defined]
    assert "training_step" in called["[Strategy]SingleDeviceStrategy.training_step"]
    assert "training_step" not in called["run_training_epoch"] | called["run_training_batch"]
    assert "validation_step" in called["[Strategy]SingleDeviceStrategy.validation_step"]


def test_profiler_by_name_reports_a_table_when_the_run_ends(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "fulgur"):
        quiet(max_epochs=1, profiler="simple").fit(Net(), numbers(2))
    report = next(message for message in caplog.messages if "Profiler Report" in message)
    assert "FIT Profiler Report" in report
    assert "[Strategy]SingleDeviceStrategy.training_step" in report
    assert "Mean duration (s)" in report


def test_profiler_with_a_file_name_writes_a_file_for_each_stage(tmp_path: Path) -> None:
    trainer = quiet(max_epochs=1, profiler=SimpleProfiler(tmp_path, "perf"))
    model = Net()
    trainer.fit(model, numbers(2))
    trainer.test(model, numbers(2), verbose=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fit-perf.txt", "test-perf.txt"]
    assert "SingleDeviceStrategy.test_step" in (tmp_path / "test-perf.txt").read_text()


def test_profiled_run_computes_the_same() -> None:
    def weights(**kwargs: Any) -> list[float]:
        model = Net()
        model.layer.weight.data.fill_(0.5)
        quiet(max_epochs=2, accumulate_grad_batches=2, gradient_clip_val=1e-4, **kwargs).fit(model, numbers(3))
        return model.layer.weight.tolist()

    assert weights(profiler="simple") == weights()


def test_own_profiler_is_told_of_beginning_and_end_of_each_run() -> None:
    class Told(Profiler):
        def __init__(self) -> None:
            super().__init__()
            self.calls: list[str] = []

        def start(self, action_name: str) -> None: ...

        def stop(self, action_name: str) -> None: ...

        def setup(self, stage: str, local_rank: int | None = None, log_dir: str | None = None) -> None:
            self.calls.append(f"setup {stage}")

        def teardown(self, stage: str | None = None) -> None:
            self.calls.append(f"teardown {stage}")

    told = Told()
    trainer = quiet(max_epochs=1, profiler=told)
    trainer.fit(Net(), numbers(1))
    trainer.predict(Net(), numbers(1))
    assert told.calls == ["setup fit", "teardown fit", "setup predict", "teardown predict"]


def test_user_code_may_measure_without_a_profiler_too() -> None:
    class Measures(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            with self.trainer.profiler.profile("mine"):
                return super().training_step(batch, batch_idx)

    trainer = quiet(max_epochs=1)
    trainer.fit(Measures(), numbers(1))
    assert isinstance(trainer.profiler, PassThroughProfiler)


def test_without_a_profiler_nothing_is_wrapped() -> None:
    trainer, model = quiet(max_epochs=1, callbacks=[Letters()]), Net()
    trainer.fit(model, numbers(1))
    assert trainer.fit_loop.plan.training_step == model.training_step
    assert trainer.fit_loop.plan.backward is None
    assert trainer.fit_loop.plan.optimizer_step is None
    assert trainer.fit_loop.measure is None
    assert trainer.fit_loop.fetch.measure is None
