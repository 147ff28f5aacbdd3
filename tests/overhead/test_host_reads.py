"""The host reads no tensor in a step, but for one copy of all logged values at each flush."""

from __future__ import annotations

import io
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
from tests.overhead.conftest import ALL_OFF, Line, SameBatch, added_reads, fit, new_folder

from fulgur import Callback, Trainer
from fulgur.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint, RichProgressBar, Timer, progress
from fulgur.loggers import CSVLogger
from fulgur.testing import count_host_reads

ALL_KINDS: list[dict[str, Any]] = [
    {},
    {"on_step": True, "on_epoch": True},
    {"on_epoch": True, "prog_bar": True},
    {"on_step": False, "on_epoch": True, "reduce_fx": "max"},
    {"on_step": False, "on_epoch": True, "reduce_fx": "sum"},
    {"on_epoch": True, "batch_size": 3},
    {"enable_graph": True},
]

AROUND: dict[str, Callable[[], dict[str, Any]]] = {
    "nothing": dict,
    "accumulation": lambda: {"accumulate_grad_batches": 4},
    "clipping": lambda: {"gradient_clip_val": 0.1},
    "bf16-mixed": lambda: {"precision": "bf16-mixed"},
    "bf16-true": lambda: {"precision": "bf16-true"},
    "a CSV logger": lambda: {"logger": CSVLogger(new_folder())},
    "EarlyStopping": lambda: {"callbacks": [EarlyStopping("value_1")]},
    "ModelCheckpoint": lambda: {
        "callbacks": [ModelCheckpoint(new_folder(), monitor="value_1")],
        "enable_checkpointing": True,
    },
    "LearningRateMonitor": lambda: {
        "callbacks": [LearningRateMonitor()],
        "logger": CSVLogger(new_folder()),
    },
    "Timer": lambda: {"callbacks": [Timer("00:01:00:00")]},
    "a bar that prints lines": lambda: {"enable_progress_bar": True},
    "a summary": lambda: {"enable_model_summary": True},
    "validation": lambda: {"limit_val_batches": 2},
}


@pytest.mark.parametrize("name", AROUND)
@pytest.mark.usefixtures("capsys")
def test_a_step_reads_nothing(name: str) -> None:
    assert added_reads(lambda n_batches: fit(Line(ALL_KINDS), n_batches, **AROUND[name]())) == []


@pytest.mark.parametrize("n_logs", [0, 1, 5, 50])
def test_a_step_reads_nothing_for_any_number_of_logs(n_logs: int) -> None:
    logs = [{"on_epoch": True, "prog_bar": True}] * n_logs
    assert added_reads(lambda n_batches: fit(Line(logs), n_batches)) == []


def test_a_bar_that_redraws_at_every_batch_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = count(step=100.0)
    monkeypatch.setattr(progress, "monotonic", lambda: next(clock))

    def run(n_batches: int) -> None:
        terminal = {"file": io.StringIO(), "force_terminal": True, "width": 80}
        fit(Line(ALL_KINDS), n_batches, callbacks=[RichProgressBar(console_kwargs=terminal)], enable_progress_bar=True)

    assert added_reads(run) == []


def test_a_callback_that_looks_at_metrics_in_every_step_reads_nothing() -> None:
    class Look(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            seen.append(trainer.callback_metrics["value_0"])

    seen: list[Any] = []
    assert added_reads(lambda n_batches: fit(Line(ALL_KINDS), n_batches, callbacks=[Look()])) == []
    assert len(seen) == 16 + 32


def test_manual_optimization_reads_nothing() -> None:
    class Manual(Line):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer, loss = self.optimizers(), self.loss(batch)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            self.log("loss", loss, on_epoch=True)

    assert added_reads(lambda n_batches: fit(Manual(), n_batches)) == []


@pytest.mark.parametrize("n_logs", [1, 5, 50])
def test_a_flush_reads_once_for_all_values(n_logs: int) -> None:
    logs = [{"on_epoch": True, "prog_bar": True}] * n_logs
    reads = added_reads(lambda n_batches: fit(Line(logs), n_batches, log_every_n_steps=4))
    assert [read.name for read in reads] == ["Tensor.tolist"] * (16 // 4)
    assert all(read.is_flush for read in reads)


@pytest.mark.usefixtures("capsys")
def test_a_flush_reads_once_for_several_loggers_and_the_bar() -> None:
    def run(n_batches: int) -> None:
        loggers = [CSVLogger(new_folder()) for _ in range(2)]
        fit(Line(ALL_KINDS), n_batches, log_every_n_steps=8, logger=loggers, enable_progress_bar=True)

    reads = added_reads(run)
    assert len(reads) == 16 // 8
    assert all(read.is_flush for read in reads)


def test_a_flush_without_values_reads_nothing() -> None:
    assert added_reads(lambda n_batches: fit(Line(), n_batches, log_every_n_steps=1)) == []


def test_the_end_of_an_epoch_reads_once() -> None:
    def reads(max_epochs: int) -> int:
        with count_host_reads() as found:
            fit(Line(ALL_KINDS), 4, max_epochs=max_epochs)
        return len(found)

    assert reads(5) - reads(3) == 2


def test_an_evaluation_reads_once_however_many_batches_it_has() -> None:
    def reads(n_batches: int) -> list[str]:
        trainer = Trainer(**{**ALL_OFF, "limit_val_batches": 1.0})
        with count_host_reads() as found:
            trainer.validate(Line(), SameBatch(n_batches), verbose=False)
        return [read.name for read in found if read.is_flush]

    assert reads(2) == reads(20) == ["Tensor.tolist"]
