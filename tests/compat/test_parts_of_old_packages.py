"""Collectives as objects, samplers that repeat nothing, and the precision of FSDP: under their old names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import SequentialSampler

import fulgur
import fulgur.compat
from fulgur.testing import BoringModel, run_ranks


@pytest.fixture(autouse=True)
def _installed() -> Iterator[None]:
    fulgur.compat.install()
    yield
    fulgur.compat.uninstall()


def _talk() -> list[Any]:
    fulgur.compat.install()
    from lightning.fabric.plugins.collectives import TorchCollective

    ours = TorchCollective().setup(backend="gloo").create_group()
    own = torch.tensor([float(ours.rank + 1)])
    said: list[Any] = [ours.world_size]
    said.append(ours.all_reduce(own.clone(), "sum").item())
    said.append(ours.all_reduce(own.clone(), "max").item())
    said.append(ours.broadcast(own.clone(), 1).item())
    said.append([t.item() for t in ours.all_gather([torch.zeros(1), torch.zeros(1)], own)])
    said.append(ours.all_gather_object([None, None], ours.rank))
    said.append(ours.broadcast_object_list([ours.rank], 1))
    ours.barrier()
    ours.teardown()
    said.append(TorchCollective.is_initialized())
    return said


def test_a_group_of_two_talks() -> None:
    assert run_ranks(_talk, 2) == [[2, 3.0, 2.0, 2.0, [1.0, 2.0], [0, 1], [1], False]] * 2


def test_one_process_alone_gets_back_what_it_gave() -> None:
    from lightning.fabric.plugins.collectives import Collective, SingleDeviceCollective

    alone = SingleDeviceCollective().setup().create_group()
    tensor = torch.ones(1)
    assert isinstance(alone, Collective)
    assert (alone.rank, alone.world_size) == (0, 1)
    assert alone.all_reduce(tensor, "mean") is tensor
    assert alone.all_gather([torch.zeros(1)], tensor) == [tensor]
    with pytest.raises(RuntimeError, match="has a group"):
        alone.create_group()
    alone.teardown()
    with pytest.raises(RuntimeError, match="no group yet"):
        alone.group  # noqa: B018


def test_an_operation_that_there_is_not_is_an_error() -> None:
    from fulgur.compat.standins.collectives import _to_op

    assert _to_op("mean") == torch.distributed.ReduceOp.AVG
    with pytest.raises(ValueError, match="op='median' is unknown"):
        _to_op("median")


@pytest.mark.parametrize("n", [5, 4, 1])
def test_no_sample_is_repeated(n: int) -> None:
    from lightning.pytorch.overrides.distributed import (
        UnrepeatedDistributedSampler,
        UnrepeatedDistributedSamplerWrapper,
    )

    of = {"num_replicas": 2, "shuffle": False}
    ranks: list[Any] = [UnrepeatedDistributedSampler(range(n), rank=rank, **of) for rank in (0, 1)]
    assert [list(rank) for rank in ranks] == [list(range(0, n, 2)), list(range(1, n, 2))]
    assert [len(rank) for rank in ranks] == [len(list(rank)) for rank in ranks]
    wrapped: list[Any] = [
        UnrepeatedDistributedSamplerWrapper(SequentialSampler(range(n)), rank=rank, **of) for rank in (0, 1)
    ]
    assert [list(rank) for rank in wrapped] == [list(rank) for rank in ranks]


def test_shuffled_ranks_share_one_order() -> None:
    from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler

    ranks: list[Any] = [UnrepeatedDistributedSampler(range(7), 2, rank, seed=3) for rank in (0, 1)]
    first = sorted([*ranks[0], *ranks[1]])
    assert first == list(range(7))
    before = list(ranks[0])
    ranks[0].set_epoch(1)
    assert list(ranks[0]) != before


@pytest.mark.parametrize("name", ["32-true", "bf16-true", "bf16-mixed"])
def test_the_precision_of_fsdp_is_the_one_of_that_name(name: Any) -> None:
    from lightning.pytorch.plugins import FSDPPrecision

    off = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    weights = []
    for how in ({"plugins": [FSDPPrecision(name)]}, {"precision": name}):
        torch.manual_seed(0)
        model = BoringModel()
        trainer = fulgur.Trainer(accelerator="cpu", max_steps=2, limit_val_batches=0, **off, **how)  # type: ignore[arg-type]
        trainer.fit(model)
        assert trainer.precision == name
        weights.append(model.layer.weight)
    assert torch.equal(*weights)
    assert weights[0].dtype is weights[1].dtype


def test_the_precision_of_fsdp_tells_its_formats() -> None:
    from lightning.fabric.plugins import FSDPPrecision

    assert FSDPPrecision("bf16-mixed").mixed_precision_config.param_dtype is torch.bfloat16
    assert FSDPPrecision("32-true").mixed_precision_config.param_dtype is None
    with pytest.raises(ValueError, match="64-true"):
        FSDPPrecision("64-true")
    with pytest.raises(ValueError, match="scales no loss"):
        FSDPPrecision("bf16-mixed", scaler=torch.amp.GradScaler("cpu"))
