"""Trains with ``ckpt_path="auto"``, and fails in the first attempts as it is told to.

    torchrun ... restarted_run.py FOLDER TIMEOUT_S [FAILURE ...]

The n-th failure is that of the n-th attempt. Each rank writes into the folder who has prepared the data, what it has
seen, and in the end what has become of it.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import fulgur as fl
from fulgur.callbacks import ModelCheckpoint
from fulgur.checkpoint import write
from fulgur.loggers import CSVLogger
from fulgur.strategies import DDPStrategy

N, N_EPOCHS, BATCH, SAVE_EVERY = 26, 3, 2, 2


class Noisy(Dataset[Any]):
    """Samples with their number, augmented by draws."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Any:
        return torch.tensor([float(index), float(torch.randn(()))], dtype=torch.float64)


class Net(fl.LightningModule):
    """Dropout, Adam, a scheduler; notes every batch."""

    def __init__(self, folder: Path, at_step: Callable[[Net], None]) -> None:
        super().__init__()
        self.folder, self.at_step = folder, at_step
        self.net = nn.Sequential(nn.Linear(2, 6), nn.Dropout(0.3), nn.Linear(6, 1)).double()

    def prepare_data(self) -> None:
        with open(self.folder / "prepared", "a") as file:
            file.write(f"node {os.environ['GROUP_RANK']} rank {os.environ['RANK']}\n")

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.at_step(self)
        attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]
        line = json.dumps([int(attempt), self.global_step, [[int(i), x.hex()] for i, x in batch.tolist()]])
        with open(self.folder / f"seen-{self.global_rank}", "a") as file:
            file.write(line + "\n")
        loss = (self.net(batch / 10) - 1).pow(2).mean()
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.05)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.9)]


def train(
    folder: str,
    at_step: Callable[[Net], None] = lambda net: None,
    timeout_s: float = 60.0,
    **more: Any,
) -> dict[str, Any]:
    """One attempt. Returns everything that must be equal to the undisturbed run's, and where the logger wrote."""
    torch.manual_seed(0 if not list(Path(folder).rglob("*.ckpt")) else 99)  # resumed, the seed does not matter
    logger = CSVLogger(folder, name="run")
    trainer = fl.Trainer(
        accelerator="cpu",
        strategy=DDPStrategy(timeout=timedelta(seconds=timeout_s)),
        logger=logger,
        callbacks=[ModelCheckpoint(every_n_train_steps=SAVE_EVERY, save_top_k=2, monitor="step", mode="max")],
        max_epochs=N_EPOCHS,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        **more,
    )
    net = Net(Path(folder), at_step)
    trainer.fit(net, DataLoader(Noisy(), BATCH, shuffle=True), ckpt_path="auto")
    rows = []
    if trainer.is_global_zero:
        with open(Path(logger.log_dir) / "metrics.csv", newline="") as file:
            rows = [sorted(row.items()) for row in csv.DictReader(file)]
    moments = [v for state in trainer.optimizers[0].state_dict()["state"].values() for v in state.values()]
    return {
        "weights": [[float(x).hex() for x in p.detach().flatten()] for p in net.parameters()],
        "moments": [[float(x).hex() for x in moment.flatten()] for moment in moments],
        "counters": [trainer.global_step, trainer.current_epoch, trainer.optimizers[0].param_groups[0]["lr"]],
        "rows": rows,
        "version": logger.version,
    }


def fail_at(failure: str) -> Callable[[Net], None]:
    """What a step does for ``"<kind> <rank> <step>"``."""
    kind, rank, step = failure.split()

    def at_step(net: Net) -> None:
        if net.global_rank != int(rank) or net.global_step != int(step):
            return
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif kind == "pause":  # long enough for somebody to do something to the others
            Path(net.folder, "paused").write_text("")
            time.sleep(3.0)
        elif kind == "raise":
            raise ValueError(f"rank {rank} fails once")
        elif kind == "kill-in-save":
            write._write_synced = die_half_way

    return at_step


def die_half_way(checkpoint: Any, path: Path) -> None:
    """In the place of what writes a checkpoint: a part of the file is there when the process is killed."""
    path.write_bytes(b"PK half of it")
    os.kill(os.getpid(), signal.SIGKILL)


def main(folder: str, timeout_s: float, failures: list[str]) -> None:
    torch.set_num_threads(1)
    attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    nothing: Callable[[Net], None] = lambda net: None  # noqa: E731
    at_step = fail_at(failures[attempt]) if attempt < len(failures) else nothing
    layout = {"devices": int(os.environ["LOCAL_WORLD_SIZE"]), "num_nodes": int(os.environ["GROUP_WORLD_SIZE"])}
    result = train(folder, at_step, timeout_s, **layout)
    Path(folder, f"result-{os.environ['RANK']}").write_text(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), sys.argv[3:])
