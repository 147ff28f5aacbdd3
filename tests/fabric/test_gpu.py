"""Loops with `Fabric` on a CUDA device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fulgur import Fabric

pytestmark = pytest.mark.gpu


def build() -> tuple[nn.Module, torch.optim.Optimizer, DataLoader[Any]]:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 1)).cuda()
    x = torch.randn(64, 8)
    return net, torch.optim.AdamW(net.parameters(), lr=0.01), DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), 8)


def test_16_mixed_with_clipping_has_the_bits_of_a_loop_by_hand() -> None:
    expected, optimizer, loader = build()
    scaler = torch.amp.GradScaler("cuda")
    for x, y in loader:
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.float16):
            outputs = expected(x.cuda())
        scaler.scale(nn.functional.mse_loss(outputs.float(), y.cuda())).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(expected.parameters(), 0.5)
        scaler.step(optimizer)
        scaler.update()

    net, own, loader = build()
    fabric = Fabric(accelerator="cuda", devices=1, precision="16-mixed")
    model, own = fabric.setup(net, own)
    for x, y in fabric.setup_dataloaders(loader):
        assert x.is_cuda
        own.zero_grad()
        fabric.backward(nn.functional.mse_loss(model(x), y))
        fabric.clip_gradients(model, own, max_norm=0.5, error_if_nonfinite=False)
        own.step()
    for got, wanted in zip(net.parameters(), expected.parameters(), strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_strategies_of_many_processes_with_one_device(strategy: str) -> None:
    fabric = Fabric(accelerator="cuda", devices=1, strategy=strategy, precision="bf16-mixed")
    fabric.launch()
    net, _, loader = build()
    model = fabric.setup_module(net)
    optimizer = fabric.setup_optimizers(torch.optim.AdamW(model.parameters(), lr=0.01))
    losses = []
    for x, y in fabric.setup_dataloaders(loader):
        loss = nn.functional.mse_loss(model(x), y)
        fabric.backward(loss)
        fabric.clip_gradients(model, optimizer, max_norm=0.5)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    fabric.save("a.ckpt", {"model": model, "optimizer": optimizer})
    weights = [p.detach().clone() for p in model.parameters()]
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    fabric.load("a.ckpt", {"model": model, "optimizer": optimizer})
    assert all(
        torch.equal(p.to_local(), w.to_local()) if strategy == "fsdp" else torch.equal(p, w)
        for p, w in zip(model.parameters(), weights, strict=True)
    )
    assert losses[-1] < losses[0]
    torch.distributed.destroy_process_group()


def test_models_and_tensors_are_made_on_the_device() -> None:
    fabric = Fabric(accelerator="cuda", devices=1, precision="bf16-true")
    with fabric.init_module(empty_init=True):
        net = nn.Linear(2, 2)
    with fabric.init_tensor():
        tensor = torch.ones(2)
    assert (net.weight.device.type, net.weight.dtype) == ("cuda", torch.bfloat16)
    assert (tensor.device.type, tensor.dtype) == ("cuda", torch.bfloat16)
    assert fabric.to_device({"a": torch.ones(1)})["a"].is_cuda
