from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from fulgur.callbacks import BasePredictionWriter
from fulgur.errors import MisconfigurationException


class Recorder(BasePredictionWriter):
    def __init__(self, write_interval: str) -> None:
        super().__init__(write_interval)
        self.batches: list[tuple[Any, ...]] = []
        self.epochs: list[tuple[Any, ...]] = []

    def write_on_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.batches.append(args)

    def write_on_epoch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.epochs.append(args)


def make_trainer() -> Any:
    loop = SimpleNamespace(current_batch_indices=[4, 5], epoch_batch_indices=[[[4, 5]]], predictions=["p"])
    return SimpleNamespace(predict_loop=loop)


class Module:
    def predict_step(self, batch: Any, batch_idx: int) -> Any: ...


class IteratorModule:
    def predict_step(self, dataloader_iter: Any) -> Any: ...


@pytest.mark.parametrize(
    ("interval", "n_batches", "n_epochs"), [("batch", 1, 0), ("epoch", 0, 1), ("batch_and_epoch", 1, 1)]
)
def test_writes_at_its_interval(interval: str, n_batches: int, n_epochs: int) -> None:
    writer: Any = Recorder(interval)
    writer.on_predict_batch_end(make_trainer(), None, "p", "batch", 2, 1)
    writer.on_predict_epoch_end(make_trainer(), None)
    assert writer.batches == [("p", [4, 5], "batch", 2, 1)] * n_batches
    assert writer.epochs == [(["p"], [[[4, 5]]])] * n_epochs


def test_unknown_interval_is_refused() -> None:
    with pytest.raises(MisconfigurationException, match=r"'step'.*'batch', 'epoch', 'batch_and_epoch'"):
        BasePredictionWriter("step")


@pytest.mark.parametrize(("interval", "method"), [("batch", "write_on_batch_end"), ("epoch", "write_on_epoch_end")])
def test_missing_method_is_told_before_anything_is_predicted(interval: str, method: str) -> None:
    writer: Any = BasePredictionWriter(interval)
    with pytest.raises(NotImplementedError, match=method):
        writer.setup(make_trainer(), Module(), "predict")


def test_step_over_an_iterator_is_refused() -> None:
    writer: Any = Recorder("batch")
    with pytest.raises(NotImplementedError, match="dataloader_iter"):
        writer.setup(make_trainer(), IteratorModule(), "predict")


def test_setup_accepts_a_complete_writer() -> None:
    writer: Any = Recorder("batch_and_epoch")
    writer.setup(make_trainer(), Module(), "predict")
