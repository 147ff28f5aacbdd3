"""What `convert` makes is gone on from as the file that it was made of."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

import fulgur
from fulgur.checkpoint.tools.commands import main

DATA = Path(__file__).parent / "data"
VERSIONS = sorted(path.name for path in DATA.iterdir() if path.is_dir())
NAMES = ("epoch_end", "mid_epoch", "last_batch", "mid_validation", "manual_mid_epoch")


@pytest.mark.filterwarnings("ignore:.*directory:UserWarning")
@pytest.mark.parametrize(
    ("version", "name"),
    [(version, name) for version in VERSIONS for name in NAMES if (DATA / version / f"{name}.ckpt").exists()],
)
def test_fulgur_goes_on_as_from_the_file_of_lightning(version: str, name: str, workload: Any, tmp_path: Path) -> None:
    run, path = workload.FILES[name][0], DATA / version / f"{name}.ckpt"
    assert main(["convert", str(path), str(tmp_path / "own.ckpt")]) == 0
    from_theirs = workload.resume(fulgur, run, path, tmp_path / "a")
    from_own = workload.resume(fulgur, run, tmp_path / "own.ckpt", tmp_path / "b")
    for moment in ("start", "end"):
        for part in ("weights", "optimizer"):
            assert torch.equal(from_own[moment].pop(part), from_theirs[moment].pop(part))
        for moments in (from_own, from_theirs):  # each run has its own directory
            del moments[moment]["model_checkpoint"]
    assert from_own == from_theirs


def test_lightning_goes_on_as_from_its_own_files(workload: Any, lightning_python: Path, tmp_path: Path) -> None:
    (tmp_path / "converted").mkdir()
    ends = {run: workload.train_and_save(fulgur, run, tmp_path) for run in workload.RUNS}
    for path in tmp_path.glob("*.ckpt"):
        assert main(["convert", str(path), str(tmp_path / "converted" / path.name), "--to", "lightning"]) == 0
    script = Path(__file__).with_name("resume_in_lightning.py")
    done = subprocess.run(
        [lightning_python, script, tmp_path / "converted"], cwd=tmp_path, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    resumed = torch.load(tmp_path / "converted" / "results.pt", weights_only=True)
    theirs = torch.load(DATA / "2.6.6" / "expected.pt", weights_only=True)["files"]
    for name, (run, *_) in workload.FILES.items():
        assert resumed[name]["batches"] == theirs[name]["batches"]
        assert resumed[name]["end"]["global_step"] == ends[run]["global_step"]
        torch.testing.assert_close(resumed[name]["end"]["weights"], theirs[name]["end"]["weights"], rtol=0, atol=1e-6)
