"""Norms of gradients by layer and in all, histograms, and non-finite gradients by name."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from fulgur import LightningModule, Trainer
from fulgur.callbacks import GradientMonitor
from fulgur.loggers import Logger
from fulgur.testing import calls_per_step, count_host_reads, run_ranks


class Rows(Logger):
    """Keeps what it is given, and has histograms as TensorBoard does."""

    name, version = "rows", 0  # type: ignore[assignment]

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.histograms: list[Any] = []

    @property
    def experiment(self) -> Any:
        return self

    def add_histogram_raw(self, *args: Any, **kwargs: Any) -> None:
        self.histograms.append((args, kwargs))

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((int(step or 0), dict(metrics)))

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None: ...


class Net(LightningModule):
    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second = nn.Linear(2, 3), nn.Linear(3, 1)
        self.scale = scale
        self.seen: list[dict[str, torch.Tensor]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return (self.second(self.first(batch)) - 1).square().mean()

    def on_after_backward(self) -> None:
        self.second.bias.grad *= self.scale  # type: ignore[operator]
        self.seen.append({name: p.grad.clone() for name, p in self.named_parameters() if p.grad is not None})

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(net: Net, *callbacks: Any, logger: Any = False, n_batches: int = 4, **arguments: Any) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    defaults: dict[str, Any] = {"log_every_n_steps": 2, "max_epochs": 1, "accelerator": "cpu"}
    trainer = Trainer(**quiet, callbacks=list(callbacks), logger=logger, **(defaults | arguments))
    values = torch.randn(2 * n_batches, 2, generator=torch.Generator().manual_seed(5))
    trainer.fit(net, torch.utils.data.DataLoader(values, batch_size=2))  # type: ignore[arg-type]
    return trainer


@pytest.mark.parametrize("order", [2.0, 1.0, math.inf])
def test_norms_are_logged_by_layer_and_in_all_where_loggers_get_values(order: float) -> None:
    rows, net = Rows(), Net()
    train(net, GradientMonitor(order), logger=rows)
    assert [step for step, _ in rows.rows] == [1, 3]
    for step, values in rows.rows:
        grads = net.seen[step]
        for layer in ("first", "second"):
            own = torch.cat([grads[f"{layer}.weight"].flatten(), grads[f"{layer}.bias"]])
            assert values[f"grad_norm/{layer}"] == pytest.approx(float(own.norm(order)))
        whole = torch.cat([grad.flatten() for grad in grads.values()])
        assert values["grad_norm/total"] == pytest.approx(float(whole.norm(order)))


def test_total_alone_on_request() -> None:
    rows = Rows()
    train(Net(), GradientMonitor(per_layer=False), logger=rows)
    assert set(rows.rows[0][1]) == {"grad_norm/total", "epoch"}


def test_windows_give_the_gradients_of_the_update() -> None:
    rows, net = Rows(), Net()
    train(net, GradientMonitor(), logger=rows, accumulate_grad_batches=2)
    whole = torch.cat([grad.flatten() for grad in net.seen[3].values()])
    assert [(step, values["grad_norm/total"]) for step, values in rows.rows] == [
        (1, pytest.approx(float(whole.norm())))
    ]


@pytest.mark.parametrize("scale", [math.nan, math.inf])
def test_gradient_that_is_not_finite_is_an_error_that_names_it(scale: float) -> None:
    with pytest.raises(FloatingPointError, match=r"global step 1 the gradients of \d parameters .*: .*second.bias"):
        train(Net(scale), GradientMonitor(), logger=Rows())


def test_only_the_parameter_itself_is_named() -> None:
    with pytest.raises(FloatingPointError, match=r"of 1 parameters were NaN or infinite: second.bias\."):
        train(Net(math.nan), GradientMonitor(), logger=Rows(), log_every_n_steps=1)


def test_it_is_a_warning_or_nothing_on_request() -> None:
    with pytest.warns(UserWarning, match=r"second\.bias"):
        train(Net(math.nan), GradientMonitor(on_non_finite="warn"))
    train(Net(math.nan), GradientMonitor(on_non_finite="ignore"))


def test_histograms_go_to_the_loggers_that_have_them() -> None:
    rows, net = Rows(), Net()
    train(net, GradientMonitor(histograms=True), logger=rows)
    assert [(args[0], kwargs["global_step"]) for args, kwargs in rows.histograms] == [
        ("grad/first", 1), ("grad/second", 1), ("grad/first", 3), ("grad/second", 3),
    ]  # fmt: skip
    _, low, high, n, total, squares, limits, counts = rows.histograms[0][0]
    own = torch.cat([net.seen[1]["first.weight"].flatten(), net.seen[1]["first.bias"]]).double()
    assert (low, high, n, total) == pytest.approx((float(own.min()), float(own.max()), 9, float(own.sum())))
    assert squares == pytest.approx(float(own.square().sum()))
    assert counts == torch.histc(own, 64, low, high).tolist()
    assert limits[-1] == pytest.approx(high)


def test_tensorboard_takes_the_histograms(tmp_path: Any) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from fulgur.loggers import TensorBoardLogger

    logger = TensorBoardLogger(tmp_path)
    train(Net(), GradientMonitor(histograms=True), logger=logger)
    read = EventAccumulator(logger.log_dir)
    read.Reload()
    assert read.Tags()["histograms"] == ["grad/first", "grad/second"]
    assert read.Histograms("grad/first")[0].histogram_value.num == 9


def fit_with(*callbacks: Any) -> Any:
    return lambda n_batches: train(Net(), *callbacks, n_batches=n_batches, log_every_n_steps=1000)


def test_between_logged_steps_it_costs_a_call_a_hook() -> None:
    extra = calls_per_step(fit_with(GradientMonitor())).by_function
    assert {n: c for n, c in extra.items() if "gradient_monitor" in n} == {
        "callbacks/gradient_monitor.py:GradientMonitor.on_before_optimizer_step": 1,
        "callbacks/gradient_monitor.py:GradientMonitor.on_train_batch_end": 1,
    }


def test_the_only_values_read_are_those_that_the_flush_left_on_the_host() -> None:
    with count_host_reads() as reads:
        train(Net(), GradientMonitor(), logger=Rows())
    own = [read for read in reads if any(f.filename.endswith("callbacks/gradient_monitor.py") for f in read.stack)]
    assert [read.name for read in own] == ["Tensor.__float__"] * 2
    assert all("isfinite(total)" in str(read.frame.line) for read in own)


def rows_on_a_rank(strategy: str) -> list[tuple[int, dict[str, float]]]:
    rows = Rows()
    train(Net(), GradientMonitor(), logger=rows, devices=2, strategy=strategy, log_every_n_steps=1)
    return rows.rows


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_norms_on_two_ranks_are_of_the_gradients_that_both_step_with(strategy: str) -> None:
    first, second = run_ranks(rows_on_a_rank, 2, strategy)
    values = torch.randn(8, 2, generator=torch.Generator().manual_seed(5))
    net, expected = Net(), []
    optimizer: Any = net.configure_optimizers()
    for step in range(2):  # the samples of both ranks
        batch = torch.cat([values[4 * step : 4 * step + 4]])
        optimizer.zero_grad()
        net.training_step(batch, 0).backward()
        expected.append(float(torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]).norm()))
        optimizer.step()
    assert [row["grad_norm/total"] for _, row in first] == pytest.approx(expected, rel=1e-5)
    assert second in ([], first)  # loggers get values on rank 0


class Resumable(Net):
    """Saves after its second step."""

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.trainer.global_step == 2 and self.trainer.ckpt_path is None:
            self.trainer.save_checkpoint("at_2.ckpt")


def test_resumed_run_logs_the_rows_that_the_whole_one_has() -> None:
    whole, rest = Rows(), Rows()
    train(Resumable(), GradientMonitor(), logger=whole, log_every_n_steps=1)
    values = torch.randn(8, 2, generator=torch.Generator().manual_seed(5))
    trainer = Trainer(
        callbacks=[GradientMonitor()],
        logger=rest,
        log_every_n_steps=1,
        max_epochs=1,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    loader: Any = torch.utils.data.DataLoader(values, batch_size=2)  # type: ignore[arg-type]
    trainer.fit(Resumable(), loader, ckpt_path="at_2.ckpt")
    assert len(whole.rows) == 4
    assert rest.rows == whole.rows[2:]


@pytest.mark.parametrize("arguments", [{"norm_type": 0.0}, {"on_non_finite": "stop"}])
def test_arguments_out_of_range_are_refused(arguments: Any) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        GradientMonitor(**arguments)
