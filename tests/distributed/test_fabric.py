"""Loops of the user's own on two ranks, through `Fabric`: the bits of loops written by hand around torch's wrappers."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import mse_loss
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset, WeightedRandomSampler

from fulgur import Fabric
from fulgur.checkpoint.location import is_sharded
from fulgur.strategies import FSDPStrategy, ModelParallelStrategy
from fulgur.testing import run_ranks

WINDOW = 2


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 4))
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) * self.scale

    def score(self, x: Tensor) -> Tensor:
        return self(x).square().mean()


def samples(n: int = 48) -> TensorDataset:
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(1))
    return TensorDataset(x, x.flip(1))


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.05)


def whole(module: nn.Module) -> dict[str, Tensor]:
    return {k: getattr(v, "full_tensor", lambda v=v: v)().detach().clone() for k, v in module.state_dict().items()}


def build_fabric(strategy: Any = "ddp", **arguments: Any) -> Fabric:
    fabric = Fabric(accelerator="cpu", devices=int(os.environ["WORLD_SIZE"]), strategy=strategy, **arguments)
    fabric.launch()
    return fabric


STRATEGIES: dict[str, Callable[[], Any]] = {
    "ddp": lambda: "ddp",
    "fsdp": lambda: FSDPStrategy(auto_wrap_policy={nn.Linear}),
    "sharded": lambda: FSDPStrategy(auto_wrap_policy={nn.Linear}, state_dict_type="sharded"),
}


# ----------------------------------------------------------------------------------------- the bits of a loop by hand


def train(kind: str, *, epochs: int = 2, max_norm: float | None = 0.1, precision: Any = None) -> tuple[Any, Any, Any]:
    """Fabric, model and optimizer after a loop with windows of batches, and clipping."""
    fabric = build_fabric(STRATEGIES[kind](), precision=precision)
    net = Net()
    model, optimizer = fabric.setup(net, adam(net.parameters()))
    loader = fabric.setup_dataloaders(DataLoader(samples(), batch_size=4, shuffle=True))
    for _ in range(epochs):
        for index, (x, y) in enumerate(loader):
            is_last = (index + 1) % WINDOW == 0
            with fabric.no_backward_sync(model, enabled=not is_last):
                fabric.backward(mse_loss(model(x), y) / WINDOW)
            if is_last:
                if max_norm is not None:
                    fabric.clip_gradients(model, optimizer, max_norm=max_norm)
                optimizer.step()
                optimizer.zero_grad()
    return fabric, model, optimizer


def train_by_hand(kind: str) -> nn.Module:
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    net: Any = Net()
    if kind == "ddp":
        model: Any = DistributedDataParallel(net)
        set_sync = lambda on: setattr(model, "require_backward_grad_sync", on)  # noqa: E731
    else:
        for layer in (net.body[0], net.body[2]):
            fully_shard(layer)
        model = fully_shard(net)
        set_sync = model.set_requires_gradient_sync
    optimizer = adam(model.parameters())
    data = samples()
    sampler = DistributedSampler(data, size, rank, shuffle=True, seed=0)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        for index, (x, y) in enumerate(DataLoader(data, batch_size=4, sampler=sampler)):
            is_last = (index + 1) % WINDOW == 0
            set_sync(is_last)
            (mse_loss(model(x), y) / WINDOW).backward()
            if is_last:
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
                optimizer.step()
                optimizer.zero_grad()
    return net


def differences(kind: str) -> list[str]:
    _, model, _ = train(kind)
    got, expected = whole(model), whole(train_by_hand(kind))
    assert got.keys() == expected.keys()
    return [name for name in got if not torch.equal(got[name], expected[name])]


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_windows_and_clipping_have_the_bits_of_a_loop_by_hand(kind: str) -> None:
    assert run_ranks(differences, 2, kind) == [[], []]


def weights_after(precision: Any) -> dict[str, Tensor]:
    trained = {kind: whole(train(kind, epochs=1, precision=precision)[1]) for kind in ("ddp", "fsdp")}
    return {f"{kind}.{name}": tensor for kind, found in trained.items() for name, tensor in found.items()}


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_precisions_keep_the_ranks_together(precision: str) -> None:
    first, second = run_ranks(weights_after, 2, precision)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert {tensor.dtype for tensor in first.values()} == {torch.float64 if precision == "64-true" else torch.float32}


def gradients_in_and_after_no_sync() -> tuple[bool, bool]:
    fabric = build_fabric()
    model = fabric.setup(Net())
    x = torch.full((2, 4), float(fabric.global_rank + 1))
    with fabric.no_backward_sync(model):
        fabric.backward(model(x).sum())
    kept = fabric.all_gather(model.scale.grad)
    fabric.backward(model(x).sum())
    reduced = fabric.all_gather(model.scale.grad)
    return bool(torch.equal(kept[0], kept[1])), bool(torch.equal(reduced[0], reduced[1]))


def test_gradients_stay_apart_until_they_are_synchronised() -> None:
    assert run_ranks(gradients_in_and_after_no_sync, 2) == [(False, True)] * 2


# --------------------------------------------------------------------------------------------------------- checkpoints


def save_and_load(kind: str, folder: str, other: str) -> bool:
    """Train, save, and load under another strategy into a model of other weights and a new optimizer."""
    fabric, model, optimizer = train(kind, epochs=1)
    path = f"{folder}/state.ckpt"
    fabric.save(path, {"model": model, "optimizer": optimizer, "step": 12})
    assert is_sharded(path) is (kind == "sharded")
    expected = whole(model)

    second = build_fabric(STRATEGIES[other]())
    net = Net()
    with torch.no_grad():
        net.scale.zero_()
    other_model, other_optimizer = second.setup(net, adam(net.parameters()))
    state = {"model": other_model, "optimizer": other_optimizer, "step": 0}
    assert second.load(path, state) == {}
    moments = zip(optimizer.state.values(), other_optimizer.state.values(), strict=True)
    full = lambda t: getattr(t, "full_tensor", lambda: t)()  # noqa: E731
    same_moments = all(torch.equal(full(a["exp_avg"]), full(b["exp_avg"])) for a, b in moments)
    loaded = whole(other_model)
    return state["step"] == 12 and same_moments and all(torch.equal(loaded[k], expected[k]) for k in expected)


PAIRS = [
    ("ddp", "ddp"),
    ("ddp", "fsdp"),
    ("fsdp", "ddp"),
    ("fsdp", "sharded"),
    ("sharded", "sharded"),
    ("sharded", "ddp"),
]


def save_and_load_each(folder: str) -> list[tuple[str, str]]:
    """Pairs whose second strategy did not load what the first had saved; all in one world, which is slow to start."""
    return [(kind, other) for kind, other in PAIRS if not save_and_load(kind, f"{folder}/{kind}_{other}", other)]


def test_what_one_strategy_saves_another_loads(tmp_path: Path) -> None:
    assert run_ranks(save_and_load_each, 2, str(tmp_path)) == [[], []]


def test_one_process_loads_what_two_have_saved_in_parts(tmp_path: Path) -> None:
    run_ranks(save_and_load, 2, "sharded", str(tmp_path), "sharded")
    fabric = Fabric(accelerator="cpu", devices=1)
    net = Net()
    model, optimizer = fabric.setup(net, adam(net.parameters()))
    left = fabric.load(tmp_path / "state.ckpt", {"model": model, "optimizer": optimizer})
    assert left == {"step": 12}
    assert model.scale.sum().item() != 4.0
    assert [tuple(state["exp_avg"].shape) for state in optimizer.state.values()] == [
        tuple(p.shape) for p in model.parameters()
    ]


# ----------------------------------------------------------------------------------------------- talking to each other


def talk(folder: str) -> list[Any]:
    fabric = build_fabric()
    rank = fabric.global_rank
    with fabric.rank_zero_first():
        is_there = os.path.exists(f"{folder}/made")
        if rank == 0:
            Path(folder, "made").touch()
    gathered = fabric.all_gather({"a": torch.tensor([rank]), "b": [rank]})
    reduced = fabric.all_reduce({"mean": float(rank), "t": torch.ones(2)}, reduce_op="sum")
    fabric.barrier()
    return [
        (fabric.world_size, rank, fabric.local_rank, fabric.node_rank, fabric.is_global_zero),
        is_there,
        gathered["a"].tolist(),
        gathered["b"][0].tolist(),
        reduced["mean"].item(),
        reduced["t"].tolist(),
        fabric.broadcast(f"from {rank}", src=1),
    ]


def test_collectives_take_nestings_and_numbers(tmp_path: Path) -> None:
    common = [[[0], [1]], [0, 1], 1.0, [2.0, 2.0], "from 1"]
    assert run_ranks(talk, 2, str(tmp_path)) == [
        [(2, 0, 0, 0, True), False, *common],
        [(2, 1, 1, 0, False), True, *common],
    ]


def marked() -> tuple[str, bool]:
    fabric = build_fabric()
    model = fabric.setup(Net())
    x = torch.full((2, 4), float(fabric.global_rank + 1))
    try:
        model.score(x)
        message = ""
    except RuntimeError as error:
        message = str(error)
    model.mark_forward_method("score")
    fabric.backward(model.score(x))
    gradients = fabric.all_gather(model.scale.grad)
    return message, bool(torch.equal(gradients[0], gradients[1]))


def test_a_method_around_the_wrapper_is_refused_until_it_is_marked() -> None:
    for message, is_synchronised in run_ranks(marked, 2):
        assert "mark_forward_method('score')" in message
        assert is_synchronised


def marked_under_fsdp() -> float:
    fabric = build_fabric(FSDPStrategy())
    model = fabric.setup(Net())
    model.mark_forward_method(model.module.score)
    loss = model.score(torch.ones(2, 4))
    fabric.backward(loss)
    return loss.item()


def test_a_marked_method_runs_with_parts_gathered() -> None:
    expected = Net().score(torch.ones(2, 4)).item()
    assert run_ranks(marked_under_fsdp, 2) == [pytest.approx(expected, rel=1e-6)] * 2


def evaluated_between(compiles: bool) -> bool:
    """Weights that an evaluation before an optimizer's step has gathered are not used after it."""
    fabric = build_fabric(FSDPStrategy())
    net: Any = Net()
    if compiles:
        net = torch.compile(net, backend="eager")
    model, optimizer = fabric.setup(net, torch.optim.SGD(net.parameters(), lr=0.5))
    x = torch.ones(2, 4)
    fabric.backward(model(x).sum())
    with torch.no_grad():
        before = model(x)
    optimizer.step()
    with torch.no_grad():
        return bool(torch.equal(before, model(x)))


