"""Training with `DDPStrategy` against a loop written by hand around DistributedDataParallel: equal bit for bit."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from fulgur import LightningModule, Trainer
from fulgur.testing import run_ranks

QUIET = {
    "accelerator": "cpu",
    "strategy": "ddp",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "max_epochs": 2,
}


def world() -> tuple[int, int]:
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def build_loader() -> DataLoader[Any]:
    """Six batches for each of four ranks, all of the same length."""
    generator = torch.Generator().manual_seed(5)
    return DataLoader(TensorDataset(torch.randn(96, 8, generator=generator)), batch_size=4)


def own_batches() -> list[torch.Tensor]:
    """What a rank trains on: every size-th batch of the loader."""
    rank, size = world()
    return [batch for (batch,) in build_loader()][rank::size]


class Net(LightningModule):
    """A network whose gradients are of many sizes, with a number of elements that rings divide unevenly."""

    def __init__(self, optimizer: Callable[..., Any] | None = None, *, norm: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16) if norm else nn.Tanh(), nn.Linear(16, 8))
        self.build = optimizer or (lambda parameters: torch.optim.SGD(parameters, lr=0.1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)

    def loss(self, x: torch.Tensor) -> torch.Tensor:
        return F.mse_loss(self(x), x)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.loss(batch[0])

    def configure_optimizers(self) -> Any:
        return self.build(self.parameters())


class ByHand(nn.Module):
    """What DistributedDataParallel wraps in the loop written by hand: its forward pass is the loss."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net.loss(x)


def trained(net: Net, **arguments: Any) -> list[torch.Tensor]:
    Trainer(devices=world()[1], **{**QUIET, **arguments}).fit(net, build_loader())
    return [value.detach().clone() for value in net.state_dict().values()]


def by_hand(
    net: Net,
    *,
    accumulate: int = 1,
    before_step: Callable[[Net], Any] = lambda net: None,
    after_step: Callable[[], Any] = lambda: None,
    after_epoch: Callable[[], Any] = lambda: None,
    context: Any = None,
    optimizer: Any = None,
    **arguments: Any,
) -> list[torch.Tensor]:
    wrapped = DistributedDataParallel(ByHand(net), **arguments)
    optimizer = optimizer or net.configure_optimizers()
    for _ in range(2):
        batches = own_batches()
        for index, batch in enumerate(batches):
            is_step = (index + 1) % accumulate == 0 or index + 1 == len(batches)
            if index % accumulate == 0:
                optimizer.zero_grad()
            wrapped.require_backward_grad_sync = is_step
            n = min(accumulate, len(batches) - index // accumulate * accumulate)
            if context is None:
                loss = wrapped(batch)
            else:
                with context():
                    loss = wrapped(batch)
            (loss / n if n > 1 else loss).backward()
            if is_step:
                before_step(net)
                optimizer.step()
                after_step()
        after_epoch()
    return [value.detach().clone() for value in net.state_dict().values()]


def adam(parameters: Any) -> Any:
    return torch.optim.AdamW(parameters, lr=0.01)


def bf16() -> Any:
    return torch.autocast("cpu", dtype=torch.bfloat16)


def plain() -> Any:
    return trained(Net()), by_hand(Net())


def adamw() -> Any:
    return trained(Net(adam)), by_hand(Net(adam))


def buffers_of_batch_norm() -> Any:
    return trained(Net(norm=True)), by_hand(Net(norm=True))


def accumulation() -> Any:
    return trained(Net(adam), accumulate_grad_batches=4), by_hand(Net(adam), accumulate=4)


def clipping_by_norm() -> Any:
    def clip(net: Net) -> None:
        torch.nn.utils.clip_grad_norm_(net.parameters(), 0.05)

    return trained(Net(), gradient_clip_val=0.05), by_hand(Net(), before_step=clip)


def clipping_by_value() -> Any:
    def clip(net: Net) -> None:
        torch.nn.utils.clip_grad_value_(net.parameters(), 0.01)

    arguments = {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}
    return trained(Net(), **arguments), by_hand(Net(), before_step=clip)


def bf16_mixed() -> Any:
    return trained(Net(adam), precision="bf16-mixed"), by_hand(Net(adam), context=bf16)


def double() -> Any:
    net, hand = Net(), Net().double()
    batches = build_loader().dataset.tensors[0]  # type: ignore[attr-defined]
    assert batches.dtype is torch.float32
    wrapped, optimizer = DistributedDataParallel(ByHand(hand)), hand.configure_optimizers()
    for _ in range(2):
        for batch in own_batches():
            optimizer.zero_grad()
            wrapped(batch.double()).backward()
            optimizer.step()
    return trained(net, precision="64-true"), [value.detach().clone() for value in hand.state_dict().values()]


def scheduler_of_steps_and_of_epochs() -> Any:
    class Scheduled(Net):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            by_step = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
            by_epoch = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
            return [optimizer], [{"scheduler": by_step, "interval": "step"}, {"scheduler": by_epoch}]

    hand = Net()
    (optimizer,), (by_step, by_epoch) = Scheduled.configure_optimizers(hand)  # type: ignore[arg-type]
    after_step, after_epoch = by_step["scheduler"].step, by_epoch["scheduler"].step
    return trained(Scheduled()), by_hand(hand, optimizer=optimizer, after_step=after_step, after_epoch=after_epoch)


def options_of_ddp() -> Any:
    from fulgur.strategies import DDPStrategy

    strategy = DDPStrategy(gradient_as_bucket_view=True, bucket_cap_mb=1, static_graph=True)
    options = {"gradient_as_bucket_view": True, "bucket_cap_mb": 1, "static_graph": True}
    return trained(Net(), strategy=strategy), by_hand(Net(), **options)


def hooks_of_communication() -> Any:
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook, fp16_compress_wrapper

    from fulgur.strategies import DDPStrategy

    net, hand = Net(), Net()
    strategy = DDPStrategy(ddp_comm_hook=allreduce_hook, ddp_comm_wrapper=fp16_compress_wrapper)
    wrapped, optimizer = DistributedDataParallel(ByHand(hand)), hand.configure_optimizers()
    wrapped.register_comm_hook(None, fp16_compress_wrapper(allreduce_hook))
    for _ in range(2):
        for batch in own_batches():
            optimizer.zero_grad()
            wrapped(batch).backward()
            optimizer.step()
    return trained(net, strategy=strategy), [value.detach().clone() for value in hand.state_dict().values()]


def frozen_parameters() -> Any:
    net, hand = Net(), Net()
    for each in (net, hand):
        each.body[0].requires_grad_(False)
    return trained(net), by_hand(hand)


def an_overridden_optimizer_step() -> Any:
    class Own(Net):
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any) -> None:
            optimizer.step(closure=optimizer_closure)

    return trained(Own()), by_hand(Net())


