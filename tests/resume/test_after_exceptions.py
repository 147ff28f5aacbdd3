"""Resuming from what was saved as an exception ended a run in the middle of a batch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torchmetrics
from torch.utils.data import DataLoader

import fulgur as fl
from fulgur.callbacks import ModelCheckpoint, OnExceptionCheckpoint


class Broken(Exception):
    """Ends a run within a step."""


class Net(fl.LightningModule):
    """Logs before the place where it may break, and at the start of the batch."""

    def __init__(self, breaks_at: int = -1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(1, 1)
        self.mean, self.all = torchmetrics.MeanMetric(), torchmetrics.CatMetric()
        self.breaks_at = breaks_at
        self.ends: list[Any] = []

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.log("started", float(batch_idx), on_step=False, on_epoch=True, reduce_fx="sum")

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.layer(batch).square().mean()
        self.mean.update(batch)
        self.all.update(batch)
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log("twice", loss, on_step=False, on_epoch=True)
        self.log("twice", loss * 2, on_step=False, on_epoch=True)
        self.log("mean", self.mean, on_step=False, on_epoch=True)
        if self.global_step == self.breaks_at:
            raise Broken
        return loss

    def on_train_epoch_end(self) -> None:
        self.ends.append(sorted(self.all.compute().flatten().tolist()))
        self.all.reset()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder: Path, breaks_at: int, callback: Any) -> tuple[Net, fl.Trainer]:
    trainer = fl.Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=[callback],
        max_epochs=2,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module, data = Net(breaks_at), torch.arange(1.0, 5).unsqueeze(1)
    files = sorted(folder.glob("*.ckpt"), key=os.path.getmtime)
    args = (module, DataLoader(data, 1))
    if breaks_at < 0:
        trainer.fit(*args, ckpt_path=str(files[-1]) if files else None)
    else:
        with pytest.raises(Broken):
            trainer.fit(*args)
    return module, trainer


@pytest.mark.parametrize("breaks_at", [0, 2, 4, 6])
@pytest.mark.parametrize("kind", ["ModelCheckpoint", "OnExceptionCheckpoint"])
def test_values_of_the_batch_that_was_broken_off_count_once(tmp_path: Path, kind: str, breaks_at: int) -> None:
    def callback(folder: Path) -> Any:
        if kind == "OnExceptionCheckpoint":
            return OnExceptionCheckpoint(folder)
        return ModelCheckpoint(folder, save_on_exception=True, every_n_epochs=5)

    whole, whole_trainer = fit(tmp_path / "whole", -1, callback(tmp_path / "whole"))
    fit(tmp_path / "broken", breaks_at, callback(tmp_path / "broken"))
    if not list((tmp_path / "broken").glob("*")):
        assert (kind, breaks_at) == ("ModelCheckpoint", 0)  # which saves nothing of step 0
        return
    resumed, trainer = fit(tmp_path / "broken", -1, callback(tmp_path / "broken"))
    assert trainer.callback_metrics == whole_trainer.callback_metrics
    assert resumed.ends == whole.ends[breaks_at // 4 :]


def test_batch_that_could_not_be_moved_leaves_the_sums_of_those_before_as_they_are(tmp_path: Path) -> None:
    class Unmovable(Net):
        def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
            if self.global_step == 2 and self.breaks_at == -2:
                raise Broken
            return batch

    whole = fit(tmp_path / "whole", -1, OnExceptionCheckpoint(tmp_path / "whole"))[1]
    trainer = fl.Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=[OnExceptionCheckpoint(tmp_path)],
        max_epochs=2,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with pytest.raises(Broken):
        trainer.fit(Unmovable(-2), DataLoader(torch.arange(1.0, 5).unsqueeze(1), 1))
    resumed = fit(tmp_path, -1, OnExceptionCheckpoint(tmp_path))[1]
    assert resumed.callback_metrics == whole.callback_metrics
