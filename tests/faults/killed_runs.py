"""Trains in children that are killed at random instants, until one of them gets to the end; prints what came of it.

    python killed_runs.py FOLDER NUMBER_OF_KILLS SEED

A child is forked after the imports, so that an attempt costs what the training costs. One line of JSON for each
undisturbed run, kill and end of a run that was killed on its way.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import fulgur as fl
from fulgur.callbacks import ModelCheckpoint
from fulgur.checkpoint import write
from fulgur.loggers import CSVLogger

N_EPOCHS = 4


class Noisy(Dataset[Any]):
    """Samples augmented by draws."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Any:
        x = torch.full((3,), float(index)) / self.n + 0.1 * torch.randn(3) + 0.1 * random.random()
        return x, torch.tensor([float(index % 3)])


class Net(fl.LightningModule):
    """Dropout, Adam, a scheduler, values of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 6), nn.Dropout(0.3), nn.Linear(6, 1))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = nn.functional.mse_loss(self.net(batch[0]), batch[1])
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", nn.functional.mse_loss(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.05)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.9)]


def train(folder: Path) -> dict[str, Any]:
    """One attempt in `folder`. Returns everything that must be equal to the undisturbed run's."""
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(time.time_ns() % 2**31 if any(folder.rglob("*.ckpt")) else 0)  # resumed, the seed does not matter
    logger = CSVLogger(folder, name="run")
    callback = ModelCheckpoint(every_n_train_steps=2, save_top_k=2, monitor="step", mode="max", save_last=True)
    trainer = fl.Trainer(
        accelerator="cpu",
        logger=logger,
        callbacks=[callback],
        max_epochs=N_EPOCHS,
        val_check_interval=0.5,
        log_every_n_steps=1,
        num_sanity_val_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = Net()
    trainer.fit(module, DataLoader(Noisy(21), 2, shuffle=True), DataLoader(Noisy(6), 3), ckpt_path="auto")
    with open(Path(logger.log_dir) / "metrics.csv", newline="") as file:
        rows = [sorted(row.items()) for row in csv.DictReader(file)]
    return {
        "weights": [[float(x).hex() for x in p.detach().flatten()] for p in module.parameters()],
        "optimizer": hashlib.sha256(repr(plain(trainer.optimizers[0].state_dict())).encode()).hexdigest(),
        "counters": [trainer.global_step, trainer.current_epoch],
        "rows": rows,
        "version": logger.version,
    }


def plain(value: Any) -> Any:
    """Nested data with tensors as lists."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def attempt(folder: Path, kill: tuple[int, float] | None) -> dict[str, Any] | None:
    """Train in a child. With ``(n, delay_s)`` it is killed that time after its n-th save has begun.

    Returns:
        None if it was killed.
    """
    begun_r, begun_w = os.pipe()
    result_r, result_w = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            logging.disable()
            count_saves(begun_w)
            outcome = json.dumps(train(folder)).encode()
            while outcome:
                outcome = outcome[os.write(result_w, outcome) :]
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(begun_w)
    os.close(result_w)
    with open(begun_r, "rb", buffering=0) as begun, open(result_r, "rb") as result:
        if kill is not None:
            n_save, delay_s = kill
            while n_save and begun.read(1):
                n_save -= 1
            until = time.perf_counter() + delay_s
            while time.perf_counter() < until:
                pass
            os.kill(child, signal.SIGKILL)
        outcome = result.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL, status
        return None
    assert os.WEXITSTATUS(status) == 0, "an attempt failed"
    return dict(json.loads(outcome))


def count_saves(pipe: int) -> None:
    """In a child: tell the parent when a file begins to be written."""
    original: Any = write._write

    def telling(*args: Any) -> None:
        os.write(pipe, b".")
        original(*args)

    write._write = telling


def main(folder: Path, n_kills: int, seed: int) -> None:
    torch.set_num_threads(1)
    import_all()
    draw = random.Random(seed)
    (folder / "whole").mkdir()
    report("whole", **(attempt(folder / "whole", None) or {}))
    n_done = n_runs = 0
    while n_done < n_kills:
        place = folder / f"killed-{n_runs}"
        place.mkdir()
        outcome = None
        while outcome is None:
            kill = None
            if n_done < n_kills:
                # within a save, or somewhere between two
                kill = (draw.randrange(1, 9), draw.choice((0.002, 0.01)) * draw.random())
            outcome = attempt(place, kill)
            if outcome is None:
                n_done += 1
                left = [p.name for p in place.rglob("*") if p.is_file()]
                in_save = sum(name.endswith(".tmp") for name in left)
                report("kill", temporary=in_save, checkpoints=sum(name.endswith(".ckpt") for name in left))
        report("end", **outcome)
        n_runs += 1


def import_all() -> None:
    """Before the first fork: what a run imports when it comes to it."""
    import fulgur.run
    import fulgur.trainer  # noqa: F401

    module = Net()
    module.configure_optimizers()
    fl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)


def report(kind: str, **values: Any) -> None:
    print(json.dumps({"kind": kind, **values}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
