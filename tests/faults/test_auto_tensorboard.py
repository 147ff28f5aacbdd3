"""Curves of a run that was broken off and goes on by ``ckpt_path="auto"``, read with TensorBoard's own reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import fulgur as fl
from fulgur.callbacks import ModelCheckpoint

pytest.importorskip("tensorboard")
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fulgur.loggers import TensorBoardLogger


class Broken(Exception):
    """Ends a run in the place of a kill."""


class Net(fl.LightningModule):
    def __init__(self, breaks_at: int = -1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(1, 1)
        self.breaks_at = breaks_at

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.global_step == self.breaks_at:
            raise Broken
        loss = self.layer(batch).square().mean()
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val", self.layer(batch).square().mean(), on_step=True, on_epoch=True)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder: Path, breaks_at: int = -1) -> None:
    trainer = fl.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        logger=TensorBoardLogger(folder),
        callbacks=[ModelCheckpoint(every_n_train_steps=2, save_top_k=-1)],
        max_epochs=2,
        val_check_interval=2,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = torch.arange(1.0, 7).unsqueeze(1) / 6
    trainer.fit(Net(breaks_at), DataLoader(data, 1), DataLoader(data, 1), ckpt_path="auto")


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    version = folder / "lightning_logs/version_0"
    events = EventAccumulator(str(version), size_guidance={"scalars": 0}).Reload()
    # The reader takes files by name, which within one second of one process ends in 9, then in 10: not in their order.
    return {tag: sorted((e.step, e.value) for e in events.Scalars(tag)) for tag in events.Tags()["scalars"]}


@pytest.mark.parametrize("breaks_at", [2, 3, 6, 9])
def test_curves_have_every_point_once(tmp_path: Path, breaks_at: int) -> None:
    fit(tmp_path / "whole")
    with pytest.raises(Broken):
        fit(tmp_path / "broken", breaks_at)
    fit(tmp_path / "broken")
    assert curves(tmp_path / "broken") == curves(tmp_path / "whole")
