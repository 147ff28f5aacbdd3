from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from fulgur.errors import MisconfigurationException
from fulgur.strategies.units import callable_children, find_units, materialize, recompute_in_backward


class Block(nn.Module):
    def __init__(self, size: int = 4) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(size, size), nn.LayerNorm(size)


class Mixture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.router, self.experts = nn.Linear(4, 2), nn.ModuleList(Block() for _ in range(2))


def names_of(model: nn.Module, units: list[nn.Module]) -> list[str]:
    names = {id(module): name for name, module in model.named_modules()}
    return [names[id(unit)] for unit in units]


def model(**children: nn.Module) -> nn.Module:
    root = nn.Module()
    for name, child in children.items():
        root.add_module(name, child)
    return root


@pytest.mark.parametrize(
    ("children", "units"),
    [
        ({"blocks": nn.ModuleList([Block(), Block()]), "head": nn.Linear(4, 1)}, ["blocks.0", "blocks.1"]),
        ({"net": nn.Sequential(nn.Linear(4, 4), Block(), Block())}, ["net.1", "net.2"]),
        ({"net": nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))}, []),
        ({"only": nn.ModuleList([Block()])}, []),
        ({"net": model(stage=nn.ModuleDict({"a": Block(), "b": Block()}))}, ["net.stage.a", "net.stage.b"]),
        ({"deep": nn.Sequential(model(b=nn.ModuleList([Block(), Block()])))}, ["deep.0.b.0", "deep.0.b.1"]),
    ],
    ids=["list", "sequence", "leaves", "single", "dict", "within"],
)
def test_blocks_of_which_there_are_several_are_units(children: dict[str, nn.Module], units: list[str]) -> None:
    built = model(**children)
    assert names_of(built, find_units(built)) == units


def test_experts_within_a_block_are_no_units_of_their_own() -> None:
    built = model(layers=nn.ModuleList([Mixture(), Mixture()]))
    assert names_of(built, find_units(built)) == ["layers.0", "layers.1"]


def test_block_that_shares_a_parameter_is_no_unit() -> None:
    built = model(blocks=nn.ModuleList([Block(), Block(), Block()]), head=nn.Linear(4, 4))
    built.head.weight = built.blocks[1].linear.weight  # type: ignore[union-attr, index]
    assert names_of(built, find_units(built)) == ["blocks.0", "blocks.2"]


def test_block_that_is_used_twice_is_one_unit() -> None:
    block = Block()
    built = model(blocks=nn.ModuleList([block, block, Block()]))
    assert names_of(built, find_units(built)) == ["blocks.0", "blocks.2"]


def by_size(module: nn.Module, recurse: bool, nonwrapped_numel: int, minimum: int = 20) -> bool:
    return nonwrapped_numel >= minimum


@pytest.mark.parametrize(
    "policy",
    [
        {nn.Linear},
        [nn.Linear],
        nn.Linear,
        lambda module: isinstance(module, nn.Linear),
        partial(by_size, minimum=20),
    ],
    ids=["set", "list", "class", "function", "size"],
)
def test_policy_names_units(policy: Any) -> None:
    built = model(blocks=nn.ModuleList([Block(), Block()]))
    assert names_of(built, find_units(built, policy)) == ["blocks.0.linear", "blocks.1.linear"]


def test_policies_of_torch_name_units() -> None:
    from torch.distributed.fsdp.wrap import CustomPolicy, ModuleWrapPolicy, size_based_auto_wrap_policy

    built = model(blocks=nn.ModuleList([Block(), Block()]))
    assert names_of(built, find_units(built, ModuleWrapPolicy({Block}))) == ["blocks.0", "blocks.1"]
    assert names_of(built, find_units(built, CustomPolicy(lambda module: isinstance(module, Block)))) == [
        "blocks.0",
        "blocks.1",
    ]
    of_size = partial(size_based_auto_wrap_policy, min_num_params=28)
    assert names_of(built, find_units(built, of_size)) == ["blocks.0", "blocks.1"]


def test_inner_units_come_first() -> None:
    built = model(blocks=nn.ModuleList([Block()]))
    assert names_of(built, find_units(built, {Block, nn.Linear})) == ["blocks.0.linear", "blocks.0"]


def test_policy_of_no_known_kind_is_refused() -> None:
    with pytest.raises(TypeError, match="auto_wrap_policy='all' is no policy"):
        find_units(Block(), "all")


def test_children_of_containers_without_a_forward_are_called() -> None:
    built = model(parts=nn.ModuleList([nn.Linear(1, 1), nn.ReLU()]), net=nn.Sequential(nn.Linear(1, 1)))
    assert names_of(built, list(callable_children(built))) == ["parts.0", "net"]


def test_recomputed_module_gives_the_same_gradients_under_the_same_names() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    x = torch.randn(2, 3)
    names = list(layers.state_dict())
    layers(x).sum().backward()
    expected = layers[0].weight.grad
    layers.zero_grad()
    runs = []
    layers[0].register_forward_hook(lambda *_: runs.append(1))
    recompute_in_backward([layers])
    layers(x).sum().backward()
    assert torch.equal(layers[0].weight.grad, expected)  # type: ignore[arg-type]
    assert len(runs) == 2
    assert list(layers.state_dict()) == names


def test_module_on_meta_that_cannot_draw_is_refused() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, device="meta"))

    with pytest.raises(MisconfigurationException, match="Own was made on the meta device and has no reset_parameters"):
        materialize(Own(), "cpu", draws_on=torch.device("cpu"))
