"""``verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fulgur.checkpoint.write import write_checkpoint


def test_whole_files_of_a_directory(run_dir: Path, tool: Any) -> None:
    said = tool("verify", run_dir, "--json")
    assert (said.code, said.data["n_files"], said.data["n_bad"]) == (0, 4, 0)
    assert [file["global_step"] for file in said.data["files"]] == [4, 8, 12, 12]


def test_directories_below_are_searched(run_dir: Path, tool: Any) -> None:
    (run_dir / "below").mkdir()
    (run_dir / "epoch=0.ckpt").rename(run_dir / "below" / "a.ckpt")
    assert tool("verify", run_dir, "--json").data["n_files"] == 4


def test_each_bad_file_with_its_reason(run_dir: Path, tool: Any) -> None:
    cut, flipped = run_dir / "epoch=0.ckpt", run_dir / "epoch=1.ckpt"
    cut.write_bytes(cut.read_bytes()[:500])
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    said = tool("verify", cut, flipped, run_dir / "epoch=2.ckpt", "--json")
    assert said.code == 1
    assert [file["verdict"] for file in said.data["files"]] == ["truncated", "damaged", "good"]


def test_file_of_another_program_counts_as_usable(tmp_path: Path, tool: Any) -> None:
    torch.save({"state_dict": {}}, tmp_path / "a.ckpt")
    assert tool("verify", tmp_path / "a.ckpt", "--json").data["files"][0]["verdict"] == "unsealed"


def test_store(store: str, tool: Any) -> None:
    write_checkpoint({"state_dict": {}}, f"{store}/deep/a.ckpt")
    said = tool("verify", store, "--json")
    assert (said.code, [file["path"] for file in said.data["files"]]) == (0, [f"{store}/deep/a.ckpt"])


def test_empty_directory_is_an_error(tmp_path: Path, tool: Any) -> None:
    (tmp_path / "empty").mkdir()
    said = tool("verify", tmp_path / "empty")
    assert said.code == 2
    assert "There are no files *.ckpt" in said.err


def test_missing_file_is_an_error(tmp_path: Path, tool: Any) -> None:
    said = tool("verify", tmp_path / "nope.ckpt")
    assert said.code == 2
    assert "nope.ckpt" in said.err
