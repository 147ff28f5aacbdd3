from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fulgur.metrics import to_host
from fulgur.testing import count_host_reads, forbid_host_reads

ONE = torch.ones(())

READS: dict[str, Callable[[], Any]] = {
    "Tensor.item": lambda: ONE.item(),
    "Tensor.cpu": lambda: ONE.cpu(),
    "Tensor.tolist": lambda: ONE.tolist(),
    "Tensor.numpy": lambda: ONE.numpy(),
    "Tensor.__float__": lambda: float(ONE),
    "Tensor.__int__": lambda: int(ONE),
    "Tensor.__bool__": lambda: bool(ONE),
    "Tensor.__index__": lambda: [5, 6][torch.tensor(1)],
    "Tensor.__complex__": lambda: complex(ONE),
    "Tensor.__format__": lambda: f"{ONE:.1f}",
    "Tensor.__repr__": lambda: repr(torch.ones(3)),
    "Tensor.__contains__": lambda: 1 in torch.ones(3),
    "Tensor.is_nonzero": lambda: ONE.is_nonzero(),
    "Tensor.equal": lambda: ONE.equal(ONE),
    "aten::equal": lambda: torch.equal(ONE, ONE),
    "aten::_local_scalar_dense": lambda: torch.arange(ONE),
}


@pytest.mark.parametrize("name", READS)
def test_counts_each_way_to_read_a_tensor_once(name: str) -> None:
    with count_host_reads() as reads:
        READS[name]()
    assert [read.name for read in reads] == [name]


def test_counts_the_test_of_a_parameter_in_an_if() -> None:
    with count_host_reads() as reads:
        assert torch.nn.Parameter(torch.ones(1))
    assert [read.name for read in reads] == ["Tensor.__bool__"]


def test_counts_a_read_in_a_hook_that_runs_during_backward() -> None:
    weight = torch.ones(2, requires_grad=True)
    weight.register_hook(lambda gradient: gradient * gradient.sum().tolist())
    with count_host_reads() as reads:
        weight.sum().backward()
    assert [read.name for read in reads] == ["Tensor.tolist"]


def test_counts_the_reads_of_another_thread() -> None:
    with count_host_reads() as reads:
        thread = threading.Thread(target=ONE.item)
        thread.start()
        thread.join()
    assert [read.name for read in reads] == ["Tensor.item"]


def test_does_not_count_what_stays_a_tensor() -> None:
    weight = torch.ones(2, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    with count_host_reads() as reads:
        torch.nn.functional.mse_loss(weight, torch.zeros(2)).backward()
        torch.nn.utils.clip_grad_norm_([weight], 1.0)
        optimizer.step()
        weight.detach().clone().to("cpu").shape  # noqa: B018
    assert reads == []


def test_does_not_count_after_the_block() -> None:
    before = {name: vars(Tensor).get(name) for name in ("item", "__float__", "__repr__")}
    with count_host_reads() as reads:
        pass
    assert ONE.item() == 1.0
    assert float(ONE) == 1.0
    assert reads == []
    assert {name: vars(Tensor).get(name) for name in before} == before


def test_leaves_values_as_they_are() -> None:
    with count_host_reads():
        assert (ONE.item(), float(ONE), int(ONE), bool(ONE), ONE.tolist()) == (1.0, 1.0, 1, True, 1.0)
        assert repr(ONE) == "tensor(1.)"
        assert (ONE.numpy() == 1.0).all()


def test_says_where_a_read_happened() -> None:
    with count_host_reads() as reads:
        READS["Tensor.item"]()
    read = reads[0]
    assert read.frame.filename == __file__
    assert read.stack[-1] == read.frame
    assert repr(read).startswith(f"Tensor.item at {__file__}:")
    assert "ONE.item()" in repr(read)


def test_names_the_caller_where_torch_itself_reads() -> None:
    weight = torch.ones(1, requires_grad=True)
    weight.grad = torch.full((1,), float("inf"))
    with count_host_reads() as reads, pytest.raises(RuntimeError, match="non-finite"):
        torch.nn.utils.clip_grad_norm_([weight], 1.0, error_if_nonfinite=True)
    assert reads[0].name == "Tensor.__bool__"
    assert reads[0].frame.filename == __file__


def test_nested_blocks_both_count() -> None:
    with count_host_reads() as outer, count_host_reads() as inner:
        ONE.item()
    assert len(outer) == len(inner) == 1


def test_forbidding_raises_at_the_read_and_names_it() -> None:
    with forbid_host_reads(), pytest.raises(RuntimeError, match=r"Tensor\.item at .*test_host_reads\.py"):
        ONE.item()


def test_forbidding_raises_for_an_operator_of_torch() -> None:
    with forbid_host_reads(), pytest.raises(RuntimeError, match="aten::_local_scalar_dense at"):
        torch.arange(ONE)


def test_forbidding_can_let_the_flush_of_logged_values_pass() -> None:
    with forbid_host_reads(allow_flush=True):
        assert to_host([ONE, 2.0]) == [1.0, 2.0]
    with forbid_host_reads(), pytest.raises(RuntimeError, match="in to_host"):
        to_host([ONE])


@pytest.mark.gpu
def test_counts_copies_that_leave_the_device() -> None:
    on_device = torch.ones(2, device="cuda")
    with count_host_reads() as reads:
        on_device.to("cpu")
        torch.empty(2).copy_(on_device)
        on_device.cpu()
        on_device.to("cuda")
    assert [read.name for read in reads] == ["aten::_to_copy", "aten::copy_", "Tensor.cpu"]
