"""mpirun of MPICH starts the ranks: they find each other through mpi4py, and train as one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mpi4py")

MPIRUN = Path(sys.executable).with_name("mpirun")
PROGRAM = """
import json, torch, fulgur
from fulgur.testing import BoringModel
from torch.utils.data import DataLoader

class Seeded(BoringModel):
    def train_dataloader(self):
        return DataLoader(torch.randn(16, 32, generator=torch.Generator().manual_seed(1)), batch_size=4)

fulgur.seed_everything(3, verbose=False)
off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
trainer = fulgur.Trainer(accelerator="cpu", devices=2, max_epochs=1, limit_val_batches=0, **off)
module = Seeded()
trainer.fit(module)
environment = trainer.strategy.cluster_environment
found = {
    "rank": trainer.global_rank, "local": trainer.local_rank, "node": trainer.node_rank, "size": trainer.world_size,
    "environment": type(environment).__name__, "steps": trainer.global_step,
    "weight": float(module.layer.weight.detach().sum()),
}
print(json.dumps(found) + "\\n", end="", flush=True)
"""


@pytest.mark.skipif(not MPIRUN.exists(), reason="the package mpich is not installed")
@pytest.mark.world_size(2)
def test_ranks_of_mpirun_train_as_one(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    free = {name: value for name, value in os.environ.items() if not name.startswith(("MASTER_", "PMI_", "OMPI_"))}
    command = [MPIRUN, "-n", "2", sys.executable, program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path, env=free, check=False)
    assert done.returncode == 0, done.stderr
    found = sorted((json.loads(line) for line in done.stdout.splitlines()), key=lambda told: told["rank"])
    assert [told["rank"] for told in found] == [told["local"] for told in found] == [0, 1]
    assert {(told["size"], told["node"], told["environment"], told["steps"]) for told in found} == {
        (2, 0, "MPIEnvironment", 2)
    }
    assert found[0]["weight"] == found[1]["weight"]


@pytest.mark.skipif(not MPIRUN.exists(), reason="the package mpich is not installed")
@pytest.mark.world_size(2)
def test_an_error_of_a_rank_ends_all_that_mpirun_has_started(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    failing = """    def on_train_batch_end(self, *args):
        if self.global_rank == 1:
            raise ValueError("rank 1 fails")
"""
    program.write_text(PROGRAM.replace("class Seeded(BoringModel):\n", "class Seeded(BoringModel):\n" + failing))
    command = [MPIRUN, "-n", "2", sys.executable, program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path, check=False)
    assert done.returncode != 0
    assert "ValueError: rank 1 fails" in done.stderr
    assert done.stdout == ""
