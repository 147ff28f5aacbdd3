"""A module's weights as one file, however they lie on the ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fulgur import Trainer
from fulgur.testing import BoringModel, run_ranks

pytest.importorskip("safetensors")

QUIET: dict[str, Any] = {
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "accelerator": "cpu",
    "max_epochs": 1,
    "limit_train_batches": 2,
    "limit_val_batches": 0,
}


class Writing(BoringModel):
    """Writes its weights while they are split, and has them as one process sees them."""

    def __init__(self, path: str = "") -> None:
        super().__init__()
        self.path = path
        self.whole: dict[str, torch.Tensor] = {}

    def on_train_end(self) -> None:
        self.to_safetensors(self.path)
        for name, value in self.state_dict().items():
            self.whole[name] = value.full_tensor() if hasattr(value, "full_tensor") else value.clone()


def written(strategy: str, path: str) -> tuple[bool, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    model = Writing(path)
    Trainer(devices=2, strategy=strategy, **QUIET).fit(model)
    return Path(path).exists(), model.whole


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_file_holds_whole_weights(strategy: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    (is_there, whole), (is_there_for_second, _) = run_ranks(written, 2, strategy, str(path))
    assert is_there
    assert is_there_for_second
    loaded = Writing.load_from_checkpoint(path)
    assert loaded.state_dict().keys() == whole.keys()
    assert all(torch.equal(value, whole[name]) for name, value in loaded.state_dict().items())
