"""torchmetrics in a checkpoint: a run resumed within an epoch has the epoch's value over all of its batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import fulgur as fl
from fulgur.callbacks import ModelCheckpoint
from fulgur.testing import run_ranks

torchmetrics = pytest.importorskip("torchmetrics")


class Measured(fl.LightningModule):
    """Logs a metric and a collection, one of whose members needs all samples."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = torch.nn.Linear(1, 1)
        self.error = torchmetrics.MeanSquaredError()
        self.several = torchmetrics.MetricCollection(
            {"largest": torchmetrics.MaxMetric(), "all": torchmetrics.CatMetric()}, compute_groups=False
        )

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        output = self.layer(batch)
        self.error(output, batch)
        self.log("error", self.error, on_step=False, on_epoch=True)
        self.several["largest"].update(output.detach())
        self.log("largest", self.several["largest"], on_step=False, on_epoch=True)
        self.several["all"].update(batch.flatten())
        return (output - 2 * batch).square().mean()

    def on_train_epoch_end(self) -> None:
        self.log("sum", self.several["all"].compute().sum())
        self.several["all"].reset()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fit(folder: Path | None = None, resume_from: Path | None = None, **arguments: Any) -> dict[str, float]:
    saver = ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1, auto_insert_metric_name=False)
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = fl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[] if folder is None else [saver],
        enable_checkpointing=folder is not None,
        **quiet,
        **arguments,
    )
    values = torch.arange(1.0, 13.0).reshape(12, 1) / 12
    loader: Any = torch.utils.data.DataLoader(values, batch_size=2)  # type: ignore[arg-type]
    trainer.fit(Measured(), loader, ckpt_path=resume_from)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


@pytest.mark.parametrize("step", [1, 3, 5])
def test_values_of_an_epoch_are_over_all_of_its_batches(step: int, tmp_path: Path) -> None:
    whole = fit(tmp_path)
    assert whole["sum"] == pytest.approx(6.5)
    assert fit(resume_from=tmp_path / f"{step}.ckpt") == whole


def on_two_ranks(folder: str) -> tuple[dict[str, float], dict[str, float]]:
    ranks: dict[str, Any] = {"devices": 2, "strategy": "ddp"}
    return fit(Path(folder), **ranks), fit(resume_from=Path(folder) / "2.ckpt", **ranks)


def test_they_are_over_the_samples_of_all_ranks_too(tmp_path: Path) -> None:
    (whole, resumed), (second, second_resumed) = run_ranks(on_two_ranks, 2, str(tmp_path))
    assert whole == second == resumed == second_resumed
    assert whole["sum"] == pytest.approx(6.5)
