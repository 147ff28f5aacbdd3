"""A loop with `Fabric` costs at most five Python calls a step over the loop by hand, torch's own among them."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from tests.overhead.conftest import calls
from torch import nn
from torch.utils.data import DataLoader

from fulgur import Fabric

Parts = tuple[Iterable[Any], Any, Any, Callable[[Any], None]]


def build(n_batches: int) -> tuple[DataLoader[Any], nn.Module, torch.optim.Optimizer]:
    net = nn.Linear(3, 1)
    return DataLoader(torch.ones(n_batches, 3), batch_size=1), net, torch.optim.SGD(net.parameters(), lr=0.01)


def with_fabric(n_batches: int, **arguments: Any) -> Parts:
    fabric = Fabric(accelerator="cpu", devices=1, **arguments)
    loader, net, optimizer = build(n_batches)
    model, optimizer = fabric.setup(net, optimizer)
    return fabric.setup_dataloaders(loader), model, optimizer, fabric.backward


def by_hand(n_batches: int) -> Parts:
    return *build(n_batches), lambda loss: loss.backward()


def run(parts: Parts) -> None:
    loader, model, optimizer, backward = parts
    for batch in loader:
        optimizer.zero_grad()
        backward(model(batch).sum())
        optimizer.step()


def all_calls(parts: Parts) -> int:
    """Calls of Python functions, whose ever they are."""
    counted: Counter[str] = Counter()

    def on_event(frame: Any, event: str, argument: Any) -> None:
        if event == "call":
            counted[frame.f_code.co_name] += 1

    previous = sys.getprofile()
    sys.setprofile(on_event)
    try:
        run(parts)
    finally:
        sys.setprofile(previous)
    return counted.total()


def added_calls(build_parts: Callable[[int], Parts]) -> float:
    run(build_parts(8))  # imports what it needs
    return (all_calls(build_parts(16)) - all_calls(build_parts(8))) / 8


def test_a_step_costs_batch_forward_backward_and_step() -> None:
    assert calls(lambda n: run(with_fabric(n))).by_function == {
        "data/transfer.py:move_to_cpu": 1,
        "fabric/wrappers.py:_FabricModule.__call__": 1,
        "fabric/fabric.py:Fabric.backward": 1,
        "fabric/wrappers.py:_FabricOptimizer.step": 1,
    }


def test_a_step_is_at_most_five_calls_of_any_kind_dearer_than_by_hand() -> None:
    # the lambda around loss.backward() stands for Fabric.backward
    assert added_calls(with_fabric) - added_calls(by_hand) + 1 == 4


def test_a_scheduler_costs_one_call_more() -> None:
    def run_scheduled(n_batches: int) -> None:
        parts = with_fabric(n_batches)
        torch.optim.lr_scheduler.StepLR(parts[2], 1)
        run(parts)

    assert calls(run_scheduled).total == 5


@pytest.mark.parametrize(("precision", "expected"), [("bf16-mixed", 5), ("64-true", 5), ("bf16-true", 5)])
def test_what_precisions_cost(precision: str, expected: int) -> None:
    assert calls(lambda n: run(with_fabric(n, precision=precision))).total == expected
