"""What users of the earlier FSDP pass, in the terms of FSDP2; what it has nothing for is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fulgur.errors import nearest_name
from fulgur.mesh import is_mesh

if TYPE_CHECKING:
    from torch.distributed.fsdp import MixedPrecisionPolicy

_SHARDINGS = {
    "FULL_SHARD": (False, None),
    "SHARD_GRAD_OP": (False, False),
    "HYBRID_SHARD": (True, None),
    "_HYBRID_SHARD_ZERO2": (True, False),
}
_OWN = ("reshard_after_forward", "ignored_modules")
_ALWAYS_SO: dict[str, tuple[Any, ...]] = {
    "use_orig_params": (True, None),
    "sync_module_states": (True, None),
    "limit_all_gathers": (True, None),
    "forward_prefetch": (False, None),
    "device_id": (None,),
    "process_group": (None,),
    "param_init_fn": (None,),
    "ignored_states": (None,),
}
_INSTEAD = {
    "use_orig_params": "FSDP2 always keeps the original parameters: leave it out.",
    "sync_module_states": "All ranks always begin with the weights of rank 0: leave it out.",
    "limit_all_gathers": "FSDP2 always limits them: leave it out.",
    "forward_prefetch": "Call set_modules_to_forward_prefetch on the units in on_fit_start.",
    "device_id": "The Trainer's devices count.",
    "process_group": "Pass device_mesh.",
    "param_init_fn": "Give modules made on the meta device reset_parameters.",
    "ignored_states": "Pass ignored_modules.",
}


def to_sharding(strategy: Any, device_mesh: Any) -> tuple[bool, bool | None]:
    """Whether sharding is hybrid, and ``reshard_after_forward`` (None: torch's own choice).

    Args:
        strategy: A name, or torch's ``ShardingStrategy``.
        device_mesh: With two axes it makes sharding hybrid, whatever else is said.

    Raises:
        ValueError: The name is unknown, or that of no sharding.
    """
    name = str(getattr(strategy, "name", strategy)).upper()
    if name == "NO_SHARD":
        raise ValueError("sharding_strategy='NO_SHARD' shards nothing. Use strategy='ddp'.")
    if name not in _SHARDINGS:
        raise ValueError(
            f"sharding_strategy={strategy!r} is unknown.{nearest_name(name, _SHARDINGS)} Use one of "
            f"{', '.join(map(repr, _SHARDINGS))}."
        )
    is_hybrid, reshards = _SHARDINGS[name]
    if device_mesh is None:
        return is_hybrid, reshards
    n_axes = device_mesh.ndim if is_mesh(device_mesh) else len(device_mesh)
    if n_axes not in (1, 2) or (n_axes == 1 and (is_hybrid or not is_mesh(device_mesh))):
        raise ValueError(
            f"device_mesh={device_mesh!r} has {n_axes} axes. Pass (groups, ranks that share), or a DeviceMesh of two "
            "axes."
        )
    return n_axes == 2, reshards


def to_policy(mixed_precision: Any) -> MixedPrecisionPolicy | None:
    """torch's policy, from one, or from the ``MixedPrecision`` of the earlier FSDP.

    Raises:
        TypeError: It is neither.
    """
    if mixed_precision is None:
        return None
    from torch.distributed.fsdp import MixedPrecision, MixedPrecisionPolicy

    if isinstance(mixed_precision, MixedPrecisionPolicy):
        return mixed_precision
    if isinstance(mixed_precision, MixedPrecision):
        return MixedPrecisionPolicy(
            param_dtype=mixed_precision.param_dtype,
            reduce_dtype=mixed_precision.reduce_dtype,
            cast_forward_inputs=mixed_precision.cast_forward_inputs,
        )
    raise TypeError(
        f"mixed_precision={mixed_precision!r:.80} is no policy. Use torch.distributed.fsdp.MixedPrecisionPolicy, or "
        "leave it out: Trainer(precision=...) counts."
    )


def wants_offload(cpu_offload: Any) -> bool:
    """Whether to offload, from a bool or from torch's objects of either FSDP."""
    if cpu_offload is None or isinstance(cpu_offload, bool):
        return bool(cpu_offload)
    return bool(getattr(cpu_offload, "offload_params", type(cpu_offload).__name__ == "CPUOffloadPolicy"))


def check_rest(arguments: dict[str, Any]) -> dict[str, Any]:
    """The further arguments that FSDP2 uses.

    Raises:
        ValueError: An argument of the earlier FSDP has a value that FSDP2 has nothing for.
        TypeError: An argument is unknown.
    """
    for name, value in arguments.items():
        if name in _OWN or (name == "backward_prefetch" and getattr(value, "name", None) != "BACKWARD_POST"):
            continue
        if name == "backward_prefetch":
            raise ValueError(f"{name}={value!r}: FSDP2 gathers the next unit before the gradients of this one.")
        if name not in _ALWAYS_SO:
            known = (*_OWN, "backward_prefetch", *_ALWAYS_SO)
            raise TypeError(f"FSDPStrategy has no argument {name!r}.{nearest_name(name, known)}")
        if not any(value is same for same in _ALWAYS_SO[name]):
            raise ValueError(f"{name}={value!r} is nothing that FSDP2 has. {_INSTEAD[name]}")
    return {name: arguments[name] for name in _OWN if name in arguments}
