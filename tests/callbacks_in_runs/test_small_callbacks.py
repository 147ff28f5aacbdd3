"""Accumulation schedules, functions as callbacks, prediction writers and model summaries in real runs."""

from __future__ import annotations

from typing import Any
from weakref import ref

import pytest
import torch

from fulgur.callbacks import (
    BasePredictionWriter,
    GradientAccumulationScheduler,
    LambdaCallback,
    ModelSummary,
    RichModelSummary,
)
from fulgur.errors import MisconfigurationException

# ------------------------------------------------------------------------------------ GradientAccumulationScheduler


def test_windows_grow_with_the_schedule(tiny: Any, make_trainer: Any, loader: Any) -> None:
    steps: list[int] = []
    module = tiny(on_train_epoch_end=lambda self: steps.append(self.global_step))
    trainer = make_trainer(callbacks=GradientAccumulationScheduler({1: 2, 2: 4}), max_epochs=3)
    trainer.fit(module, loader(4))
    assert steps == [4, 6, 7]


def test_schedule_of_1x_means_the_same(tiny: Any, make_trainer: Any, loader: Any) -> None:
    trainer = make_trainer(accumulate_grad_batches={1: 2, 2: 4}, max_epochs=3)
    trainer.fit(tiny(), loader(4))
    assert trainer.global_step == 7


def test_schedule_beside_the_trainers_own_is_refused(tiny: Any, make_trainer: Any, loader: Any) -> None:
    trainer = make_trainer(callbacks=GradientAccumulationScheduler({1: 2}), accumulate_grad_batches=2)
    with pytest.raises(ValueError, match="both set the accumulation"):
        trainer.fit(tiny(), loader(4))


def test_schedule_of_manual_optimization_is_refused(tiny: Any, make_trainer: Any, loader: Any) -> None:
    module = tiny()
    module.automatic_optimization = False
    with pytest.raises(RuntimeError, match="automatic_optimization=False"):
        make_trainer(callbacks=GradientAccumulationScheduler({1: 2})).fit(module, loader(4))


# --------------------------------------------------------------------------------------------------- LambdaCallback


def test_functions_are_called_with_what_hooks_get(tiny: Any, make_trainer: Any, loader: Any) -> None:
    calls: list[Any] = []
    callback = LambdaCallback(
        setup=lambda trainer, pl_module, stage: calls.append(("setup", stage)),
        on_train_batch_end=lambda trainer, pl_module, outputs, batch, batch_idx: calls.append(
            (batch_idx, set(outputs))
        ),
        on_train_epoch_end=lambda trainer, pl_module: pl_module.log("by_function", 1.0),
        teardown=lambda trainer, pl_module, stage: calls.append(("teardown", stage)),
    )
    trainer = make_trainer(callbacks=callback)
    trainer.fit(tiny(), loader(2))
    assert calls == [("setup", "fit"), (0, {"loss"}), (1, {"loss"}), ("teardown", "fit")]
    assert trainer.callback_metrics["by_function"] == 1.0


# --------------------------------------------------------------------------------------------- BasePredictionWriter


