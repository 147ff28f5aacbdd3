"""The program as it is called, and how errors leave it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fulgur.checkpoint.tools.commands import COMMANDS, main

SOURCE = Path(__file__).resolve().parents[4] / "src"


def call(*words: object, directory: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "fulgur.checkpoint", *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=120, env=environment)


def test_inspect_shows_what_is_inside(run_dir: Path) -> None:
    done = call("inspect", "last.ckpt", directory=run_dir)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"into.weight +\[4, 3\] +float32", done.stdout)


def test_verify_exits_with_1_for_a_damaged_file(run_dir: Path) -> None:
    damaged = run_dir / "epoch=1.ckpt"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    done = call("verify", ".", directory=run_dir)
    assert (done.returncode, done.stderr) == (1, "")
    assert "3 of 4 can be used." in done.stdout


def test_diff_exits_with_1_for_different_files(run_dir: Path) -> None:
    done = call("diff", "epoch=0.ckpt", "epoch=1.ckpt", "--json", directory=run_dir)
    assert (done.returncode, done.stderr) == (1, "")
    assert {"name": "global_step", "a": 4, "b": 8} in json.loads(done.stdout)["values"]


def test_convert_writes_the_other_form(run_dir: Path) -> None:
    done = call("convert", "last.ckpt", "out.ckpt", "--to", "lightning", directory=run_dir)
    assert (done.returncode, done.stderr) == (0, "")
    assert "fulgur" not in torch.load(run_dir / "out.ckpt", weights_only=True)


def test_average_writes_the_mean(run_dir: Path) -> None:
    done = call("average", "epoch=0.ckpt", "epoch=1.ckpt", "-o", "mean.ckpt", directory=run_dir)
    assert (done.returncode, done.stderr) == (0, "")
    assert "state_dict" in torch.load(run_dir / "mean.ckpt", weights_only=True)


def test_prune_deletes_old_files(run_dir: Path) -> None:
    done = call("prune", ".", "--keep-last", 1, directory=run_dir)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(os.listdir(run_dir)) == ["epoch=2.ckpt", "last.ckpt"]


def test_reader_that_has_seen_enough_is_no_traceback(run_dir: Path) -> None:
    command = f"{sys.executable} -m fulgur.checkpoint inspect last.ckpt | true"
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run(
        command, shell=True, cwd=run_dir, capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.stderr == ""


@pytest.mark.parametrize("name", [command.name for command in COMMANDS])
def test_every_command_has_json_trust_and_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([name, "--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    assert "--json" in shown
    assert "--trust" in shown


def test_missing_file_is_one_line_that_lists_what_is_there(run_dir: Path, tool: Any) -> None:
    said = tool("inspect", run_dir / "nope.ckpt")
    assert (said.code, said.out) == (2, "")
    assert said.err.count("\n") == 1
    assert "nope.ckpt" in said.err
    assert "holds: epoch=0.ckpt, epoch=1.ckpt" in said.err


def test_directory_is_not_taken_for_a_damaged_file(run_dir: Path, tool: Any) -> None:
    said = tool("inspect", run_dir)
    assert said.code == 2
    assert "is a directory. Name one file in it." in said.err


def test_file_that_is_none_is_named(tmp_path: Path, tool: Any) -> None:
    (tmp_path / "a.ckpt").write_text("hello")
    said = tool("inspect", tmp_path / "a.ckpt")
    assert said.code == 2
    assert "a.ckpt" in said.err
    assert "Traceback" not in said.err


class Hostile:
    """Creates a directory named ``ran`` when unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("ran",)


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    torch.save({"state_dict": {}, "callbacks": {"a": Hostile()}}, tmp_path / "hostile.ckpt")
    return tmp_path / "hostile.ckpt"


@pytest.mark.parametrize(
    "words",
    [
        ["inspect", "FILE"],
        ["diff", "FILE", "FILE"],
        ["convert", "FILE", "out.ckpt"],
        ["average", "FILE", "FILE", "-o", "out.ckpt"],
        ["prune", ".", "--keep-last", "1", "--keep-best", "loss:min"],
    ],
    ids=lambda words: words[0],
)
def test_nothing_in_a_file_runs(words: list[str], hostile: Path, tool: Any) -> None:
    said = tool(*(hostile if word == "FILE" else word for word in words))
    assert said.code == 2
    assert "mkdir" in said.err
    assert "add --trust" in said.err
    assert sorted(os.listdir(hostile.parent)) == ["hostile.ckpt"]


def test_verify_reads_a_hostile_file_without_opening_it(hostile: Path, tool: Any) -> None:
    assert tool("verify", hostile).code == 0
    assert not (hostile.parent / "ran").exists()


def test_trust_opens_a_file_that_wants_more(hostile: Path, tool: Any) -> None:
    said = tool("inspect", hostile, "--trust")
    assert said.code == 0
    assert (hostile.parent / "ran").is_dir()


KEYS = ("state_dict", "loops", "callbacks", "optimizer_states", "lr_schedulers", "hyper_parameters", "fulgur", "epoch")


@pytest.mark.parametrize("odd", [None, 3, [[1]], {"progress": 1}], ids=repr)
@pytest.mark.parametrize("key", KEYS)
def test_odd_content_is_no_traceback(key: str, odd: Any, tool: Any) -> None:
    content = {name: {} for name in KEYS} | {"epoch": 1, "optimizer_states": [], "lr_schedulers": []}
    torch.save({**content, "pytorch-lightning_version": "1.9.0", key: odd}, "odd.ckpt")
    content.pop("fulgur")
    torch.save({**content, "pytorch-lightning_version": "1.9.0", key: odd}, "others.ckpt")
    for file in ("odd.ckpt", "others.ckpt"):
        for words in (
            ["inspect", file],
            ["convert", file, "a"],
            ["average", file, file, "-o", "a"],
            ["diff", file, file],
        ):
            assert "Traceback" not in tool(*words).err
    said = tool("prune", ".", "--keep-last", 1, "--keep-best", "loss:min", "--dry-run")
    assert said.code == 2
    assert "Traceback" not in said.err


def test_mistake_of_the_tools_does_not_exit_with_the_code_for_no(
    run_dir: Path, tool: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fulgur.checkpoint.tools.inspection.describe", lambda opened: 1 / 0)
    said = tool("inspect", run_dir / "last.ckpt")
    assert said.code == 2
    assert "ZeroDivisionError" in said.err
