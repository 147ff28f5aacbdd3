"""A module is in the run's format before weights are loaded into it, so that none of their bits are lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fulgur import Trainer
from fulgur.testing import BoringModel


def fit(precision: Any, folder: Path, *, max_epochs: int, ckpt_path: Any = None) -> tuple[Trainer, dict[str, Any]]:
    torch.manual_seed(0)
    model = BoringModel()
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        accelerator="cpu", precision=precision, max_epochs=max_epochs, limit_train_batches=3, limit_val_batches=0,
        enable_checkpointing=False, default_root_dir=folder, **quiet,
    )  # fmt: skip
    trainer.fit(model, ckpt_path=ckpt_path)
    return trainer, model.state_dict()


@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_resumed_run_has_the_bits_of_the_one_that_went_through(tmp_path: Path, precision: str) -> None:
    _, expected = fit(precision, tmp_path, max_epochs=2)
    first, _ = fit(precision, tmp_path, max_epochs=1)
    first.save_checkpoint(tmp_path / "a.ckpt")
    _, found = fit(precision, tmp_path, max_epochs=2, ckpt_path=tmp_path / "a.ckpt")
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