@pytest.mark.parametrize("compiles", [False, True])
def test_an_evaluation_before_a_step_keeps_no_old_weights(compiles: bool) -> None:
    assert run_ranks(evaluated_between, 2, compiles) == [False, False]


def made_empty() -> tuple[set[str], dict[str, Tensor]]:
    fabric = build_fabric(FSDPStrategy())
    with fabric.init_module(empty_init=True):
        net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    devices = {p.device.type for p in net.parameters()}
    torch.manual_seed(3 + fabric.global_rank)
    return devices, whole(fabric.setup(net).module)


def test_a_model_made_without_memory_gets_the_values_that_rank_0_draws() -> None:
    torch.manual_seed(3)
    expected = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)).state_dict()
    for devices, weights in run_ranks(made_empty, 2):
        assert devices == {"meta"}
        assert all(torch.equal(weights[name], expected[name]) for name in expected)


def optimizer_with_a_past() -> str:
    fabric = build_fabric(FSDPStrategy())
    net = Net()
    optimizer = adam(net.parameters())
    net.score(torch.ones(2, 4)).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    try:
        fabric.setup(net, optimizer)
    except ValueError as error:
        return str(error)
    return ""


def test_an_optimizer_with_a_state_is_not_cut_into_parts() -> None:
    assert all("has taken steps already" in message for message in run_ranks(optimizer_with_a_past, 2))


