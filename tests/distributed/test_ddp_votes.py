"""A rank without a loss: the others go on, with the mean over those that have one; if nobody has, all skip the step."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from fulgur import LightningModule, Trainer
from fulgur.precision.full import FullPrecision
from fulgur.strategies.ddp import DDPStrategy
from fulgur.strategies.device_votes import DeviceVotes
from fulgur.strategies.votes import Votes
from fulgur.testing import run_ranks

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "strategy": "ddp",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "max_epochs": 1,
    "limit_val_batches": 0,
}
N_BATCHES = 8


def rank() -> int:
    return int(os.environ["RANK"])


def build_data(n_ranks: int) -> torch.Tensor:
    return torch.randn(N_BATCHES * n_ranks, 2, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


class Net(LightningModule):
    """Has no loss for some of the batches, by the number of the batch in the loader."""

    def __init__(self, skipped: frozenset[int], n_ranks: int, build: Any = None) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = torch.nn.Linear(3, 3, dtype=torch.float64)
        self.data, self.skipped, self.n_ranks = build_data(n_ranks), skipped, n_ranks
        self.build = build or (lambda parameters: torch.optim.Adam(parameters, lr=0.1))
        self.n_backward = 0

    def loss(self, batch: torch.Tensor) -> torch.Tensor:
        return F.mse_loss(self.layer(batch), batch.flip(-1))

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> Any:
        if batch_idx * self.n_ranks + rank() in self.skipped:
            return None
        return self.loss(batch[0])

    def on_after_backward(self) -> None:
        self.n_backward += 1

    def configure_optimizers(self) -> Any:
        return self.build(self.parameters())

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(self.data, batch_size=1)


class Conditional(Net):
    """Half of the batches use one layer, half the other."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.other = torch.nn.Linear(3, 3, dtype=torch.float64)

    def loss(self, batch: torch.Tensor) -> torch.Tensor:
        return F.mse_loss((self.layer if batch[0, 0] > 0 else self.other)(batch), batch.flip(-1))


def reference(skipped: frozenset[int], n_ranks: int, *, accumulate: int = 1, clip: float | None = None) -> Any:
    """Steps on the mean over the batches with a loss of each step, by one process."""
    net, steps = Net(skipped, n_ranks), 0
    optimizer = net.configure_optimizers()
    for window in range(0, N_BATCHES, accumulate):
        batches = range(window * n_ranks, (window + accumulate) * n_ranks)
        kept = [j for j in batches if j not in skipped]
        if not kept:
            continue
        optimizer.zero_grad()
        for j in kept:
            (net.loss(net.data[j]) / len(kept)).backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.step()
        steps += 1
    return [p.detach().clone() for p in net.parameters()], steps


def trained(net: Net, **arguments: Any) -> tuple[list[torch.Tensor], int, int]:
    trainer = Trainer(devices=net.n_ranks, **{**QUIET, **arguments})
    trainer.fit(net)
    return [p.detach().clone() for p in net.parameters()], trainer.global_step, net.n_backward


SKIPPED = {
    "nobody": frozenset[int](),
    "one rank": frozenset({2, 7, 11}),
    "all ranks": frozenset({4, 5, 6, 7}),
    "one and all": frozenset({0, 1, 3, 6, 9, 12, 13, 14, 15}),
    "everything": frozenset(range(32)),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "each batch": {},
    "windows": {"accumulate_grad_batches": 4},
    "clipped windows": {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1},
}


class OnDevice(DDPStrategy):
    """Counts as on an accelerator, where the device looks at what the others have told."""

    def build_votes(self, agreement: Any) -> Votes | None:
        usual = super().build_votes(agreement)
        assert self._ddp is not None
        assert usual is not None
        store, device = self.open_store("votes"), self.root_device
        return DeviceVotes(agreement, store, take_zero_loss=self._ddp.take_zero_loss, device=device)


def run_cases(n_ranks: int, on_device: bool) -> dict[str, Any]:
    more = {"strategy": OnDevice()} if on_device else {}
    return {
        f"{skipped}, {options}": trained(Net(SKIPPED[skipped], n_ranks), **OPTIONS[options], **more)
        for skipped in SKIPPED
        for options in OPTIONS
    }