class Writer(BasePredictionWriter):
    def __init__(self, write_interval: str) -> None:
        super().__init__(write_interval)
        self.batches: list[Any] = []
        self.epochs: list[Any] = []

    def write_on_batch_end(
        self,
        trainer: Any,
        pl_module: Any,
        prediction: Any,
        batch_indices: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        self.batches.append((prediction.flatten().tolist(), batch_indices, batch_idx, dataloader_idx))

    def write_on_epoch_end(self, trainer: Any, pl_module: Any, predictions: Any, batch_indices: Any) -> None:
        self.epochs.append((predictions, batch_indices))


def predict_step(self: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
    return batch + 10.0 * dataloader_idx


BATCHES = [([0.0, 1.0], [0, 1], 0, 0), ([2.0, 3.0], [2, 3], 1, 0), ([4.0], [4], 2, 0)]


@pytest.mark.parametrize(("interval", "batches", "n_epochs"), [
    ("batch", BATCHES, 0), ("epoch", [], 1), ("batch_and_epoch", BATCHES, 1),
])  # fmt: skip
def test_writer_gets_each_batch_or_all_of_them(
    interval: str, batches: Any, n_epochs: int, tiny: Any, make_trainer: Any, loader: Any
) -> None:
    writer = Writer(interval)
    make_trainer(callbacks=writer).predict(tiny(predict_step=predict_step), loader(5, 2), return_predictions=False)
    assert writer.batches == batches
    assert len(writer.epochs) == n_epochs
    for predictions, indices in writer.epochs:
        assert [p.flatten().tolist() for p in predictions] == [[0.0, 1.0], [2.0, 3.0], [4.0]]
        assert indices == [[[0, 1], [2, 3], [4]]]


def test_writer_gets_the_samples_of_several_loaders(tiny: Any, make_trainer: Any, loader: Any) -> None:
    writer = Writer("batch_and_epoch")
    make_trainer(callbacks=writer).predict(tiny(predict_step=predict_step), [loader(3, 2), loader(1)])
    assert writer.batches == [([0.0, 1.0], [0, 1], 0, 0), ([2.0], [2], 1, 0), ([10.0], [0], 0, 1)]
    predictions, indices = writer.epochs[0]
    assert [[p.flatten().tolist() for p in of_loader] for of_loader in predictions] == [[[0.0, 1.0], [2.0]], [[10.0]]]
    assert indices == [[[0, 1], [2]], [[0]]]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_indices_are_those_of_the_samples_in_any_order(
    num_workers: int, tiny: Any, make_trainer: Any, loader: Any
) -> None:
    writer = Writer("batch")
    shuffled = loader(7, 2, shuffle=True, num_workers=num_workers)
    make_trainer(callbacks=writer).predict(tiny(predict_step=predict_step), shuffled)
    assert [values for values, *_ in writer.batches] == [[float(i) for i in of] for _, of, *_ in writer.batches]
    assert sorted(i for _, of, *_ in writer.batches for i in of) == list(range(7))


def test_writer_of_batches_has_one_prediction_in_memory_at_a_time(tiny: Any, make_trainer: Any, loader: Any) -> None:
    made: list[Any] = []
    alive: list[int] = []

    def make(self: Any, batch: Any, batch_idx: int) -> Any:
        prediction = batch.clone()
        made.append(ref(prediction))
        return prediction

    class Counts(Writer):
        def write_on_batch_end(self, *args: Any) -> None:
            alive.append(sum(one() is not None for one in made))

    trainer = make_trainer(callbacks=Counts("batch"))
    trainer.predict(tiny(predict_step=make), loader(6), return_predictions=False)
    assert alive == [1] * 6
    assert trainer.predict_loop.epoch_batch_indices == [[]]


def test_writer_with_an_unknown_interval_is_refused() -> None:
    with pytest.raises(MisconfigurationException, match="'sometimes'"):
        Writer("sometimes")


def test_writer_refuses_a_step_that_gets_the_iterator(tiny: Any, make_trainer: Any, loader: Any) -> None:
    module = tiny(predict_step=lambda self, dataloader_iter: None)
    with pytest.raises(NotImplementedError, match="dataloader_iter"):
        make_trainer(callbacks=Writer("batch")).predict(module, loader(2))


# ----------------------------------------------------------------------------------------------------- ModelSummary


@pytest.mark.parametrize("callback", [None, ModelSummary(max_depth=1), RichModelSummary(max_depth=1)])
def test_summary_is_printed_when_a_fit_begins(
    callback: Any, tiny: Any, make_trainer: Any, loader: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = make_trainer(callbacks=callback, enable_model_summary=True)
    trainer.fit(tiny(), loader(1))
    text = capsys.readouterr().out
    assert text.count("layer") == 1
    assert "Linear" in text
    assert "Total params" in text
    trainer.validate(tiny(), loader(1), verbose=False)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "arguments",
    [{"enable_model_summary": False}, {"callbacks": ModelSummary(max_depth=0), "enable_model_summary": True}],
)
def test_summary_is_not_printed_on_request(
    arguments: Any, tiny: Any, make_trainer: Any, loader: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    make_trainer(**arguments).fit(tiny(), loader(1))
    assert capsys.readouterr().out == ""


def test_summary_with_an_example_shows_sizes_and_leaves_the_run_alone(
    tiny: Any, make_trainer: Any, loader: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    module = tiny()
    module.example_input_array = torch.ones(3, 1)
    make_trainer(enable_model_summary=True).fit(module, loader(1))
    text = capsys.readouterr().out
    assert "In sizes" in text
    assert "[3, 1]" in text
