from __future__ import annotations

from typing import Any

import pytest
import torch

from fulgur.strategies import FSDPStrategy, StrategyRegistry


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"sharding_strategy": "NO_SHARD"}, ValueError, "shards nothing. Use strategy='ddp'"),
        ({"sharding_strategy": "FULL_SHARDS"}, ValueError, "is unknown. Did you mean 'FULL_SHARD'"),
        ({"state_dict_type": "local"}, ValueError, "state_dict_type='local' is unknown. Use 'full' or 'sharded'"),
        ({"device_mesh": (4,)}, ValueError, "has 1 axes"),
        ({"mixed_precision": "bf16"}, TypeError, "mixed_precision='bf16' is no policy"),
        ({"use_orig_params": False}, ValueError, "use_orig_params=False is nothing that FSDP2 has. FSDP2 always keeps"),
        ({"limit_all_gather": True}, TypeError, "has no argument 'limit_all_gather'. Did you mean 'limit_all_gathers'"),
        ({"param_init_fn": print}, ValueError, "Give modules made on the meta device reset_parameters"),
    ],
)
def test_what_fsdp2_does_not_have_is_refused(arguments: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        FSDPStrategy(**arguments)


def test_backward_prefetch_that_fsdp2_does_anyway_is_accepted() -> None:
    from torch.distributed.fsdp import BackwardPrefetch

    FSDPStrategy(backward_prefetch=BackwardPrefetch.BACKWARD_PRE)
    with pytest.raises(ValueError, match="gathers the next unit before the gradients"):
        FSDPStrategy(backward_prefetch=BackwardPrefetch.BACKWARD_POST)


@pytest.mark.parametrize(
    ("given", "is_hybrid", "reshards"),
    [
        ("FULL_SHARD", False, None),
        ("shard_grad_op", False, False),
        ("HYBRID_SHARD", True, None),
        ("_HYBRID_SHARD_ZERO2", True, False),
    ],
)
def test_sharding_strategy_is_read_by_name_and_as_the_enum_of_torch(given: str, is_hybrid: bool, reshards: Any) -> None:
    from torch.distributed.fsdp import ShardingStrategy

    for value in (given, ShardingStrategy[given.upper()]):
        strategy = FSDPStrategy(sharding_strategy=value)
        assert (strategy.is_hybrid, strategy.reshard_after_forward) == (is_hybrid, reshards)


def test_mesh_of_two_axes_makes_sharding_hybrid() -> None:
    assert FSDPStrategy(device_mesh=(2, 4)).is_hybrid


def test_policies_of_the_earlier_fsdp_are_read() -> None:
    from torch.distributed.fsdp import CPUOffload, CPUOffloadPolicy, MixedPrecision

    given = MixedPrecision(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    policy = FSDPStrategy(mixed_precision=given).mixed_precision
    assert policy is not None
    assert (policy.param_dtype, policy.reduce_dtype) == (torch.bfloat16, torch.float32)
    offloads = [CPUOffload(offload_params=True), CPUOffload(offload_params=False), CPUOffloadPolicy(), True, None]
    assert [FSDPStrategy(cpu_offload=value).cpu_offload for value in offloads] == [True, False, True, True, False]


def test_names_stand_for_strategies() -> None:
    assert isinstance(StrategyRegistry.get("fsdp"), FSDPStrategy)
    assert StrategyRegistry.get("fsdp_cpu_offload").cpu_offload
