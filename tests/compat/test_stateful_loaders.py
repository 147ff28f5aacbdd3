"""A loader that keeps its own position goes on in Lightning where it stood in fulgur."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

import fulgur
from fulgur.testing import BoringModel

SCRIPT = Path(__file__).with_name("stateful.py")
ALL = [11.0, 12.0, 13.0, 14.0, 21.0, 22.0, 23.0, 24.0]


@pytest.fixture(scope="module")
def stateful() -> Any:
    spec = importlib.util.spec_from_file_location("compat_stateful", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_file_holds_the_state_where_lightning_looks_for_it(stateful: Any, tmp_path: Path) -> None:
    assert stateful.train(fulgur, save_as=tmp_path / "a.ckpt", save_at=6) == ALL
    loops = torch.load(tmp_path / "a.ckpt", weights_only=True)["loops"]
    assert loops["fit_loop"]["state_dict"] == {"combined_loader": [{"n_passes": 2, "n_given": 2}]}


def test_file_of_loaders_without_a_state_holds_none(tmp_path: Path) -> None:
    model = BoringModel()
    trainer = fulgur.Trainer(max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.fit(model)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    assert torch.load(tmp_path / "a.ckpt", weights_only=True)["loops"]["fit_loop"]["state_dict"] == {}


@pytest.mark.parametrize("n_trained", [1, 3, 6])
def test_fulgur_goes_on_from_its_own_file(stateful: Any, tmp_path: Path, n_trained: int) -> None:
    stateful.train(fulgur, save_as=tmp_path / "a.ckpt", save_at=n_trained)
    assert stateful.train(fulgur, path=tmp_path / "a.ckpt") == ALL[n_trained:]


def test_lightning_goes_on_with_the_next_batch_of_the_pass(
    stateful: Any, tmp_path: Path, lightning_python: Path
) -> None:
    stateful.train(fulgur, save_as=tmp_path / "a.ckpt", save_at=6)
    done = subprocess.run(
        [lightning_python, SCRIPT, tmp_path / "a.ckpt"], cwd=tmp_path, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == ALL[6:]
