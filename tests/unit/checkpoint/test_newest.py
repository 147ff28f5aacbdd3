"""Which checkpoint of a directory a run goes on from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from fulgur.checkpoint.newest import find_newest
from fulgur.checkpoint.write import link_checkpoint, write_checkpoint


def run_at(step: int, *, batches: int | None = None, is_full: bool = True) -> dict[str, Any]:
    progress = {"batches_total": step if batches is None else batches}
    states = {"optimizer_states": []} if is_full else {}
    return {"global_step": step, "w": torch.ones(500), "fulgur": {"progress": progress}, **states}


def test_directory_without_checkpoints_has_none(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    assert find_newest(tmp_path) is None
    assert find_newest(tmp_path / "nowhere") is None


def test_most_steps_win_over_the_latest_write(tmp_path: Path) -> None:
    for step in (30, 9, 20):
        write_checkpoint(run_at(step), tmp_path / f"{step}.ckpt")
    assert find_newest(tmp_path) == str(tmp_path / "30.ckpt")


def test_of_equal_steps_most_batches_win(tmp_path: Path) -> None:
    for batches in (31, 33, 32):
        write_checkpoint(run_at(8, batches=batches), tmp_path / f"{batches}.ckpt")
    assert find_newest(tmp_path) == str(tmp_path / "33.ckpt")


def test_of_equal_progress_the_latest_write_wins(tmp_path: Path) -> None:
    for age, name in ((3, "a"), (1, "b"), (2, "c")):
        write_checkpoint(run_at(8), tmp_path / f"{name}.ckpt")
        os.utime(tmp_path / f"{name}.ckpt", (10_000 - age, 10_000 - age))
    assert find_newest(tmp_path) == str(tmp_path / "b.ckpt")


def test_files_that_are_not_whole_are_passed_over_with_a_line_each(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in range(1, 6):
        write_checkpoint(run_at(step), tmp_path / f"{step}.ckpt")
    content = (tmp_path / "5.ckpt").read_bytes()
    (tmp_path / "5.ckpt").write_bytes(content[:1500] + b"?" + content[1501:])
    (tmp_path / "4.ckpt").write_bytes(content[:2000])
    (tmp_path / "3.ckpt").write_bytes(b"")
    (tmp_path / "2.ckpt").write_bytes(b"Dear diary")
    assert find_newest(tmp_path) == str(tmp_path / "1.ckpt")
    lines = [line.removeprefix(f"{tmp_path}{os.sep}") for line in caplog.messages]
    assert lines[:3] == [
        "2.ckpt is passed over: it is no checkpoint: it begins with b'Dear dia'.",
        "3.ckpt is passed over: it is no checkpoint: it is empty, 0 bytes.",
        "4.ckpt is passed over: it is no checkpoint any more: it is cut short after 2000 bytes.",
    ]
    assert lines[3].startswith("5.ckpt is passed over: it is damaged: its checksum is ")
    assert len(lines) == 4


def test_weights_are_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_checkpoint(run_at(1), tmp_path / "full.ckpt")
    write_checkpoint(run_at(2, is_full=False), tmp_path / "weights.ckpt")
    assert find_newest(tmp_path) == str(tmp_path / "full.ckpt")
    assert [line.partition("over: ")[2] for line in caplog.messages] == [
        "it holds weights only: training cannot go on from it."
    ]


def test_file_of_another_program_tells_its_steps_as_well(tmp_path: Path) -> None:
    write_checkpoint(run_at(5), tmp_path / "5.ckpt")
    torch.save(run_at(6), tmp_path / "6.ckpt")
    torch.save(run_at(4), tmp_path / "4.ckpt", _use_new_zipfile_serialization=False)
    assert find_newest(tmp_path) == str(tmp_path / "6.ckpt")


def test_file_that_wants_to_run_something_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, ("ran",)

    write_checkpoint(run_at(5), tmp_path / "5.ckpt")
    torch.save(run_at(6) | {"x": Hostile()}, tmp_path / "6.ckpt")
    assert find_newest(tmp_path) == str(tmp_path / "5.ckpt")
    assert not Path("ran").exists()
    assert "mkdir" in caplog.text


def test_link_gives_way_to_the_file_it_leads_to(tmp_path: Path) -> None:
    write_checkpoint(run_at(5), tmp_path / "x.ckpt")
    link_checkpoint(tmp_path / "x.ckpt", tmp_path / "last.ckpt")
    assert find_newest(tmp_path) == str(tmp_path / "x.ckpt")


def test_link_that_leads_nowhere_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    link_checkpoint(tmp_path / "x.ckpt", tmp_path / "last.ckpt")
    assert find_newest(tmp_path) is None
    assert "last.ckpt is passed over: it cannot be read" in caplog.text


def test_names_with_a_slash_are_found_where_they_may_be(tmp_path: Path) -> None:
    write_checkpoint(run_at(5), tmp_path / "epoch=0-val" / "loss=1.ckpt")
    assert find_newest(tmp_path) is None
    assert find_newest(tmp_path, depth=2) == str(tmp_path / "epoch=0-val" / "loss=1.ckpt")


def test_only_the_one_that_is_taken_is_read_whole(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from fulgur.checkpoint import verify

    for step in range(4):
        write_checkpoint(run_at(step), f"{store}/{step}.ckpt")
    read: list[int] = []
    original = verify._checksum
    monkeypatch.setattr(verify, "_checksum", lambda file, size: read.append(size) or original(file, size))
    assert find_newest(store) == f"{store}/3.ckpt"
    assert len(read) == 1


def test_damaged_file_on_a_store_is_passed_over(store: str) -> None:
    for step in range(2):
        write_checkpoint(run_at(step), f"{store}/{step}.ckpt")
    filesystem = fsspec.filesystem("memory")
    content = filesystem.cat("/runs/1.ckpt")
    filesystem.pipe("/runs/1.ckpt", content[:2000])
    assert find_newest(store) == f"{store}/0.ckpt"