@pytest.fixture(scope="module", params=[False, True], ids=["host", "device"])
def on_two(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return run_ranks(run_cases, 2, 2, request.param, timeout_s=150)


@pytest.mark.world_size(2)
@pytest.mark.filterwarnings("ignore:training_step returned None for all")
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("skipped", SKIPPED)
def test_step_is_the_mean_over_the_batches_with_a_loss(
    on_two: list[dict[str, Any]], skipped: str, options: str
) -> None:
    arguments = OPTIONS[options]
    accumulate, clip = arguments.get("accumulate_grad_batches", 1), arguments.get("gradient_clip_val")
    wanted, n_steps = reference(SKIPPED[skipped], 2, accumulate=accumulate, clip=clip)
    for weights, global_step, _ in (result[f"{skipped}, {options}"] for result in on_two):
        assert global_step == n_steps
        for got, expected in zip(weights, wanted, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.world_size(2)
def test_hooks_of_backward_run_where_there_is_a_loss_only(on_two: list[dict[str, Any]]) -> None:
    assert [result["one rank, each batch"][2] for result in on_two] == [7, 6]  # 2 is of rank 0, 7 and 11 of rank 1


def run_on_three() -> Any:
    return trained(Net(frozenset({1, 3, 4, 9, 10, 11}), 3), accumulate_grad_batches=2)


@pytest.mark.world_size(3)
def test_three_ranks_count_exactly() -> None:
    wanted, n_steps = reference(frozenset({1, 3, 4, 9, 10, 11}), 3, accumulate=2)
    for weights, global_step, _ in run_ranks(run_on_three, 3):
        assert global_step == n_steps
        for got, expected in zip(weights, wanted, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-12)


# ----------------------------------------------------------------------------------------- other kinds of steps


class TwoOptimizers(Net):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.other = torch.nn.Linear(3, 3, dtype=torch.float64)

    def training_step(self, batch: torch.Tensor, batch_idx: int, optimizer_idx: int) -> Any:  # type: ignore[override]
        number = batch_idx * self.n_ranks + rank()
        if number in self.skipped and optimizer_idx == number % 2:
            return None
        return F.mse_loss(self.other(self.layer(batch[0])), batch[0])

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in (self.layer, self.other)]


class Scaled(FullPrecision):
    """Scales losses as 16-mixed does, which has no use on the CPU."""

    def __init__(self) -> None:
        self.scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=1000)


def other_steps() -> dict[str, Any]:
    some = frozenset({2, 7, 11, 12, 13})
    return {
        "unused parameters": trained(Conditional(some, 2), strategy="ddp_find_unused_parameters_true"),
        "several optimizers": trained(TwoOptimizers(some, 2), accumulate_grad_batches=2),
        "LBFGS": trained(Net(some, 2, lambda parameters: torch.optim.LBFGS(parameters, lr=0.1, max_iter=3))),
        "scaled": trained(Net(some, 2), plugins=[Scaled()]),
    }


@pytest.fixture(scope="module")
def others() -> list[dict[str, Any]]:
    return run_ranks(other_steps, 2, timeout_s=100)


@pytest.mark.world_size(2)
@pytest.mark.parametrize("name", ["unused parameters", "several optimizers", "LBFGS", "scaled"])
def test_ranks_stay_equal_in_steps_of_every_kind(others: list[dict[str, Any]], name: str) -> None:
    (weights, global_step, _), (other_weights, other_step, _) = (result[name] for result in others)
    assert global_step == other_step
    assert global_step == {"several optimizers": 4}.get(name, 7)
    assert all(torch.equal(a, b) for a, b in zip(weights, other_weights, strict=True))
    assert all(bool(torch.isfinite(a).all()) for a in weights)


class Infinite(Net):
    """Rank 1 has an infinite gradient in batch 2."""

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> Any:
        loss = self.loss(batch[0])
        return loss * torch.inf if batch_idx == 2 and rank() == 1 else loss


def infinite() -> tuple[list[torch.Tensor], float, int]:
    precision = Scaled()
    weights, global_step, _ = trained(Infinite(frozenset(), 2), plugins=[precision])
    return weights, precision.scaler.get_scale(), global_step


@pytest.mark.world_size(2)
def test_an_infinite_gradient_of_one_rank_makes_all_skip_and_lower_the_scale() -> None:
    (weights, scale, _), other = run_ranks(infinite, 2)
    assert scale == other[1] == 32.0
    assert all(torch.equal(a, b) and bool(torch.isfinite(a).all()) for a, b in zip(weights, other[0], strict=True))