# ------------------------------------------------------------------------------------------------------------- loaders


def drawn(sampler: str) -> list[list[list[int]]]:
    fabric = build_fabric()
    data = list(range(12))
    arguments: dict[str, Any] = {"shuffle": True}
    if sampler == "weighted":
        torch.manual_seed(fabric.global_rank)  # ranks whose generators have come apart
        arguments = {"sampler": WeightedRandomSampler([1.0] * 12, 12, replacement=False)}
    loader = fabric.setup_dataloaders(DataLoader(data, batch_size=3, **arguments))  # type: ignore[arg-type]
    return [[batch.tolist() for batch in loader] for _ in range(2)]


@pytest.mark.parametrize("sampler", ["random", "weighted"])
def test_each_sample_is_drawn_once_a_pass_in_another_order_each_time(sampler: str) -> None:
    first, second = run_ranks(drawn, 2, sampler)
    for one, other in zip(first, second, strict=True):
        assert sorted(sample for batch in one + other for sample in batch) == list(range(12))
    assert first[0] != first[1]


def refusals() -> list[str]:
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    messages = []
    for call in (lambda: fabric.setup(Net()), lambda: fabric.barrier(), lambda: fabric.all_reduce(1)):
        try:
            call()
        except RuntimeError as error:
            messages.append(str(error))
    fabric.launch()
    return messages


def test_nothing_is_set_up_before_launch() -> None:
    assert [["fabric.launch()" in message for message in messages] for messages in run_ranks(refusals, 2)] == [
        [True, True, True]
    ] * 2


# ----------------------------------------------------------------------------------------------------- model parallel


def spread(net: nn.Module, mesh: Any) -> nn.Module:
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    return parallelize_module(net, mesh["tensor_parallel"], {"0": ColwiseParallel(), "2": RowwiseParallel()})


def tensor_parallel(*, by_strategy: bool) -> list[float]:
    function = spread if by_strategy else None
    fabric = build_fabric(ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=2, parallelize_fn=function))
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))
    if not by_strategy:
        spread(net, fabric.strategy.device_mesh)  # type: ignore[attr-defined]
    model, optimizer = fabric.setup(net, torch.optim.SGD(net.parameters(), lr=0.1))
    losses = []
    for _ in range(3):
        loss = model(torch.ones(2, 4)).square().sum()
        fabric.backward(loss)
        fabric.clip_gradients(model, optimizer, max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("by_strategy", [True, False])
def test_a_model_spread_over_the_mesh_trains(by_strategy: bool) -> None:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))
    optimizer, expected = torch.optim.SGD(net.parameters(), lr=0.1), []
    for _ in range(3):
        loss = net(torch.ones(2, 4)).square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        expected.append(loss.item())
    assert run_ranks(partial(tensor_parallel, by_strategy=by_strategy), 2) == [pytest.approx(expected, rel=1e-5)] * 2
