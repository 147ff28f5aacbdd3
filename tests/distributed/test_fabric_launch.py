"""Programs with `Fabric` that start their own ranks, as a user runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

LOOP = """
import json, os, sys
import torch
from torch.utils.data import DataLoader
from fulgur import Fabric

torch.set_num_threads(1)

def note(fabric, **what):
    with open(f"rank{fabric.global_rank}.json", "w") as file:
        json.dump({"world": fabric.world_size, **what}, file)

def train(fabric, rate=0.5):
    torch.manual_seed(fabric.global_rank)
    net = torch.nn.Linear(2, 1)
    model, optimizer = fabric.setup(net, torch.optim.SGD(net.parameters(), lr=rate))
    for batch in fabric.setup_dataloaders(DataLoader(torch.ones(4, 2), batch_size=1)):
        fabric.backward(model(batch * (1 + fabric.global_rank)).sum())
        optimizer.step()
        optimizer.zero_grad()
    note(fabric, weight=net.weight.tolist(), argv=sys.argv[1:])
    return net.weight.tolist()
"""
PROGRAMS = {
    "script": """
if __name__ == "__main__":
    fabric = Fabric(accelerator="cpu", devices=2)
    fabric.launch()
    assert train(fabric) == fabric.launch(train, rate=0.5)
""",
    "fork": """
if __name__ == "__main__":
    assert len(Fabric(accelerator="cpu", devices=2, strategy="ddp_fork").launch(train)[0]) == 2
""",
    "subclass": """
class Program(Fabric):
    def run(self, rate):
        return train(self, rate)

if __name__ == "__main__":
    assert len(Program(accelerator="cpu", devices=2, strategy="ddp_spawn").run(0.5)[0]) == 2
""",
}
PLAIN = """
if __name__ == "__main__":
    fabric = Fabric()
    train(fabric)
"""
FAILING = """
if __name__ == "__main__":
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()
    if fabric.global_rank == 1:
        raise ValueError("rank 1 cannot go on")
    fabric.barrier()
"""


def run(words: list[Any], folder: Path, code: int = 0) -> str:
    """Standard error of a command of Python, which must end with `code`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode == code, f"{done.returncode}\n{done.stdout}\n{done.stderr[-3000:]}"
    return done.stderr


def notes(folder: Path) -> list[Any]:
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("way", PROGRAMS)
def test_both_ranks_train_one_model(way: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(LOOP + PROGRAMS[way])
    assert run(["-W", "error", "-W", "ignore::ResourceWarning", "program.py", "--a"], tmp_path) == ""
    first, second = notes(tmp_path)
    assert first == second
    assert first["world"] == 2
    assert first["argv"] == ["--a"]


def test_the_command_says_how_many_ranks_there_are(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(LOOP + PLAIN)
    options = ["--accelerator", "cpu", "--devices=2", "--strategy", "ddp", "--precision=64-true"]
    run(["-m", "fulgur.cli", "fabric", "run", *options, "program.py", "--devices", "9"], tmp_path)
    first, second = notes(tmp_path)
    assert first == second
    assert first["argv"] == ["--devices", "9"]


def test_the_command_without_a_script_says_how_it_is_used(tmp_path: Path) -> None:
    assert "usage: fulgur fabric run" in run(["-m", "fulgur.cli", "fabric", "run", "--devices=2"], tmp_path, code=2)


def test_a_rank_that_fails_ends_the_program(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(LOOP + FAILING)
    assert "ValueError: rank 1 cannot go on" in run(["program.py"], tmp_path, code=1)
