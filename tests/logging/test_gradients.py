"""Logging leaves the graph and the gradient mode of the caller alone."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor

from fulgur import LightningModule
from fulgur.metrics import MetricLog

KINDS: list[dict[str, Any]] = [
    {},
    {"on_epoch": True},
    {"on_step": False, "on_epoch": True, "reduce_fx": "max"},
    {"on_step": False, "on_epoch": True, "reduce_fx": "sum"},
    {"enable_graph": True, "on_epoch": True},
]
MODES = (torch.enable_grad(), torch.no_grad(), torch.inference_mode())


@pytest.fixture
def module() -> LightningModule:
    module, log = LightningModule(), MetricLog()
    log.scope, log.batch_size = log.scope_of("training_step"), 4
    module._metric_log = log
    return module


def loss_with_graph() -> Tensor:
    return torch.ones(3, requires_grad=True).mean()


@pytest.mark.parametrize("options", KINDS)
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: type(mode).__name__)
def test_gradient_mode_is_what_it_was(
    module: LightningModule, mode: AbstractContextManager[Any], options: dict[str, Any]
) -> None:
    with mode:
        before = torch.is_grad_enabled()
        for _ in range(2):
            module.log("value", loss_with_graph(), **options)
            assert torch.is_grad_enabled() is before


def test_gradient_mode_is_what_it_was_after_an_error(module: LightningModule, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(value: Tensor) -> Tensor:
        raise MemoryError

    monkeypatch.setattr(Tensor, "clone", broken)
    with pytest.raises(MemoryError):
        module.log("value", loss_with_graph())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("options", KINDS)
def test_only_enable_graph_keeps_one(module: LightningModule, options: dict[str, Any]) -> None:
    for _ in range(2):
        module.log("value", loss_with_graph(), **options)
    (entry,) = module._metric_log.entries("train")
    kept = [tensor.requires_grad for tensor in (entry.step, entry.total) if tensor is not None]
    assert kept == ([True, False] if "enable_graph" in options else [False] * len(kept))


def test_the_loss_can_be_used_and_changed_after_it_was_logged(module: LightningModule) -> None:
    weight = torch.ones(3, requires_grad=True)
    loss = weight.mean()
    module.log("value", loss, on_epoch=True)
    loss += 5.0
    loss.backward()
    (entry,) = module._metric_log.entries("train")
    assert entry.step == 1.0
    assert entry.total == 4.0
    assert weight.grad is not None
