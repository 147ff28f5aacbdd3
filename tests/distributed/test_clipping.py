"""One norm over whatever ranks and meshes gradients are spread over."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from fulgur.optim.clip import clip_gradients, scale_gradients
from fulgur.testing import run_ranks

SHAPES = [(4, 3), (5,), (2, 2), (3,)]


def build(spread: bool) -> list[Any]:
    """Parameters on a mesh of both ranks, on one of a rank each, and whole; with gradients."""
    torch.manual_seed(0)
    wholes = [(torch.randn(shape), torch.randn(shape)) for shape in SHAPES]
    if not spread:
        parameters = [nn.Parameter(value) for value, _ in wholes]
    else:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import Replicate, Shard, distribute_tensor

        mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("a", "b"))
        places = [(mesh["a"], [Shard(0)]), (mesh["a"], [Replicate()]), (mesh["b"], [Shard(0)])]
        parameters = [
            nn.Parameter(distribute_tensor(value, on, how))
            for (value, _), (on, how) in zip(wholes, places, strict=False)
        ]
        parameters.append(nn.Parameter(wholes[-1][0]))
        wholes = [
            *((v, distribute_tensor(g, on, how)) for (v, g), (on, how) in zip(wholes, places, strict=False)),
            wholes[-1],
        ]
    for parameter, (_, gradient) in zip(parameters, wholes, strict=True):
        parameter.grad = gradient.clone()
    return parameters


def change(parameters: list[Any]) -> list[list[Tensor]]:
    """The gradients after each way of changing them."""
    found, optimizer = [], torch.optim.SGD(parameters, lr=1.0)
    original = [parameter.grad.clone() for parameter in parameters]
    for way in ("norm", "value", "scale"):
        for parameter, gradient in zip(parameters, original, strict=True):
            parameter.grad = gradient.clone()
        if way == "scale":
            scale_gradients(optimizer, 0.5)
        else:
            clip_gradients(optimizer, 0.3, way)
        found.append([getattr(p.grad, "full_tensor", lambda p=p: p.grad)().clone() for p in parameters])
    return found


def change_both() -> list[list[list[Tensor]]]:
    dist.init_process_group("gloo")
    return [change(build(spread=True)), change(build(spread=False))]


@pytest.mark.world_size(2)
def test_gradients_on_several_meshes_are_clipped_as_whole_ones() -> None:
    for spread, whole in run_ranks(change_both, 2):
        for ours, expected in zip(spread, whole, strict=True):
            for first, second in zip(ours, expected, strict=True):
                torch.testing.assert_close(first, second, rtol=1e-6, atol=0)
