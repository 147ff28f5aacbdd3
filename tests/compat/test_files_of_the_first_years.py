"""Files as Lightning wrote them before version 0.10, which had a place for the states of callbacks.

These versions run on no Python of today: the files are made by hand here, with the keys that theirs are known to have.
Those of 1.0 and later, made by Lightning itself, are in `test_files_of_lightning.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import fulgur
from fulgur.checkpoint.load import load_checkpoint
from fulgur.checkpoint.tools.commands import main

DATA = Path(__file__).parent / "data"


@pytest.fixture
def early(tmp_path: Path) -> Path:
    """A file of 0.9.0, made by hand from one of 1.0.8 saved at the same moment of the same run."""
    content = load_checkpoint(DATA / "1.0.8" / "epoch_end.ckpt")
    del content["callbacks"]
    content |= {
        "pytorch-lightning_version": "0.9.0",
        "checkpoint_callback_best_model_score": torch.tensor(0.25),
        "checkpoint_callback_best_model_path": "/elsewhere/epoch=0.ckpt",
        "early_stop_callback_wait": 3,
        "early_stop_callback_patience": 4,
    }
    torch.save(content, tmp_path / "early.ckpt")
    return tmp_path / "early.ckpt"


@pytest.mark.filterwarnings("ignore:.*directory:UserWarning")
@pytest.mark.parametrize("is_converted", [False, True])
def test_training_goes_on_with_the_states_of_callbacks(
    early: Path, is_converted: bool, workload: Any, tmp_path: Path
) -> None:
    path = early
    if is_converted:
        path = tmp_path / "converted.ckpt"
        assert main(["convert", str(early), str(path)]) == 0
    resumed = workload.resume(fulgur, "automatic", path, tmp_path / "run")
    assert resumed["start"]["early_stopping"] == [3, float("inf"), 4]
    assert resumed["start"]["model_checkpoint"][1] == "/elsewhere/epoch=0.ckpt"
    assert (resumed["start"]["epoch"], resumed["start"]["global_step"]) == (2, 8)
    assert resumed["batches"] == [[2, 0], [2, 1], [2, 2], [2, 3]]


@pytest.mark.parametrize("key", ["hparams", "module_arguments"])
def test_hyperparameters_under_the_key_of_their_year(key: str, early: Path, workload: Any, tmp_path: Path) -> None:
    content = torch.load(early, weights_only=True)
    content[key] = content.pop("hyper_parameters")
    torch.save(content, tmp_path / "earlier.ckpt")
    module = type(workload.build_module(fulgur, "automatic")).load_from_checkpoint(tmp_path / "earlier.ckpt")
    assert module.hparams.width == 4
