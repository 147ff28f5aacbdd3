"""FSDP2 on GPUs, over NCCL: what tests/distributed/test_fsdp.py shows on the CPU, and what only CUDA has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

from fulgur import LightningModule, Trainer
from fulgur.callbacks import ModelCheckpoint
from fulgur.checkpoint.load import load_checkpoint
from fulgur.strategies import FSDPStrategy
from fulgur.testing import run_ranks

pytestmark = pytest.mark.gpu

Weights = dict[str, Tensor]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(16, 16), nn.LayerNorm(16)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.norm(self.linear(x)))


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Linear(4, 16), nn.Linear(16, 1)
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return mse_loss(Net.forward(self, batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def build() -> Net:
    torch.manual_seed(0)
    return Net()


def loader() -> DataLoader[Any]:
    x = torch.randn(32, 4, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=4)


def weights_of(module: nn.Module) -> Weights:
    return {name: tensor.full_tensor().detach().cpu() for name, tensor in module.state_dict().items()}


def fit(strategy: dict[str, Any], accelerator: str = "cuda", **arguments: Any) -> Weights:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    defaults = {"max_epochs": 2, "devices": "auto", "enable_checkpointing": False}
    net = build()
    trainer = Trainer(accelerator=accelerator, strategy=FSDPStrategy(**strategy), **quiet, **(defaults | arguments))
    trainer.fit(net, loader())
    return weights_of(net)


def fit_by_hand(precision: str, *, kind: str = "cuda") -> Weights:
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    net, rank, size = build(), dist.get_rank(), dist.get_world_size()
    dtype = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}[precision]
    formats = {} if dtype is None else {"param_dtype": dtype, "reduce_dtype": torch.float32}
    for block in net.blocks:
        fully_shard(block, mp_policy=MixedPrecisionPolicy(**formats))
    fully_shard(net, mp_policy=MixedPrecisionPolicy(**formats, cast_forward_inputs=False))
    optimizer, scaler = net.configure_optimizers(), torch.amp.GradScaler(kind, enabled=precision == "16-mixed")
    for _ in range(2):
        for x, y in list(loader())[rank::size]:
            optimizer.zero_grad()
            with torch.autocast(kind, dtype=dtype, enabled=dtype is not None):
                loss = mse_loss(net(x.to(kind)), y.to(kind))
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    return weights_of(net)


PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


def fit_both_ways() -> list[bool]:
    equal = []
    for precision in PRECISIONS:
        ours = fit({}, precision=precision)
        theirs = fit_by_hand(precision)
        equal.append(all(torch.equal(ours[name], theirs[name]) for name in theirs))
    return equal


def n_gpus() -> int:
    return min(torch.cuda.device_count(), 2)


def test_parameters_equal_a_hand_written_loop_bit_for_bit() -> None:
    n_ranks = n_gpus()
    assert run_ranks(fit_both_ways, n_ranks, timeout_s=200) == [[True] * len(PRECISIONS)] * n_ranks


def fit_offloaded() -> tuple[Weights, Weights]:
    clipped = {"gradient_clip_val": 0.1}
    return fit({"cpu_offload": True}, **clipped), fit({}, **clipped)


def test_parameters_in_the_hosts_memory_train_alike() -> None:
    for offloaded, resident in run_ranks(fit_offloaded, n_gpus(), timeout_s=200):
        for name, value in resident.items():
            torch.testing.assert_close(offloaded[name], value, rtol=1e-4, atol=1e-5)


def fit_and_resume(folder: str) -> tuple[Weights, Weights]:
    saver = ModelCheckpoint(folder, every_n_epochs=1, save_top_k=-1, async_save=True)
    sharded = {"state_dict_type": "sharded"}
    through = fit(sharded, callbacks=[saver], enable_checkpointing=True)
    first = next(path for path in sorted(Path(folder).iterdir()) if path.name.startswith("epoch=0"))
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    net = build()
    trainer = Trainer(
        accelerator="cuda", devices="auto", strategy=FSDPStrategy(), max_epochs=2, enable_checkpointing=False, **quiet
    )
    trainer.fit(net, loader(), ckpt_path=first)
    return through, weights_of(net)


def test_shards_written_in_the_background_resume_to_the_same_bits(tmp_path: Path) -> None:
    for through, resumed in run_ranks(fit_and_resume, n_gpus(), str(tmp_path), timeout_s=200):
        assert all(torch.equal(value, resumed[name]) for name, value in through.items())
    for path in tmp_path.iterdir():
        assert all(value.device.type == "cpu" for value in load_checkpoint(path)["state_dict"].values())
