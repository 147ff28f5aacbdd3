from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor, nn

from fulgur.callbacks.summary import Summary, format_count, parse_batch_shape, summarize


class Net(nn.Module):
    """A body of 15 and a head of 8 parameters, and 3 of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, affine=False), nn.Dropout())
        self.head = nn.Linear(3, 2)
        self.shift = nn.Parameter(torch.zeros(3))
        self.example_input_array: object = None

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x) + self.shift + torch.rand(3) + random.random())
        return out


def make_net(example: object = None) -> Net:
    net = Net()
    net.example_input_array = example
    return net


@pytest.mark.parametrize(
    ("max_depth", "names"),
    [
        (0, []),
        (1, ["body", "head", "other params"]),
        (2, ["body", "body.0", "body.1", "body.2", "head", "other params"]),
        (-1, ["body", "body.0", "body.1", "body.2", "head", "other params"]),
    ],
)
def test_lists_layers_down_to_the_depth(max_depth: int, names: list[str]) -> None:
    assert Summary(make_net(), max_depth).layer_names == names


def test_counts_parameters_of_each_line() -> None:
    assert summarize(make_net()).param_nums == [15, 8, 3]


def test_totals_separate_frozen_parameters() -> None:
    net = make_net()
    net.head.requires_grad_(False)
    summary = summarize(net)
    assert (summary.trainable_parameters, summary.total_parameters) == (18, 26)


def test_shared_parameters_count_once_in_the_total() -> None:
    net = nn.ModuleDict({"a": nn.Linear(3, 3, bias=False), "b": nn.Linear(3, 3, bias=False)})
    net["b"].weight = net["a"].weight
    summary = summarize(net)
    assert (summary.param_nums, summary.total_parameters) == ([9, 9], 9)


def test_size_follows_the_dtype() -> None:
    layer = nn.Sequential(nn.Linear(1000, 1000, bias=False))
    assert (summarize(layer).model_size, summarize(layer.bfloat16()).model_size) == (4.0, 2.0)


def test_uninitialized_parameters_count_zero_and_are_left_alone() -> None:
    net = nn.Sequential(nn.LazyLinear(2))
    net.example_input_array = torch.zeros(1, 3)
    summary = summarize(net)
    assert (summary.total_parameters, summary.in_sizes) == (0, ["?"])
    assert isinstance(net[0].weight, nn.UninitializedParameter)


def test_modes_are_counted_without_the_module_itself() -> None:
    net = make_net()
    net.body.eval()
    assert summarize(net).total_training_modes == {"train": 1, "eval": 4}


@pytest.mark.parametrize("example", [torch.zeros(5, 4), (torch.zeros(5, 4),), {"x": torch.zeros(5, 4)}])
def test_example_input_gives_the_sizes(example: object) -> None:
    summary = summarize(make_net(example))
    assert summary.in_sizes == [[5, 4], [5, 3], "n/a"]
    assert summary.out_sizes == [[5, 3], [5, 2], "n/a"]


def test_example_input_gives_the_flops() -> None:
    summary = summarize(make_net(torch.zeros(5, 4)))
    assert [layer.flops for layer in summary.layers] == [2 * 5 * 4 * 3, 2 * 5 * 3 * 2, 0]
    assert summary.total_flops == 180


def test_example_input_follows_the_dtype_of_the_module() -> None:
    net = nn.Sequential(nn.Linear(4, 3)).double()
    net.example_input_array = torch.zeros(5, 4)
    assert summarize(net).out_sizes == [[5, 3]]


def test_layer_that_is_not_called_has_unknown_sizes() -> None:
    net = make_net(torch.zeros(5, 4))
    net.spare = nn.Linear(2, 2)
    assert summarize(net).in_sizes[2] == "?"


def test_forward_pass_leaves_modes_buffers_and_gradients_alone() -> None:
    net = make_net(torch.ones(5, 4))
    net.body[0].eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    summarize(net)
    assert [m.training for m in net.modules()] == [True, True, False, True, True, True]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def test_forward_pass_leaves_generators_alone() -> None:
    states = torch.get_rng_state(), random.getstate()
    net = make_net(torch.ones(5, 4))
    torch.set_rng_state(states[0])
    summarize(net)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]


def test_forward_pass_leaves_no_hooks_behind() -> None:
    net = make_net(torch.ones(5, 4))
    summarize(net)
    assert not any(module._forward_hooks for module in net.modules())


def test_module_is_left_as_it_was_when_the_example_does_not_fit() -> None:
    net = make_net(torch.ones(5, 9))
    with pytest.raises(RuntimeError, match="shapes"):
        summarize(net)
    assert net.training
    assert not any(module._forward_hooks for module in net.modules())


def test_text_of_the_table() -> None:
    net = nn.Sequential(nn.Linear(4, 2))
    net.head = nn.ReLU().eval()
    assert str(summarize(net)).splitlines() == [
        "  | Name | Type   | Params | Mode",
        "-" * 34,
        "0 | 0    | Linear | 10     | train",
        "1 | head | ReLU   | 0      | eval",
        "-" * 34,
        "10        Trainable params",
        "0         Non-trainable params",
        "10        Total params",
        "0.000     Total estimated model params size (MB)",
        "1         Modules in train mode",
        "1         Modules in eval mode",
    ]


def test_flops_are_shown_only_where_an_example_input_gives_them() -> None:
    net = nn.Sequential(nn.Linear(4, 2))
    assert not any("flops" in line.lower() for line in str(summarize(net)).splitlines())
    net.example_input_array = torch.zeros(1, 4)
    lines = str(summarize(net)).splitlines()
    assert lines[0].split(" | ")[-3:] == ["FLOPs", "In sizes", "Out sizes"]
    assert lines[-1] == "16        Total Flops"


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1234, "1.2 K"),
        (123_456, "123 K"),
        (13_000_000, "13.0 M"),
        (3 * 10**9, "3.0 B"),
        (4 * 10**14, "400 T"),
        (5 * 10**15, "5,000 T"),
    ],
)
def test_counts_are_shortened(number: int, text: str) -> None:
    assert format_count(number) == text


def test_shape_of_nested_batches() -> None:
    assert parse_batch_shape((torch.zeros(2, 3), [torch.zeros(4), "text"])) == [[2, 3], [[4], "?"]]


@pytest.mark.parametrize("max_depth", [-2, 1.5, "top"])
def test_bad_depth_is_refused(max_depth: int) -> None:
    with pytest.raises(ValueError, match="max_depth="):
        Summary(nn.Linear(1, 1), max_depth)
