"""The command ``fulgur``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fulgur
from fulgur.cli.main import main


def test_checkpoint_hands_over_to_its_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"w": torch.zeros(1)}, tmp_path / "a.pt")
    assert main(["checkpoint", "inspect", str(tmp_path / "a.pt")]) == 0
    assert "bare weights" in capsys.readouterr().out


def test_exit_code_is_the_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoint", "inspect", "nope.ckpt"]) == 2
    assert capsys.readouterr().err.startswith("fulgur checkpoint inspect: ")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out == f"fulgur {fulgur.__version__}\n"


def test_nothing_said_shows_the_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "checkpoint" in capsys.readouterr().err


def test_unknown_program_lists_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["checkpoints"])
    assert left.value.code == 2
    assert "choose from" in capsys.readouterr().err


def test_runs_as_a_module() -> None:
    source = Path(__file__).resolve().parents[3] / "src"
    command = [sys.executable, "-W", "error", "-m", "fulgur.cli", "checkpoint", "--help"]
    environment = {**os.environ, "PYTHONPATH": str(source)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: fulgur checkpoint")
