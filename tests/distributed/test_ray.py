"""fulgur in the workers of Ray Train, on a Ray of this machine."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).with_name("ray_run.py")
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="needs the package ray[train]; `make ray` installs it"
)


@pytest.fixture(scope="module")
def jobs() -> list[dict[str, Any]]:
    """Of the undisturbed job, and of the one in which a rank fails once."""
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:  # a short path, for sockets lie in it
        command = [sys.executable, str(PROGRAM), folder]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    found: list[dict[str, Any]] = json.loads(line.removeprefix("RESULT "))
    return found


@pytest.mark.timeout(240)
def test_workers_train_together_as_ray_has_placed_them(jobs: list[dict[str, Any]]) -> None:
    ranks = jobs[0]["ranks"]
    assert [rank["world"] for rank in ranks] == [[2, 2, 1, 0], [2, 2, 1, 1]]
    assert {rank["environment"] for rank in ranks} == {"RayEnvironment"}
    assert ranks[0]["weights"] == ranks[1]["weights"]
    first_epoch = [i for rank in ranks for step, ids in rank["seen"] if step < 4 for i in ids]
    assert sorted(first_epoch) == list(range(14))


def test_ray_gets_the_metrics_and_the_checkpoint_of_the_last_epoch(jobs: list[dict[str, Any]]) -> None:
    metrics = jobs[0]["metrics"]
    assert (metrics["epoch"], metrics["step"]) == (2, 12)
    assert metrics["loss"] > 0
    assert jobs[0]["files"] == ["checkpoint.ckpt"]


def test_job_that_ray_restarts_ends_with_the_bits_of_the_undisturbed_one(jobs: list[dict[str, Any]]) -> None:
    whole, failing = jobs
    assert not any(rank["is_first"] for rank in failing["ranks"])
    assert [rank["weights"] for rank in failing["ranks"]] == [rank["weights"] for rank in whole["ranks"]]
    for done, undisturbed in zip(failing["ranks"], whole["ranks"], strict=True):
        assert done["seen"] == [batch for batch in undisturbed["seen"] if batch[0] >= 4]
    assert failing["metrics"]["loss"] == whole["metrics"]["loss"]
