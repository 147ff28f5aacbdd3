"""Copies of tensors on the host, in memory that is used again."""

from __future__ import annotations

import io
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fulgur.checkpoint.stage import HostStage

LARGE = 1 << 13  # floats: beyond what is not worth using again


def saved(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def loaded(value: Any) -> Any:
    return torch.load(io.BytesIO(saved(value)), weights_only=False)


def address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@pytest.mark.parametrize("size", [0, 1, 10, LARGE])
def test_copy_keeps_what_it_was(size: int) -> None:
    tensor = torch.randn(size)
    before = tensor.clone()
    staged = HostStage().copy({"w": tensor})
    tensor.zero_()
    assert torch.equal(staged["w"], before)


def test_containers_are_copied() -> None:
    source: dict[str, Any] = {"list": [1, {"x": 2}], "tuple": (3, [4]), "text": "t", "none": None}
    staged = HostStage().copy(source)
    source["list"][1]["x"] = 0
    source["tuple"][1].append(0)
    source["new"] = 0
    assert staged == {"list": [1, {"x": 2}], "tuple": (3, [4]), "text": "t", "none": None}


def test_state_dict_keeps_its_versions() -> None:
    state = nn.Linear(2, 2).state_dict()
    staged = HostStage().copy(state)
    assert type(staged) is OrderedDict
    assert staged._metadata == state._metadata  # type: ignore[attr-defined]


def test_other_objects_are_copied_too() -> None:
    class Anything:
        def __init__(self) -> None:
            self.values = [1]

    source = Anything()
    staged = HostStage().copy([source])
    source.values.append(2)
    assert staged[0].values == [1]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(4, 3).t(),
        torch.randn(40, 40)[3:7, 2:],
        torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        torch.randn(3, requires_grad=True),
        torch.randn(3, requires_grad=True) * 2,
        torch.tensor(5),
        torch.randn(3, dtype=torch.complex64),
        torch.randn(3, dtype=torch.complex64).conj(),
        torch.randn(4).to(torch.float8_e4m3fn),
        torch.eye(3).to_sparse(),
        torch.tensor([True, False]),
        nn.Parameter(torch.randn(3)),
        nn.Parameter(torch.randn(3), requires_grad=False),
        torch.empty(3, device="meta"),
    ],
    ids=lambda tensor: f"{type(tensor).__name__}-{tensor.dtype}-{tuple(tensor.shape)}",
)
def test_tensors_of_every_kind_are_saved_as_they_would_be_without(tensor: Tensor) -> None:
    expected, found = loaded([tensor])[0], loaded(HostStage().copy([tensor]))[0]
    assert type(found) is type(expected)
    assert (found.dtype, found.shape, found.requires_grad) == (expected.dtype, expected.shape, expected.requires_grad)
    assert found.layout == expected.layout
    if found.layout == torch.strided:
        assert found.stride() == expected.stride()
    if not found.is_meta:
        assert torch.equal(found.detach().to_dense(), expected.detach().to_dense())


def test_shared_memory_is_copied_once() -> None:
    base = torch.randn(LARGE)
    source = {"all": base, "part": base[10:20], "tied": base.detach()}
    staged = HostStage().copy(source)
    assert address(staged["all"]) == address(staged["part"]) == address(staged["tied"])
    assert len(saved(staged)) == len(saved(source))


def test_file_is_as_large_as_without() -> None:
    module = nn.Linear(300, 300)
    state = {"state_dict": module.state_dict(), "other": [torch.randn(10, 10)[0]]}
    assert len(saved(HostStage().copy(state))) == len(saved(state))


def test_memory_is_used_again() -> None:
    stage, tensors = HostStage(), [torch.randn(LARGE) for _ in range(3)]
    first = {address(tensor) for tensor in stage.copy(tensors)}
    stage.take_back()
    assert {address(tensor) for tensor in stage.copy(tensors)} == first


def test_memory_in_use_is_not_given_twice() -> None:
    stage, tensor = HostStage(), torch.randn(LARGE)
    first = stage.copy(tensor)
    stage.forget_sources()
    assert address(stage.copy(tensor)) != address(first)


def test_memory_without_use_is_given_back() -> None:
    stage = HostStage()
    stage.copy([torch.randn(LARGE), torch.randn(2 * LARGE)])
    stage.take_back()
    stage.copy([torch.randn(LARGE)])
    stage.take_back()
    assert sum(map(len, stage._free.values())) == 1


def test_copies_of_one_moment_share_what_their_sources_share() -> None:
    stage, tensor = HostStage(), torch.randn(LARGE)
    assert address(stage.copy(tensor)) == address(stage.copy({"again": tensor})["again"])


def test_source_that_has_gone_is_not_taken_for_a_new_one() -> None:
    stage, staged = HostStage(), []
    for value in range(50):
        staged.append(stage.copy(torch.full((LARGE,), float(value))))
    assert [tensor[0].item() for tensor in staged] == list(range(50))


def test_much_is_copied_whole_by_several_threads() -> None:
    tensors = [torch.full((1 << 16,), float(value)) for value in range(50)]
    for _ in range(5):
        assert [tensor.unique().tolist() for tensor in HostStage().copy(tensors)] == [[value] for value in range(50)]


def test_error_of_a_copy_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Tensor, *_: object, **__: object) -> None:
        raise RuntimeError("the memory is gone")

    monkeypatch.setattr(Tensor, "copy_", fail)
    with pytest.raises(RuntimeError, match="the memory is gone"):
        HostStage().copy([torch.zeros(1 << 22), torch.zeros(1 << 22)])


@pytest.mark.gpu
def test_copies_from_cuda_hold_the_moment_without_waiting_for_it() -> None:
    stage = HostStage()
    tensor = torch.zeros(1 << 24, device="cuda")
    for step in range(1, 4):
        torch.cuda._sleep(100_000_000)
        tensor.fill_(step)
        staged = stage.copy({"w": tensor, "part": tensor[5:7]})
        tensor.fill_(-1)
        stage.wait()
        assert staged["w"].is_pinned()
        assert staged["w"].eq(step).all()
        assert staged["part"].tolist() == [step, step]
        stage.take_back()


@pytest.mark.gpu
def test_pinned_memory_is_used_again() -> None:
    stage, tensor = HostStage(), torch.randn(LARGE, device="cuda")
    first = address(stage.copy(tensor))
    stage.wait()
    stage.take_back()
    assert address(stage.copy(tensor)) == first
    stage.wait()
