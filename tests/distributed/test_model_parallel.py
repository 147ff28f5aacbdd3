"""Layers shared by several processes: tensor parallelism as `configure_model` says, with FSDP2 over it."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

from fulgur import LightningModule, Trainer
from fulgur.errors import MisconfigurationException
from fulgur.strategies import FSDPStrategy, ModelParallelStrategy
from fulgur.testing import run_ranks

Weights = dict[str, Tensor]


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return -self.second(torch.tanh(self.first(x)))  # no view, which torch warns of


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.body = Body()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor | None:
        x, y = batch
        loss = mse_loss(self.body(x), y)
        self.log("loss", loss, on_epoch=True)
        self.log("seen", float(len(x)), reduce_fx="sum", on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val", mse_loss(self.body(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.05)


class Spread(Net):
    """Columns of the first layer and rows of the second on each process; FSDP2 where the data differs."""

    def configure_model(self) -> None:
        from torch.distributed.fsdp import fully_shard
        from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

        mesh = self.device_mesh
        plan: dict[str, Any] = {"first": ColwiseParallel(), "second": RowwiseParallel()}
        parallelize_module(self.body, mesh["tensor_parallel"], plan)
        if mesh["data_parallel"].size() > 1:
            fully_shard(self.body, mesh=mesh["data_parallel"])


def size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def build(cls: type[Net], *, seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return cls().double()


def loader(n_batches_at_once: int, n_samples: int = 24) -> DataLoader[Any]:
    x = torch.randn(n_samples, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=8 // n_batches_at_once, shuffle=True)


def trainer(strategy: Any, **arguments: Any) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    defaults = {"max_epochs": 2, "devices": "auto", "enable_checkpointing": False, "precision": "64-true"}
    return Trainer(accelerator="cpu", strategy=strategy, **quiet, **(defaults | arguments))


def weights_of(module: nn.Module) -> Weights:
    whole = {name: getattr(p, "full_tensor", lambda p=p: p)() for name, p in module.state_dict().items()}
    return {name: tensor.detach().clone() for name, tensor in whole.items()}


def largest_difference(first: Weights, second: Weights) -> float:
    assert first.keys() == second.keys()
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)


def fit_spread(data: int, tensor: int) -> Weights:
    """Each rank has built other weights: those of rank 0 count."""
    net = build(Spread if size() > 1 else Net, seed=int(os.environ["RANK"]))
    strategy = ModelParallelStrategy(data_parallel_size=data, tensor_parallel_size=tensor) if size() > 1 else "auto"
    torch.manual_seed(5)
    run = trainer(strategy, gradient_clip_val=0.5, accumulate_grad_batches=2)
    run.fit(net, loader(data), loader(data, n_samples=5))
    found = {name: torch.as_tensor(run.callback_metrics[name]) for name in ("loss_epoch", "val", "seen")}
    return weights_of(net) | found


@pytest.mark.parametrize(
    ("data", "tensor"),
    [
        pytest.param(1, 2, marks=pytest.mark.world_size(2)),
        pytest.param(2, 1, marks=pytest.mark.world_size(2)),
        pytest.param(2, 2, marks=pytest.mark.world_size(4)),
    ],
)
def test_spread_model_gives_the_numbers_of_one_process(data: int, tensor: int) -> None:
    expected = run_ranks(fit_spread, 1, 1, 1)[0]
    for found in run_ranks(fit_spread, data * tensor, data, tensor):
        assert largest_difference(found, expected) < 1e-12


def fit_counting(data: int, tensor: int) -> dict[str, float]:
    import torchmetrics

    class Counting(Spread if size() > 1 else Net):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.n_samples, self.rows = torchmetrics.SumMetric(), torchmetrics.CatMetric()

        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            self.n_samples.update(float(len(batch[0])))
            self.rows.update(batch[0].sum(1))
            self.log("n", self.n_samples)

        def on_validation_epoch_end(self) -> None:
            self.log("rows", float(len(self.rows.compute())))
            self.rows.reset()

    strategy = ModelParallelStrategy(data_parallel_size=data, tensor_parallel_size=tensor) if size() > 1 else "auto"
    net = build(Counting)
    run = trainer(strategy, max_epochs=1)
    run.fit(net, loader(data), loader(data, n_samples=11))
    copy.deepcopy(net.n_samples)
    return {name: float(run.callback_metrics[name]) for name in ("n", "rows")}


@pytest.mark.world_size(4)
def test_metric_objects_count_a_sample_once_however_many_processes_share_a_layer() -> None:
    assert run_ranks(fit_counting, 1, 1, 1) == [{"n": 11.0, "rows": 11.0}]
    assert run_ranks(fit_counting, 4, 2, 2) == [{"n": 11.0, "rows": 11.0}] * 4


# ------------------------------------------------------------------------------------------------------- checkpoints

STRATEGIES: dict[str, tuple[type[Net], Callable[[], Any], int]] = {
    "one": (Net, lambda: "auto", 1),
    "fsdp": (Net, lambda: FSDPStrategy(state_dict_type="sharded"), 2),
    "tensor": (Spread, lambda: ModelParallelStrategy(tensor_parallel_size=2), 1),
    "tensor-file": (Spread, lambda: ModelParallelStrategy(1, 2, save_distributed_checkpoint=False), 1),
    "both": (Spread, lambda: ModelParallelStrategy(2, 2), 2),
}
N_RANKS = {"one": 1, "fsdp": 2, "tensor": 2, "tensor-file": 2, "both": 4}


def write_each(folder: str, kinds: list[str]) -> None:
    for kind in kinds:
        cls, build_strategy, data = STRATEGIES[kind]
        torch.manual_seed(5)
        run = trainer(build_strategy(), max_steps=4)
        run.fit(build(cls), loader(data))
        run.save_checkpoint(f"{folder}/{kind}.ckpt")


def resume_each(folder: str, kinds: list[str]) -> dict[tuple[str, str], Weights]:
    found = {}
    for kind in kinds:
        cls, build_strategy, data = STRATEGIES[kind]
        for name in sorted(os.listdir(folder)):
            net = build(cls, seed=9)
            trainer(build_strategy(), max_epochs=3).fit(net, loader(data), ckpt_path=f"{folder}/{name}")
            found[kind, name] = weights_of(net)
    return found


def by_world(kinds: list[str]) -> list[tuple[int, list[str]]]:
    return [(n, [kind for kind in kinds if N_RANKS[kind] == n]) for n in sorted({N_RANKS[kind] for kind in kinds})]


@pytest.mark.world_size(4)
def test_checkpoints_of_spread_models_and_others_go_on_from_each_other(tmp_path: Path) -> None:
    folder = str(tmp_path)
    for n_ranks, kinds in by_world(list(STRATEGIES)):
        run_ranks(write_each, n_ranks, folder, kinds)
    resumed = [run_ranks(resume_each, n, folder, kinds, timeout_s=120) for n, kinds in by_world(list(STRATEGIES))]
    expected = resumed[0][0]["one", "one.ckpt"]
    for of_world in resumed:
        for found in of_world:
            for layouts, weights in found.items():
                assert largest_difference(weights, expected) < 1e-12, layouts
    assert sorted(name for name in os.listdir(folder) if os.path.isdir(f"{folder}/{name}")) == [
        "both.ckpt",
        "fsdp.ckpt",
        "tensor.ckpt",
    ]


# ------------------------------------------------------------------------------------------------------------ errors


class Forgetful(Spread):
    """Leaves the second layer to drift apart."""

    def configure_model(self) -> None:
        from torch.distributed.fsdp import fully_shard

        fully_shard(self.body.first, mesh=self.device_mesh["data_parallel"])


class Choosy(Spread):
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor | None:
        return None


def fit_wrongly() -> list[str]:
    messages = []
    for cls, arguments in (
        (Net, {}),
        (Forgetful, {}),
        (Choosy, {}),
        (Spread, {"precision": "16-mixed"}),
        (Spread, {"sizes": (3, 2)}),
    ):
        sizes = arguments.pop("sizes", (2, 1))
        try:
            trainer(ModelParallelStrategy(*sizes), **arguments).fit(build(cls), loader(2))
        except (TypeError, ValueError, MisconfigurationException) as error:
            messages.append(f"{type(error).__name__}: {error}")
    return messages


@pytest.mark.world_size(2)
def test_what_cannot_work_is_refused() -> None:
    expected = [
        "TypeError: Net has no configure_model, which is where",
        "MisconfigurationException: With data_parallel_size=2, nothing averages the gradients of body.second.weight",
        "MisconfigurationException: training_step returned None, and ModelParallelStrategy",
        "MisconfigurationException: precision='16-mixed' needs CUDA",
        "ValueError: A mesh of 3 (data_parallel) × 2 (tensor_parallel) takes 6 processes, and there are 2.",
    ]
    for messages in run_ranks(fit_wrongly, 2):
        for message, beginning in zip(messages, expected, strict=True):
            assert message.startswith(beginning)


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "all"])
def test_size_that_is_no_number_of_processes_is_refused(size: Any) -> None:
    with pytest.raises(ValueError, match=f"data_parallel_size={size!r} is no number of processes"):
        ModelParallelStrategy(data_parallel_size=size)
