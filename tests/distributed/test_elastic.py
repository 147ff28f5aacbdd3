"""torchrun starts a job again whose ranks were killed or failed: it ends with the bits of the undisturbed one."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fulgur.testing import run_ranks

PROGRAM = Path(__file__).with_name("restarted_run.py")
TORCHRUN = Path(sys.executable).with_name("torchrun")
FAILURES = ("kill 1 9", "kill-in-save 0 11", "raise 1 17")
RESUMED_AT = [0, 8, 10, 16]
"""The step that each attempt begins with: the newest one that a whole file was saved after."""


def _program() -> Any:
    spec = importlib.util.spec_from_file_location("restarted_run", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _seen(folder: Path, rank: int) -> list[Any]:
    return [json.loads(line) for line in (folder / f"seen-{rank}").read_text().splitlines()]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, json.loads(json.dumps(run_ranks(_program().train, 2, str(folder))))


@pytest.fixture(scope="module")
def restarted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any], str]:
    folder = tmp_path_factory.mktemp("restarted")
    done = subprocess.run(
        [TORCHRUN, "--standalone", "--max-restarts=4", "--nproc-per-node=2", PROGRAM, folder, "60", *FAILURES],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder, [json.loads((folder / f"result-{rank}").read_text()) for rank in range(2)], done.stderr


def test_each_restart_goes_on_from_the_newest_whole_file(restarted: tuple[Path, list[Any], str]) -> None:
    folder, _, _ = restarted
    for rank in range(2):
        first: dict[int, int] = {}
        for attempt, step, _ in _seen(folder, rank):
            first.setdefault(attempt, step)
        assert list(first.items()) == list(enumerate(RESUMED_AT))


def test_restarted_job_ends_with_the_bits_of_the_undisturbed_one(
    restarted: tuple[Path, list[Any], str], undisturbed: tuple[Path, list[Any]]
) -> None:
    assert undisturbed[1][0]["counters"][:2] == [21, 3]
    assert restarted[1] == undisturbed[1]


def test_restarted_job_has_seen_the_samples_of_the_undisturbed_one(
    restarted: tuple[Path, list[Any], str], undisturbed: tuple[Path, list[Any]]
) -> None:
    for rank in range(2):
        last = {step: batch for _, step, batch in _seen(restarted[0], rank)}
        assert last == {step: batch for _, step, batch in _seen(undisturbed[0], rank)}
    ids = [int(i) for rank in range(2) for _, step, batch in _seen(undisturbed[0], rank) for i, _ in batch if step < 7]
    assert sorted(ids) == list(range(26))  # an epoch is each sample once


def test_restarted_job_leaves_one_version_of_its_log_and_the_files_it_keeps(
    restarted: tuple[Path, list[Any], str],
) -> None:
    folder = restarted[0]
    assert [path.name for path in (folder / "run").iterdir()] == ["version_0"]
    steps = {int(path.stem.split("=")[-1]) for path in folder.rglob("*.ckpt")}
    assert steps == {10, 16, 18, 20}  # the newest two, and what the last attempts went on from, which they leave alone
