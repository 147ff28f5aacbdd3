"""What may be logged, and that a logged value is the one it was when it was logged."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fulgur.errors import MisconfigurationException


def logging_step(value: Any, name: str = "x", **options: Any) -> Any:
    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        self.log(name, value, **options)
        return self.layer(batch).mean()

    return training_step


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (2, 2.0),
        (2.5, 2.5),
        (True, 1.0),
        (torch.tensor(2.5), 2.5),
        (torch.tensor([2.5]), 2.5),
        (torch.tensor([[2.5]]), 2.5),
        (torch.tensor(3), 3.0),
        (torch.tensor(True), 1.0),
        (torch.tensor(2.5, dtype=torch.bfloat16), 2.5),
        (np.float32(2.5), 2.5),
        (np.float64(2.5), 2.5),
        (np.int64(3), 3.0),
    ],
)
def test_scalar_is_logged_as_a_float(
    value: Any, expected: float, tiny: Any, make_trainer: Any, loader: Any, recorder: Any
) -> None:
    trainer = make_trainer()
    trainer.fit(tiny(training_step=logging_step(value, on_step=True, on_epoch=True)), loader())
    assert recorder.rows_with("x_step") == [(expected, 0), (expected, 1)]
    assert recorder.rows_with("x_epoch") == [(expected, 1)]
    assert all(type(number) is float for row, _ in recorder.rows for key, number in row.items() if key != "epoch")
    for key in ("x", "x_step", "x_epoch"):
        metric = trainer.callback_metrics[key]
        assert metric.dtype is torch.float32
        assert metric.shape == ()
        assert metric == expected


@pytest.mark.parametrize(
    "value",
    [torch.ones(2), torch.ones(0), {"a": 1.0}, {"a": {"b": 1.0}}, "text", None, [1.0], 1j],
    ids=["two elements", "no element", "dict", "nested dict", "str", "None", "list", "complex"],
)
@pytest.mark.parametrize("on_epoch", [False, True])
def test_anything_else_is_refused(value: Any, on_epoch: bool, tiny: Any, make_trainer: Any, loader: Any) -> None:
    with pytest.raises(ValueError, match=r"self\.log\('x', value\)"):
        make_trainer().fit(tiny(training_step=logging_step(value, on_epoch=on_epoch)), loader())


def test_name_with_the_loaders_suffix_is_refused(tiny: Any, make_trainer: Any, loader: Any) -> None:
    with pytest.raises(MisconfigurationException, match="is added for you"):
        make_trainer().fit(tiny(training_step=logging_step(1.0, "x/dataloader_idx_0")), loader())


def test_name_with_the_loaders_suffix_is_fine_where_none_is_added(
    tiny: Any, make_trainer: Any, loader: Any, recorder: Any
) -> None:
    step = logging_step(1.0, "x/dataloader_idx_0", add_dataloader_idx=False)
    make_trainer().fit(tiny(training_step=step), loader())
    assert recorder.rows_with("x/dataloader_idx_0") == [(1.0, 0), (1.0, 1)]


def test_log_dict_logs_each_item(tiny: Any, make_trainer: Any, loader: Any, recorder: Any) -> None:
    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        self.log_dict({"a": 1.0, "b": torch.tensor(2.0)}, on_epoch=True, prog_bar=True)
        return self.layer(batch).mean()

    trainer = make_trainer()
    trainer.fit(tiny(training_step=training_step), loader())
    assert recorder.rows[-1] == ({"a_epoch": 1.0, "b_epoch": 2.0, "epoch": 0}, 1)
    assert set(trainer.progress_bar_metrics) == {"a_step", "b_step", "a_epoch", "b_epoch"}


@pytest.mark.parametrize("reduce_fx", ["mean", "sum", "min", "max"])
def test_value_changed_in_place_after_logging_stays_as_logged(
    reduce_fx: str, tiny: Any, make_trainer: Any, loader: Any, recorder: Any
) -> None:
    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        value = torch.tensor(5.0)
        self.log("x", value, on_step=True, on_epoch=True, reduce_fx=reduce_fx)
        value.fill_(-100.0)
        loss = self.layer(batch).mean()
        self.log("loss", loss)
        loss.detach().fill_(float("nan"))
        return self.layer(batch).mean()

    make_trainer().fit(tiny(training_step=training_step), loader(1))
    assert recorder.rows_with("x_step") == [(5.0, 0)]
    assert recorder.rows_with("x_epoch") == [(5.0, 0)]
    assert recorder.rows_with("loss") == [(0.0, 0)]


def test_step_value_that_was_read_does_not_change_with_later_steps(tiny: Any, make_trainer: Any, loader: Any) -> None:
    seen = []

    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        self.log("x", torch.tensor(float(batch_idx)))
        return self.layer(batch).mean()

    def on_train_batch_end(self: Any, *args: Any) -> None:
        if self.global_step != 3:  # the next value finds the one before unread
            seen.append(self.trainer.callback_metrics["x"])

    module = tiny(training_step=training_step, on_train_batch_end=on_train_batch_end)
    make_trainer(log_every_n_steps=100).fit(module, loader(6))
    assert [float(value) for value in seen] == [0.0, 1.0, 3.0, 4.0, 5.0]


def test_value_kept_by_a_logger_does_not_change_with_later_steps(tiny: Any, make_trainer: Any, loader: Any) -> None:
    seen = []

    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        if batch_idx and batch_idx % 2 == 0:
            seen.append(self.trainer.logged_metrics["x"])
        self.log("x", torch.tensor(float(batch_idx)))
        return self.layer(batch).mean()

    make_trainer(log_every_n_steps=2).fit(tiny(training_step=training_step), loader(7))
    assert [float(value) for value in seen] == [1.0, 3.0, 5.0]


def test_value_of_each_step_keeps_its_own_type(tiny: Any, make_trainer: Any, loader: Any) -> None:
    values = [torch.tensor(1.0), torch.tensor(1 / 3, dtype=torch.float64), 2.5, torch.tensor(2**40 + 1)]
    logged = []

    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        for value in values[: batch_idx + 1]:
            self.log("x", value)
        return self.layer(batch).mean()

    def on_train_batch_end(self: Any, *args: Any) -> None:
        logged.append(self.trainer.callback_metrics["x"].item())

    module = tiny(training_step=training_step, on_train_batch_end=on_train_batch_end)
    make_trainer().fit(module, loader(4))
    assert logged == [1.0, 1 / 3, 2.5, float(torch.tensor(2**40 + 1).float())]


def test_evaluation_value_changed_in_place_after_logging_stays_as_logged(
    tiny: Any, make_trainer: Any, loader: Any, recorder: Any
) -> None:
    running = torch.zeros(())

    def validation_step(self: Any, batch: Any, batch_idx: int) -> None:
        self.log("x", running.add_(1.0), on_step=True)

    results = make_trainer().validate(tiny(validation_step=validation_step), loader(3), verbose=False)
    assert recorder.rows_with("x_step") == [(1.0, 0), (2.0, 1), (3.0, 2)]
    assert results == [{"x_epoch": 2.0}]


def test_epoch_value_read_by_a_hook_does_not_change_afterwards(tiny: Any, make_trainer: Any, loader: Any) -> None:
    seen = []

    def on_train_epoch_end(self: Any) -> None:
        seen.append(self.trainer.callback_metrics["x"])

    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        value = torch.tensor(float(self.current_epoch + batch_idx), dtype=torch.float64)
        self.log("x", value, on_step=False, on_epoch=True, reduce_fx="sum")
        return self.layer(batch).mean()

    module = tiny(training_step=training_step, on_train_epoch_end=on_train_epoch_end)
    make_trainer(max_epochs=3).fit(module, loader())
    assert seen == [1.0, 3.0, 5.0]


@pytest.mark.parametrize("enable_graph", [False, True])
def test_graph_of_a_value_is_kept_only_on_request(
    enable_graph: bool, tiny: Any, make_trainer: Any, loader: Any
) -> None:
    seen = []

    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        loss = self.layer(batch).mean()
        self.log("x", loss, on_epoch=True, enable_graph=enable_graph)
        seen.append(self.trainer.callback_metrics["x"].requires_grad)
        return loss

    trainer = make_trainer()
    trainer.fit(tiny(training_step=training_step), loader(1))
    assert seen == [enable_graph]
    assert not trainer.callback_metrics["x_epoch"].requires_grad


class HostReads(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts what makes the host wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten._to_copy.default) and (
            function is torch.ops.aten._local_scalar_dense.default or (kwargs or {}).get("device") is not None
        )
        return function(*args, **(kwargs or {}))


def test_host_reads_values_only_when_loggers_are_due(
    tiny: Any, make_trainer: Any, loader: Any, recorder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fulgur import metrics

    copies: list[int] = []
    to_host = metrics.to_host
    monkeypatch.setattr(metrics, "to_host", lambda values: copies.append(len(values)) or to_host(values))

    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        loss = self.layer(batch).mean()
        with HostReads() as reads:
            self.log("a", loss, on_epoch=True, prog_bar=True)
            self.log("b", loss.detach(), logger=False, prog_bar=True)
            self.log("c", loss, on_step=False, on_epoch=True, reduce_fx="max")
            _ = self.trainer.callback_metrics["a"]
        assert reads.count == 0
        return loss

    make_trainer(log_every_n_steps=3).fit(tiny(training_step=training_step), loader(7))
    # two rows of the steps, and the epoch's values with the last ones for the bar
    assert copies == [2, 2, 4]
    assert [step for _, step in recorder.rows] == [2, 5, 6]
