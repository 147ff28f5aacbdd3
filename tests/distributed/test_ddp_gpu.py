"""`DDPStrategy` over NCCL, on as many GPUs as there are: what tests/distributed/test_ddp_parity.py shows on the CPU."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from fulgur import LightningModule, Trainer
from fulgur.testing import run_ranks

pytestmark = pytest.mark.gpu

N_BATCHES, BATCH = 12, 4


def samples() -> Tensor:
    return torch.randn(N_BATCHES * BATCH, 8, generator=torch.Generator().manual_seed(5))


def build_network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8))


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.body = build_network()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (x,) = batch
        loss = mse_loss(self.body(x), x)
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def train(accelerator: str) -> dict[str, Any]:
    trainer = Trainer(
        accelerator=accelerator,
        devices=int(os.environ["WORLD_SIZE"]),
        strategy="ddp",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    net = Net()
    trainer.fit(net, DataLoader(TensorDataset(samples()), batch_size=BATCH))
    return {
        "weights": [p.detach().cpu() for p in net.parameters()],
        "loss": float(trainer.callback_metrics["loss"]),
        "backend": torch.distributed.get_backend(),
    }


def train_by_hand(accelerator: str) -> list[Tensor]:
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = torch.device("cuda", rank) if accelerator == "gpu" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    network = build_network().to(device)
    model = DistributedDataParallel(network)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        for x in samples().split(BATCH)[rank::size]:
            optimizer.zero_grad()
            mse_loss(model(x.to(device)), x.to(device)).backward()
            optimizer.step()
    return [p.detach().cpu() for p in network.parameters()]


def n_gpus() -> int:
    """A number that divides the batches of an epoch."""
    return max(n for n in (1, 2, 4) if n <= max(torch.cuda.device_count(), 1))


def test_training_equals_a_hand_written_loop_bit_for_bit() -> None:
    ranks, by_hand = (run_ranks(f, n_gpus(), "gpu", timeout_s=120) for f in (train, train_by_hand))
    for found, expected in zip(ranks, by_hand, strict=True):
        for one, other in zip(found["weights"], expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_ranks_share_means_over_nccl() -> None:
    ranks = run_ranks(train, n_gpus(), "gpu", timeout_s=120)
    assert {found["backend"] for found in ranks} == {"nccl"}
    assert len({found["loss"] for found in ranks}) == 1
