"""What Ray Train gets, where something stands in its place that takes reports as Ray is documented to."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

import fulgur as fl
from fulgur.callbacks import RayTrainReportCallback
from fulgur.errors import MissingExtraError
from fulgur.testing import BoringModel


class Model(BoringModel):
    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("val_loss", 2.0)


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The metrics of each report, with what the checkpoint held."""
    told: list[dict[str, Any]] = []

    def report(metrics: dict[str, Any], checkpoint: Any = None) -> None:
        (file,) = Path(checkpoint.path).iterdir()
        content = torch.load(file, weights_only=True)
        told.append({**metrics, "file": file.name, "saved_step": content["global_step"], "path": file})

    train = ModuleType("ray.train")
    train.report = report  # type: ignore[attr-defined]
    train.Checkpoint = SimpleNamespace(from_directory=lambda path: SimpleNamespace(path=path))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ray", ModuleType("ray"))
    monkeypatch.setitem(sys.modules, "ray.train", train)
    return told


def _fit(callback: RayTrainReportCallback, **more: Any) -> None:
    trainer = fl.Trainer(
        accelerator="cpu", devices=1, max_epochs=2, limit_train_batches=4, limit_val_batches=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, callbacks=callback, **more,
    )  # fmt: skip
    trainer.fit(Model())


def test_each_epoch_is_reported_with_its_checkpoint(reports: list[dict[str, Any]]) -> None:
    _fit(RayTrainReportCallback())
    assert [(r["epoch"], r["step"], r["saved_step"], r["val_loss"]) for r in reports] == [
        (0, 4, 4, 2.0),
        (1, 8, 8, 2.0),
    ]
    assert {r["file"] for r in reports} == {"checkpoint.ckpt"}
    assert not any(r["path"].exists() for r in reports)


def test_each_validation_is_reported_but_the_check_before_training(reports: list[dict[str, Any]]) -> None:
    _fit(RayTrainReportCallback(on="validation_end"), val_check_interval=0.5)
    assert [(r["epoch"], r["step"]) for r in reports] == [(0, 2), (0, 4), (1, 6), (1, 8)]


def test_unknown_moment_is_refused(reports: list[dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match="on='batch_end' is unknown"):
        RayTrainReportCallback(on="batch_end")  # type: ignore[arg-type]


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.train", None)
    with pytest.raises(MissingExtraError, match=r"fulgur\[ray\]"):
        RayTrainReportCallback()
