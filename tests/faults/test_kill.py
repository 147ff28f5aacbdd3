"""Killed at random instants and started again, a run ends with the bits and the log of one that nobody disturbed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

N_KILLS = int(os.environ.get("FULGUR_FAULTS", "20"))


@pytest.mark.timeout(60 + 15 * N_KILLS)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")
def test_killed_run_ends_with_the_bits_and_rows_of_the_undisturbed_one(tmp_path: Path) -> None:
    program = Path(__file__).with_name("killed_runs.py")
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path), str(N_KILLS), "0"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    kinds = [report.pop("kind") for report in reports]
    whole = reports[kinds.index("whole")]
    kills, ends = ([r for r, k in zip(reports, kinds, strict=True) if k == kind] for kind in ("kill", "end"))
    assert len(kills) == N_KILLS
    assert any(r["temporary"] for r in kills), "no kill hit a save"
    assert any(r["checkpoints"] for r in kills)
    assert len(ends) > N_KILLS / 20
    for end in ends:
        end["version"] = 0  # one that was killed before its first save has begun anew, in a new version
        for part in whole:
            assert end[part] == whole[part], part
