"""Meshes: how the ranks of a run are arranged along named axes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

REPLICATE, SHARD = "replicate", "shard"
"""Axes of sharded data parallelism: groups of ranks that hold the same, and ranks that hold a part each."""

DATA_PARALLEL, TENSOR_PARALLEL = "data_parallel", "tensor_parallel"
"""Axes of model parallelism: groups of ranks that see different data, and ranks that share each layer."""


def build_mesh(device_type: str, sizes: dict[str, int]) -> DeviceMesh:
    """Arrange all ranks, the last axis running fastest. All ranks must call it.

    Args:
        device_type: ``"cpu"`` or ``"cuda"``.
        sizes: Number of ranks along each axis.

    Raises:
        ValueError: Their product is not the number of processes.
    """
    from torch.distributed.device_mesh import init_device_mesh

    world_size = torch.distributed.get_world_size()
    product = 1
    for size in sizes.values():
        product *= size
    if product != world_size:
        shown = " × ".join(f"{size} ({axis})" for axis, size in sizes.items())
        raise ValueError(
            f"A mesh of {shown} takes {product} processes, and there are {world_size}. Make the sizes' product equal "
            "to devices × num_nodes."
        )
    mesh = init_device_mesh(device_type, tuple(sizes.values()), mesh_dim_names=tuple(sizes))
    if len(sizes) > 1 and hasattr(mesh, "_flatten"):
        mesh._flatten()  # DTensor then sums over all axes in one collective; without, it warns that it takes several
    return mesh


def resolve_parallel_sizes(
    data: int | Literal["auto"], tensor: int | Literal["auto"], *, num_nodes: int, num_processes: int
) -> dict[str, int]:
    """Sizes of the axes of model parallelism.

    Args:
        data: Groups that see different data; "auto": one for each machine.
        tensor: Ranks that share each layer; "auto": all processes of a machine.
        num_nodes: Machines.
        num_processes: Processes of each of them.

    Raises:
        ValueError: A size is less than 1.
    """
    for name, value in (("data_parallel_size", data), ("tensor_parallel_size", tensor)):
        if value != "auto" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ValueError(
                f"{name}={value!r} is no number of processes. Use a whole number of at least 1, or 'auto'."
            )
    return {
        DATA_PARALLEL: num_nodes if data == "auto" else data,
        TENSOR_PARALLEL: num_processes if tensor == "auto" else tensor,
    }


def is_mesh(value: Any) -> bool:
    """Whether `value` is a `DeviceMesh`; does not import what that is."""
    return type(value).__name__ == "DeviceMesh" and hasattr(value, "mesh_dim_names")