def an_overridden_backward() -> Any:
    class Own(Net):
        def backward(self, loss: torch.Tensor) -> None:
            (loss * 2).backward()

    def double_all(net: Net) -> None:
        for parameter in net.parameters():
            parameter.grad.mul_(2)  # type: ignore[union-attr]

    return trained(Own()), by_hand(Net(), before_step=double_all)


def manual_optimization() -> Any:
    class Manual(Net):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch[0]))
            optimizer.step()

    return trained(Manual()), by_hand(Net())


def compiled_module() -> Any:
    net = Net()
    Trainer(devices=world()[1], **QUIET).fit(torch.compile(net, backend="eager"), build_loader())
    return [value.detach().clone() for value in net.state_dict().values()], by_hand(Net())


SCENARIOS = {
    scenario.__name__: scenario
    for scenario in (
        plain,
        adamw,
        buffers_of_batch_norm,
        accumulation,
        clipping_by_norm,
        clipping_by_value,
        bf16_mixed,
        double,
        scheduler_of_steps_and_of_epochs,
        options_of_ddp,
        hooks_of_communication,
        frozen_parameters,
        an_overridden_optimizer_step,
        an_overridden_backward,
        manual_optimization,
        compiled_module,
    )
}
ON_FOUR = ("plain", "accumulation", "clipping_by_norm", "manual_optimization")


def run_scenarios(names: list[str]) -> dict[str, Any]:
    """Each scenario's weights, as the Trainer and as the loop by hand leave them, or the error."""
    found: dict[str, Any] = {}
    for name in names:
        mine, theirs = SCENARIOS[name]()
        found[name] = (mine, theirs)
    return found


@pytest.fixture(scope="module")
def on_two() -> list[dict[str, Any]]:
    return run_ranks(run_scenarios, 2, list(SCENARIOS), timeout_s=240)


@pytest.fixture(scope="module")
def on_four() -> list[dict[str, Any]]:
    return run_ranks(run_scenarios, 4, list(ON_FOUR), timeout_s=240)


def check_parity(results: list[dict[str, Any]], name: str) -> None:
    start = list(Net(norm="norm" in name and "clipping" not in name).state_dict().values())
    for mine, theirs in (result[name] for result in results):
        assert [torch.equal(a, b) for a, b in zip(mine, theirs, strict=True)] == [True] * len(theirs)
    mine = results[0][name][0]
    assert not all(torch.equal(a.to(b.dtype), b) for a, b in zip(start, mine, strict=True))
    n_parameters = 4  # buffers of batch norm are each rank's own
    for other, _ in (result[name] for result in results[1:]):
        assert all(torch.equal(a, b) for a, b in zip(mine[:n_parameters], other[:n_parameters], strict=True))


@pytest.mark.world_size(2)
@pytest.mark.parametrize("name", SCENARIOS)
def test_two_ranks_have_the_bits_of_a_loop_by_hand(on_two: list[dict[str, Any]], name: str) -> None:
    check_parity(on_two, name)


@pytest.mark.world_size(4)
@pytest.mark.parametrize("name", ON_FOUR)
def test_four_ranks_have_the_bits_of_a_loop_by_hand(on_four: list[dict[str, Any]], name: str) -> None:
    check_parity(on_four, name)
