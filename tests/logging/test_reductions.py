"""Epoch values: exact means weighted by samples, sums, minima and maxima."""

from __future__ import annotations

import builtins
import warnings
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from fulgur import metrics
from fulgur.errors import MisconfigurationException


def train_on(tiny: Any, make_trainer: Any, batches: Any, make_value: Any, epochs: int = 1, **options: Any) -> Any:
    """The Trainer after fits on `batches`, with ``make_value(batch)`` logged as "x"."""

    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        self.log("x", make_value(batch), on_step=False, on_epoch=True, **options)
        return self.layer(torch.ones(1, 1)).mean()

    trainer = make_trainer(max_epochs=epochs)
    trainer.fit(tiny(training_step=training_step), batches)
    return trainer


@pytest.mark.parametrize("kind", ["tensor", "number"])
@pytest.mark.parametrize("batch_size", [1, 3, 4, 7, 10])
def test_mean_over_a_short_last_batch_is_the_mean_over_samples(
    kind: str, batch_size: int, tiny: Any, make_trainer: Any, loader: Any, recorder: Any
) -> None:
    def mean(batch: Tensor) -> Any:
        value = (batch * 0.1).exp().mean()
        return value if kind == "tensor" else value.item()

    train_on(tiny, make_trainer, loader(10, batch_size, torch.float64), mean)
    expected = (torch.arange(10, dtype=torch.float64) * 0.1).exp().mean().item()
    assert recorder.rows_with("x") == [(pytest.approx(expected, abs=1e-12, rel=1e-12), (9 // batch_size))]


def test_mean_of_many_float32_values_does_not_drift(tiny: Any, make_trainer: Any, loader: Any) -> None:
    def validation_step(self: Any, batch: Any, batch_idx: int) -> None:
        self.log("x", torch.tensor(0.1))

    results = make_trainer().validate(tiny(validation_step=validation_step), loader(3000), verbose=False)
    assert results[0]["x"] == torch.tensor(0.1).item()


def test_each_epoch_has_a_mean_of_its_own(tiny: Any, make_trainer: Any, loader: Any, recorder: Any) -> None:
    train_on(tiny, make_trainer, loader(5, 2), lambda batch: batch.mean(), epochs=3)
    assert recorder.rows_with("x") == [(2.0, 2), (2.0, 5), (2.0, 8)]


@pytest.mark.parametrize(
    ("reduce_fx", "expected"),
    [
        ("mean", 2.0),
        ("avg", 2.0),
        (torch.mean, 2.0),
        ("sum", 5.5),
        (torch.sum, 5.5),
        (builtins.sum, 5.5),
        ("min", 0.5),
        (torch.min, 0.5),
        (builtins.min, 0.5),
        ("max", 4.0),
        (torch.max, 4.0),
        (builtins.max, 4.0),
    ],
)
@pytest.mark.parametrize("kind", ["tensor", "number", "mixed"])
def test_reductions(kind: str, reduce_fx: Any, expected: float, tiny: Any, make_trainer: Any, loader: Any) -> None:
    n_calls = 0

    def value(batch: Tensor) -> Any:  # the batches' means are 0.5 (2), 1.0 (2 of them) and 4.0 (1)
        nonlocal n_calls
        n_calls += 1
        mean = {0.5: 0.5, 2.5: 2.5, 4.0: 4.0}[batch.mean().item()]
        mean = 1.0 if mean == 2.5 and reduce_fx not in ("mean", "avg", torch.mean) else mean
        is_tensor = kind == "tensor" or (kind == "mixed" and n_calls % 2)
        return torch.tensor(mean) if is_tensor else mean

    trainer = train_on(tiny, make_trainer, loader(5, 2), value, reduce_fx=reduce_fx)
    assert trainer.callback_metrics["x"] == expected


@pytest.mark.parametrize("reduce_fx", ["median", torch.std, lambda values: values])
def test_any_other_reduction_is_refused(reduce_fx: Any, tiny: Any, make_trainer: Any, loader: Any) -> None:
    with pytest.raises(MisconfigurationException, match="log a torchmetrics metric"):
        train_on(tiny, make_trainer, loader(), lambda batch: 1.0, reduce_fx=reduce_fx)


def test_batch_size_given_is_the_weight(tiny: Any, make_trainer: Any, loader: Any) -> None:
    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        self.log("x", torch.tensor(float(batch_idx)), on_step=False, on_epoch=True, batch_size=(1, 9)[batch_idx])
        return self.layer(batch).mean()

    trainer = make_trainer()
    trainer.fit(tiny(training_step=training_step), loader(2))
    assert trainer.callback_metrics["x"].item() == pytest.approx(0.9)


@pytest.mark.parametrize("kind", [torch.tensor, float])
def test_batch_size_of_0_is_no_weight(kind: Any, tiny: Any, make_trainer: Any, loader: Any) -> None:
    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        self.log("x", kind(float(batch_idx)), on_step=False, on_epoch=True, batch_size=2 if batch_idx == 1 else 0)
        self.log("nothing", kind(1.0), on_step=False, on_epoch=True, batch_size=0)
        return self.layer(torch.ones(1, 1)).mean()

    trainer = make_trainer()
    trainer.fit(tiny(training_step=training_step), loader(6, 2))
    assert trainer.callback_metrics["x"] == 1.0
    assert trainer.callback_metrics["nothing"].isnan()


def test_batch_size_given_is_not_taken_for_other_names(tiny: Any, make_trainer: Any, loader: Any) -> None:
    def validation_step(self: Any, batch: Any, batch_idx: int) -> None:
        self.log("a", batch.mean(), batch_size=100)
        self.log("b", batch.mean())

    results = make_trainer().validate(tiny(validation_step=validation_step), loader(3, 2), verbose=False)
    assert results == [{"a": 1.25, "b": 1.0}]


def test_two_calls_in_a_batch_both_count_and_the_last_is_the_steps_value(
    tiny: Any, make_trainer: Any, loader: Any, recorder: Any
) -> None:
    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        self.log("x", 1.0, on_step=True, on_epoch=True)
        self.log("x", 2.0, on_step=True, on_epoch=True)
        return self.layer(batch).mean()

    make_trainer().fit(tiny(training_step=training_step), loader(2))
    assert recorder.rows_with("x_step") == [(2.0, 0), (2.0, 1)]
    assert recorder.rows_with("x_epoch") == [(1.5, 1)]


def test_two_calls_with_different_arguments_are_refused(tiny: Any, make_trainer: Any, loader: Any) -> None:
    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        self.log("x", 1.0)
        self.log("x", 1.0, prog_bar=True)
        return self.layer(batch).mean()

    with pytest.raises(MisconfigurationException, match=r"twice in training_step .*prog_bar=False and prog_bar=True"):
        make_trainer().fit(tiny(training_step=training_step), loader(2))


def test_batch_size_is_looked_for_once_a_batch(
    tiny: Any, make_trainer: Any, loader: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[int] = []
    find = metrics.find_batch_size
    monkeypatch.setattr(metrics, "find_batch_size", lambda batch: found.append(find(batch)) or found[-1])

    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        for name in ("a", "b"):
            self.log(name, batch.mean(), on_epoch=True)
        return self.layer(batch).mean()

    def on_train_batch_end(self: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.log("c", batch.mean(), on_epoch=True)

    module = tiny(training_step=training_step, on_train_batch_end=on_train_batch_end)
    make_trainer().fit(module, loader(5, 2))
    assert found == [2, 2, 1]


@pytest.mark.parametrize(
    "options",
    [
        {"on_epoch": False},
        {"on_epoch": True, "reduce_fx": "sum"},
        {"on_epoch": True, "reduce_fx": "max"},
        {"on_epoch": True, "batch_size": 4},
    ],
)
def test_batch_is_not_looked_into_where_its_size_makes_no_difference(
    options: Any, tiny: Any, make_trainer: Any, loader: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "find_batch_size", lambda batch: pytest.fail("looked"))

    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        self.log("x", batch.mean(), **options)
        return self.layer(batch).mean()

    make_trainer().fit(tiny(training_step=training_step), loader())


@dataclass
class Sample:
    name: str
    pixels: Tensor


@pytest.mark.parametrize(
    "make_batch",
    [
        lambda n: {"ids": ["a"] * 7, "x": torch.ones(n, 3)},
        lambda n: [("text", {"deep": (torch.ones(n),)}), torch.ones(n, 1)],
        lambda n: Sample("s", torch.ones(n, 2)),
    ],
    ids=["dict", "nested", "dataclass"],
)
def test_batch_size_is_that_of_the_first_tensor_at_any_depth(make_batch: Any, tiny: Any, make_trainer: Any) -> None:
    values = iter((1.0, 4.0))
    trainer = train_on(tiny, make_trainer, [make_batch(1), make_batch(2)], lambda batch: torch.tensor(next(values)))
    assert trainer.callback_metrics["x"] == 3.0


def test_batch_without_a_tensor_needs_the_batch_size_for_a_mean_of_tensors(tiny: Any, make_trainer: Any) -> None:
    with pytest.raises(MisconfigurationException, match="batch_size=n"):
        train_on(tiny, make_trainer, [["a", "b"], ["c"]], lambda batch: torch.tensor(1.0))


@pytest.mark.parametrize("reduce_fx", ["sum", "min", "max"])
def test_batch_without_a_tensor_needs_no_batch_size_for_anything_else(
    reduce_fx: str, tiny: Any, make_trainer: Any
) -> None:
    batches = [["a", "b"], ["c"]]
    trainer = train_on(tiny, make_trainer, batches, lambda batch: torch.tensor(float(len(batch))), reduce_fx=reduce_fx)
    assert trainer.callback_metrics["x"] == {"sum": 3.0, "min": 1.0, "max": 2.0}[reduce_fx]


def test_numbers_of_batches_without_a_tensor_count_once_each(tiny: Any, make_trainer: Any) -> None:
    trainer = train_on(tiny, make_trainer, [["a", "b"], ["c"]], lambda batch: float(len(batch)))
    assert trainer.callback_metrics["x"] == 1.5


def test_tensors_of_different_sizes_are_warned_of_and_the_first_counts(
    tiny: Any, make_trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fulgur.data import transfer

    monkeypatch.setattr(transfer, "_has_warned_of_sizes", False)
    values = iter((1.0, 4.0))
    batches = [(torch.ones(1), torch.ones(5)), (torch.ones(2), torch.ones(5))]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = train_on(tiny, make_trainer, batches, lambda batch: torch.tensor(next(values)))
    assert len(caught) == 1
    assert trainer.callback_metrics["x"] == 3.0


def test_step_that_gets_the_iterator_needs_the_batch_size(tiny: Any, make_trainer: Any, loader: Any) -> None:
    def training_step(self: Any, dataloader_iter: Any) -> Any:
        batch, _, _ = next(dataloader_iter)
        self.log("x", batch.mean(), on_epoch=True)
        return self.layer(batch).mean()

    with pytest.raises(MisconfigurationException, match="batch_size=n"):
        make_trainer().fit(tiny(training_step=training_step), loader())


def test_values_logged_in_a_skipped_or_cut_epoch_do_not_leak_into_the_next(
    tiny: Any, make_trainer: Any, loader: Any, recorder: Any
) -> None:
    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        self.log("x", float(10 * self.current_epoch + batch_idx), on_step=False, on_epoch=True)
        return self.layer(batch).mean()

    def on_train_batch_start(self: Any, batch: Any, batch_idx: int) -> Any:
        return -1 if batch_idx == 2 else None

    module = tiny(training_step=training_step, on_train_batch_start=on_train_batch_start)
    make_trainer(max_epochs=2).fit(module, loader(4))
    assert recorder.rows_with("x") == [(0.5, 1), (10.5, 3)]


def test_accumulation_does_not_change_the_mean(tiny: Any, make_trainer: Any, loader: Any, recorder: Any) -> None:
    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        self.log("x", batch.mean(), on_step=False, on_epoch=True)
        return self.layer(batch).mean()

    make_trainer(accumulate_grad_batches=2).fit(tiny(training_step=training_step), loader(5, 2))
    assert recorder.rows_with("x") == [(2.0, 1)]
