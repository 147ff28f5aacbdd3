"""The optimizer that manual optimization works with."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from fulgur.errors import MisconfigurationException
from fulgur.optim import LightningOptimizer


@pytest.fixture
def parameter() -> nn.Parameter:
    return nn.Parameter(torch.ones(1))


def test_is_an_instance_of_the_wrapped_class(parameter: nn.Parameter) -> None:
    wrapper = LightningOptimizer(torch.optim.Adam([parameter]))
    assert isinstance(wrapper, LightningOptimizer)
    assert isinstance(wrapper, torch.optim.Adam)
    assert not isinstance(wrapper, torch.optim.SGD)
    assert type(wrapper).__name__ == "LightningAdam"


def test_gives_the_wrapped_optimizer(parameter: nn.Parameter) -> None:
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    assert LightningOptimizer(optimizer).optimizer is optimizer


def test_unbound_step_is_the_optimizers_own(parameter: nn.Parameter) -> None:
    wrapper = LightningOptimizer(torch.optim.SGD([parameter], lr=0.5))
    parameter.grad = torch.ones(1)
    wrapper.step()
    assert parameter.item() == 0.5


def test_unbound_step_runs_the_closure_and_returns_its_loss(parameter: nn.Parameter) -> None:
    wrapper = LightningOptimizer(torch.optim.SGD([parameter], lr=0.5))

    def closure() -> float:
        parameter.grad = torch.ones(1)
        return 7.0

    assert wrapper.step(closure) == 7.0
    assert parameter.item() == 0.5


def test_bound_step_goes_through_the_loop(parameter: nn.Parameter) -> None:
    calls: list[tuple[Any, ...]] = []

    def run_step(closure: Callable[[], Any] | None, kwargs: dict[str, Any]) -> str:
        calls.append((closure, kwargs))
        return "stepped"

    optimizer = torch.optim.SGD([parameter], lr=0.5)
    wrapper = LightningOptimizer(optimizer)
    wrapper.bind(run_step, optimizers=[optimizer])
    assert wrapper.step(loss=3) == "stepped"
    assert calls == [(None, {"loss": 3})]


def test_closure_that_cannot_be_called_is_an_error(parameter: nn.Parameter) -> None:
    wrapper = LightningOptimizer(torch.optim.SGD([parameter], lr=0.5))
    with pytest.raises(MisconfigurationException, match=r"step\(closure=3\)"):
        wrapper.step(3)  # type: ignore[arg-type]


def test_attributes_are_read_from_and_set_on_the_wrapped_optimizer(parameter: nn.Parameter) -> None:
    optimizer = torch.optim.SGD([parameter], lr=0.5)
    wrapper = LightningOptimizer(optimizer)
    assert wrapper.param_groups is optimizer.param_groups
    wrapper.note = "kept"
    assert optimizer.note == "kept"  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        _ = wrapper.absent


def test_methods_of_the_wrapped_class_run_on_the_wrapped_optimizer(parameter: nn.Parameter) -> None:
    class Switching(torch.optim.SGD):
        mode = "train"

        def eval(self) -> None:
            self.mode = "eval"

    optimizer = Switching([parameter], lr=0.5)
    wrapper = LightningOptimizer(optimizer)
    wrapper.eval()
    assert optimizer.mode == wrapper.mode == "eval"


def test_zero_grad_and_state_reach_the_wrapped_optimizer(parameter: nn.Parameter) -> None:
    optimizer = torch.optim.Adam([parameter], lr=0.5)
    wrapper = LightningOptimizer(optimizer)
    parameter.grad = torch.ones(1)
    wrapper.step()
    wrapper.zero_grad()
    assert parameter.grad is None
    state = wrapper.state_dict()
    assert state["state"][0]["step"] == 1

    fresh = torch.optim.Adam([parameter], lr=0.1)
    LightningOptimizer(fresh).load_state_dict(state)
    assert fresh.param_groups[0]["lr"] == 0.5
    assert fresh.state[parameter]["step"] == 1


def test_group_is_added_to_the_wrapped_optimizer(parameter: nn.Parameter) -> None:
    optimizer = torch.optim.SGD([parameter], lr=0.5)
    LightningOptimizer(optimizer).add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    assert len(optimizer.param_groups) == 2


def test_scheduler_can_be_built_with_the_wrapper(parameter: nn.Parameter) -> None:
    optimizer = torch.optim.SGD([parameter], lr=0.5)
    wrapper = LightningOptimizer(optimizer)
    scheduler = torch.optim.lr_scheduler.StepLR(wrapper, step_size=1)  # type: ignore[arg-type]
    wrapper.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)


def test_wrappers_of_one_class_share_their_class(parameter: nn.Parameter) -> None:
    first, second = (LightningOptimizer(torch.optim.SGD([parameter], lr=0.5)) for _ in range(2))
    assert type(first) is type(second)


def test_wrapper_can_be_copied(parameter: nn.Parameter) -> None:
    wrapper = LightningOptimizer(torch.optim.SGD([parameter], lr=0.5))
    made = copy.deepcopy(wrapper)
    assert type(made) is type(wrapper)
    assert made.optimizer is not wrapper.optimizer
    assert made.param_groups[0]["lr"] == 0.5


def test_optimizer_that_is_none_of_torchs_can_be_wrapped() -> None:
    class Own:
        param_groups: list[Any] = []  # noqa: RUF012
        steps = 0

        def step(self) -> None:
            self.steps += 1

    optimizer = Own()
    wrapper = LightningOptimizer(optimizer)
    wrapper.step()
    assert optimizer.steps == wrapper.steps == 1


def test_toggle_model_lets_only_own_parameters_learn() -> None:
    own, foreign = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizers = [torch.optim.SGD([own], lr=0.1), torch.optim.SGD([foreign], lr=0.1)]
    wrapper = LightningOptimizer(optimizers[0])
    wrapper.bind(lambda *_: None, optimizers=optimizers)
    with wrapper.toggle_model():
        assert (own.requires_grad, foreign.requires_grad) == (True, False)
    assert foreign.requires_grad


def test_toggle_model_ends_after_an_error() -> None:
    own, foreign = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizers = [torch.optim.SGD([own], lr=0.1), torch.optim.SGD([foreign], lr=0.1)]
    wrapper = LightningOptimizer(optimizers[0])
    wrapper.bind(lambda *_: None, optimizers=optimizers)
    with pytest.raises(KeyError), wrapper.toggle_model():
        raise KeyError
    assert foreign.requires_grad


def test_toggle_model_without_sync_enters_the_loops_context(parameter: nn.Parameter) -> None:
    entered: list[str] = []

    @contextmanager
    def no_sync() -> Iterator[None]:
        entered.append("in")
        yield
        entered.append("out")

    optimizer = torch.optim.SGD([parameter], lr=0.1)
    wrapper = LightningOptimizer(optimizer)
    wrapper.bind(lambda *_: None, optimizers=[optimizer], no_sync=no_sync)
    with wrapper.toggle_model():
        pass
    assert entered == []
    with wrapper.toggle_model(sync_grad=False):
        assert entered == ["in"]
    assert entered == ["in", "out"]
