"""Streams and loaders with a state of their own on several ranks; what batches that count nowhere leave behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torchmetrics
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, SequentialSampler, TensorDataset, get_worker_info

import fulgur as fl
from fulgur.callbacks import ModelCheckpoint
from fulgur.errors import CheckpointError, MisconfigurationException
from fulgur.testing import run_ranks


class Line(fl.LightningModule):
    """Notes what it saw, and counts samples in every way there is."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(1, 1).double()
        self.mean = torchmetrics.MeanMetric().set_dtype(torch.float64)
        self.val_mean = torchmetrics.MeanMetric().set_dtype(torch.float64)
        self.seen: list[list[int]] = []
        self.n_outputs = 0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        batch = batch[0] if isinstance(batch, (list, tuple)) else batch
        batch = batch.reshape(-1, 1)
        self.seen.append(batch.flatten().long().tolist())
        loss = (self.layer(batch / 10) - 1).pow(2).mean()
        self.mean.update(batch)
        self.log("mean", self.mean, on_step=False, on_epoch=True)
        self.log("n", float(len(batch)), reduce_fx="sum", on_step=False, on_epoch=True)
        self.log("smallest", batch.min(), reduce_fx="min", on_step=False, on_epoch=True)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.log("batches", 1.0, reduce_fx="sum", on_step=False, on_epoch=True)

    def training_epoch_end(self, outputs: list[Any]) -> None:
        self.n_outputs = len(outputs)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        batch = batch[0].reshape(-1, 1)
        self.layer(batch)
        self.val_mean.update(batch)
        self.log("val_mean", self.val_mean)
        self.log("val_n", float(len(batch)), reduce_fx="sum")
        self.log("val_id", batch.mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def build_trainer(n_ranks: int, **settings: Any) -> fl.Trainer:
    off = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    arguments: dict[str, Any] = {"max_epochs": 1, "strategy": "ddp" if n_ranks > 1 else "auto"} | off | settings
    arguments.setdefault("enable_checkpointing", bool(arguments.get("callbacks")))
    return fl.Trainer(accelerator="cpu", devices=n_ranks, **arguments)


def result(module: Line, trainer: fl.Trainer) -> dict[str, Any]:
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    weight = module.layer.weight
    weight = weight.full_tensor() if hasattr(weight, "full_tensor") else weight
    return {"weight": float(weight.detach()), "seen": module.seen, "metrics": metrics, "n_outputs": module.n_outputs}


def numbers(n: int) -> Any:
    return TensorDataset(torch.arange(n, dtype=torch.float64).reshape(n, 1))


# ------------------------------------------------------------------------------------------- what counts nowhere


def fit_numbers(n_ranks: int, n: int, size: int, strategy: str) -> dict[str, Any]:
    module, trainer = Line(), build_trainer(n_ranks, strategy=strategy if n_ranks > 1 else "auto")
    trainer.fit(module, DataLoader(numbers(n), batch_size=size), DataLoader(numbers(n), batch_size=1))
    return result(module, trainer)


@pytest.mark.world_size(2)
def test_a_copy_that_counts_nowhere_is_in_no_sum_and_no_metric_object() -> None:
    one, two = fit_numbers(1, 9, 8, "auto"), run_ranks(fit_numbers, 2, 2, 9, 4, "ddp")
    assert [own["seen"][-1] for own in two] == [[8], [8]]
    for own in two:
        assert own["weight"] == pytest.approx(one["weight"], abs=1e-12)
        metrics = one["metrics"] | {"batches": 3.0}  # two of the first step, one of the last
        assert own["metrics"] == pytest.approx(metrics, abs=1e-12)
    assert [own["n_outputs"] for own in two] == [2, 1]


@pytest.mark.world_size(2)
@pytest.mark.parametrize("n", [1, 3])
def test_an_evaluation_whose_forward_needs_all_ranks_counts_each_sample_once(n: int) -> None:
    one, two = fit_numbers(1, n, 4, "auto"), run_ranks(fit_numbers, 2, 2, n, 2, "fsdp")
    for own in two:
        assert own["weight"] == pytest.approx(one["weight"], abs=1e-12)
        for key in ("val_mean", "val_n", "val_id", "n", "mean", "smallest"):
            assert own["metrics"][key] == pytest.approx(one["metrics"][key], abs=1e-12), key


# ------------------------------------------------------------------------------------------------------ streams


class Stream(IterableDataset[Any]):
    """Numbers; each worker gives every so many of them."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        start, step = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        for index in range(start, self.n, step):
            yield torch.tensor(float(index), dtype=torch.float64)


class Remembering:
    """A loader that keeps its own position, as StatefulDataLoader does."""

    def __init__(self, n: int, size: int) -> None:
        self.n, self.size, self.position = n, size, 0

    def __len__(self) -> int:
        return -(-self.n // self.size)

    def __iter__(self) -> Iterator[Any]:
        start, self.position = self.position, 0
        for first in range(start, self.n, self.size):
            self.position = first + self.size
            yield torch.arange(first, min(first + self.size, self.n), dtype=torch.float64)
        self.position = 0

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]


def fit_stream(n_ranks: int, kind: str, folder: str, options: dict[str, Any]) -> dict[str, Any]:
    size = 8 // n_ranks
    loaders: dict[str, Any] = {
        "stream": lambda: DataLoader(Stream(30), batch_size=size),
        "workers": lambda: DataLoader(Stream(32), batch_size=4, num_workers=2),
        "stateful": lambda: Remembering(30, size),
        "list": lambda: list(torch.arange(30, dtype=torch.float64).split(size)),
    }
    callback = ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1, auto_insert_metric_name=False)
    module = Line()
    trainer = build_trainer(n_ranks, callbacks=[callback], max_epochs=2, max_steps=options.get("max_steps", -1))
    trainer.fit(module, loaders[kind](), ckpt_path=options.get("resume_from"))
    return result(module, trainer)


def steps(by_rank: list[dict[str, Any]]) -> list[list[int]]:
    return [sorted(set().union(*step)) for step in zip(*(own["seen"] for own in by_rank), strict=True)]


@pytest.mark.world_size(2)
@pytest.mark.parametrize("kind", ["stream", "stateful", "list"])
def test_loaders_that_are_read_whole_go_on_at_the_same_sample(kind: str, tmp_path: Path) -> None:
    whole = fit_stream(1, kind, str(tmp_path / "whole"), {})
    two = run_ranks(fit_stream, 2, 2, kind, str(tmp_path / "two"), {})
    resumed = run_ranks(
        fit_stream, 2, 2, kind, str(tmp_path / "rest"), {"resume_from": str(tmp_path / "two" / "2.ckpt")}
    )
    assert steps(two) == steps([whole])
    assert steps(resumed) == steps([whole])[2:]
    for own in (*two, *resumed):
        assert own["weight"] == pytest.approx(whole["weight"], abs=1e-12)
        assert own["metrics"]["mean"] == pytest.approx(whole["metrics"]["mean"], abs=1e-12)
    if kind == "stateful":
        with pytest.raises(CheckpointError, match=r"another number of ranks.*keeps its own position"):
            fit_stream(1, kind, str(tmp_path / "one"), {"resume_from": str(tmp_path / "two" / "2.ckpt")})
    else:
        one = fit_stream(1, kind, str(tmp_path / "one"), {"resume_from": str(tmp_path / "two" / "5.ckpt")})
        assert steps([one]) == steps([whole])[5:]
        assert one["weight"] == pytest.approx(whole["weight"], abs=1e-12)
        assert one["metrics"]["mean"] == pytest.approx(whole["metrics"]["mean"], abs=1e-12)


@pytest.mark.world_size(2)
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_stream_split_by_workers_is_dealt_out_too(tmp_path: Path) -> None:
    two = run_ranks(fit_stream, 2, 2, "workers", str(tmp_path), {})
    for epoch in range(2):
        assert sorted(i for step in steps(two)[4 * epoch : 4 * epoch + 4] for i in step) == list(range(32))


class Boastful(Stream):
    """A stream that says it has more than it gives."""

    def __len__(self) -> int:
        return self.n + 5


class BoastfulSampler(SequentialSampler):
    def __len__(self) -> int:
        return super().__len__() + 5


def fit_boastful(n_ranks: int, n: int, strategy: str, takes_sampler: bool = False) -> dict[str, Any]:
    module = Line()
    trainer = build_trainer(n_ranks, strategy=strategy, accumulate_grad_batches=4)
    data: Any = [torch.tensor(float(index), dtype=torch.float64) for index in range(n)]
    sampler = BoastfulSampler(data) if takes_sampler else None
    dataset = data if takes_sampler else Boastful(n)
    trainer.fit(module, DataLoader(dataset, batch_size=2 // n_ranks, sampler=sampler))
    return result(module, trainer) | {"steps": trainer.global_step}


@pytest.mark.world_size(2)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_stream_that_ends_before_its_length_leaves_no_gradient_unreduced(strategy: str) -> None:
    one = fit_boastful(1, 11, "auto")
    for own in run_ranks(fit_boastful, 2, 2, 11, strategy):
        assert own["steps"] == one["steps"] == 2
        assert own["weight"] == pytest.approx(one["weight"], abs=1e-12)


@pytest.mark.world_size(2)
def test_a_sampler_that_ends_before_its_length_within_a_window_is_refused() -> None:
    with pytest.raises(MisconfigurationException, match=r"gave 6 batches on this rank, and its length promised 8"):
        run_ranks(fit_boastful, 2, 2, 11, "ddp", True)


def fit_own_streams(n_ranks: int, accumulate: int) -> dict[str, Any]:
    rank = int(os.environ["RANK"])
    module = Line()
    trainer = build_trainer(n_ranks, use_distributed_sampler=False, accumulate_grad_batches=accumulate)
    trainer.fit(module, DataLoader(Stream((3, 5)[rank]), batch_size=1))
    return result(module, trainer) | {"steps": trainer.global_step}


@pytest.mark.world_size(2)
def test_windows_of_accumulation_are_filled_by_ranks_that_have_ended() -> None:
    module = Line()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for window in ([[0.0, 0.0], [1.0, 1.0]], [[2.0, 2.0], [3.0]], [[4.0]]):
        optimizer.zero_grad()
        samples = torch.tensor([i for step in window for i in step], dtype=torch.float64).reshape(-1, 1)
        (module.layer(samples / 10) - 1).pow(2).mean().backward()
        optimizer.step()
    for own in run_ranks(fit_own_streams, 2, 2, 2):
        assert own["steps"] == 3
        assert own["weight"] == pytest.approx(float(module.layer.weight.detach()), abs=1e-12)
        assert own["metrics"]["n"] == 8.0
