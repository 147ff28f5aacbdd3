"""``prune``."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from fulgur.checkpoint.newest import find_newest
from fulgur.checkpoint.tools.pruning import plan
from fulgur.checkpoint.write import write_checkpoint


@pytest.fixture
def folder(run_dir: Path) -> Path:
    """The run's files, written a minute after each other; the best one by ``val_loss`` is the newest."""
    (run_dir / "last.ckpt").unlink()
    for epoch in range(3):
        os.utime(run_dir / f"epoch={epoch}.ckpt", (60 * epoch, 60 * epoch))
    return run_dir


def cut(path: Path) -> None:
    status = path.stat()
    path.write_bytes(path.read_bytes()[:-50])
    os.utime(path, (status.st_atime, status.st_mtime))


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_newest_are_kept(folder: Path, tool: Any) -> None:
    assert tool("prune", folder, "--keep-last", 2).code == 0
    assert names(folder) == ["epoch=1.ckpt", "epoch=2.ckpt"]


def test_order_is_that_of_steps_whatever_the_dates_say(folder: Path, tool: Any) -> None:
    os.utime(folder / "epoch=0.ckpt")
    tool("prune", folder, "--keep-last", 1)
    assert names(folder) == ["epoch=2.ckpt"]


def test_file_to_resume_from_stays_beside_newer_weights(folder: Path, weights_only: Path, tool: Any) -> None:
    weights_only.rename(folder / "epoch=2.ckpt")
    tool("prune", folder, "--keep-last", 1)
    assert names(folder) == ["epoch=1.ckpt", "epoch=2.ckpt"]


def test_what_is_kept_is_what_auto_resumes_from(folder: Path, tool: Any) -> None:
    cut(folder / "epoch=2.ckpt")
    newest = find_newest(folder)
    tool("prune", folder, "--keep-last", 1)
    assert find_newest(folder) == newest == str(folder / "epoch=1.ckpt")


def test_files_of_another_program_are_ranked_by_their_counters(folder: Path, tool: Any) -> None:
    for epoch in range(3):
        path = folder / f"epoch={epoch}.ckpt"
        torch.save(torch.load(path, weights_only=True), path)
    os.utime(folder / "epoch=0.ckpt")
    tool("prune", folder, "--keep-last", 1)
    assert names(folder) == ["epoch=2.ckpt"]


def test_dry_run_deletes_nothing_and_says_what_it_would(folder: Path, tool: Any) -> None:
    said = tool("prune", folder, "--keep-last", 1, "--dry-run")
    assert len(names(folder)) == 3
    assert "2 of 3 files would be deleted" in said.out


def test_json_tells_every_file_with_its_reason(folder: Path, tool: Any) -> None:
    data = tool("prune", folder, "--keep-last", 1, "--dry-run", "--json").data
    assert [(file["action"], file["reason"]) for file in data["files"]] == [
        ("keep", "the newest to resume from"),
        ("delete", ""),
        ("delete", ""),
    ]
    assert data["freed_bytes"] == sum((folder / f"epoch={epoch}.ckpt").stat().st_size for epoch in (0, 1))


def test_to_keep_none_is_an_error_that_tells_the_way_out(
    folder: Path, tool: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        tool("prune", folder, "--keep-last", 0)
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert "0 would leave nothing to resume from. Use 1 or more; to be rid of all files, delete the directory." in said
    with pytest.raises(ValueError, match="0 would leave nothing to resume from"):
        plan(str(folder), keep_last=0)
    assert len(names(folder)) == 3


def test_damaged_newest_stays_beside_the_newest_whole_file(folder: Path, tool: Any) -> None:
    cut(folder / "epoch=2.ckpt")
    said = tool("prune", folder, "--keep-last", 1)
    assert said.code == 0
    assert names(folder) == ["epoch=1.ckpt", "epoch=2.ckpt"]
    assert "truncated, to be looked at" in said.out or "damaged, to be looked at" in said.out


def test_last_beside_its_twin_counts_as_one(folder: Path, tool: Any) -> None:
    content = torch.load(folder / "epoch=2.ckpt", weights_only=True)
    content["callbacks"] = {}  # saved a moment later, as with save_last=True: not the same bytes
    write_checkpoint(content, folder / "last.ckpt")
    said = tool("prune", folder, "--keep-last", 2)
    assert names(folder) == ["epoch=1.ckpt", "epoch=2.ckpt", "last.ckpt"]
    assert "of the same moment as last.ckpt" in said.out


def test_copy_of_a_file_under_any_name_counts_with_it_as_one(folder: Path, tool: Any) -> None:
    shutil.copy(folder / "epoch=2.ckpt", folder / "kept.ckpt")
    tool("prune", folder, "--keep-last", 2)
    assert names(folder) == ["epoch=1.ckpt", "epoch=2.ckpt", "kept.ckpt"]


def test_file_of_another_run_with_as_many_steps_counts_for_itself(folder: Path, tool: Any) -> None:
    content = torch.load(folder / "epoch=2.ckpt", weights_only=True)
    content["state_dict"]["into.weight"] = content["state_dict"]["into.weight"] + 1
    write_checkpoint(content, folder / "epoch=2-v1.ckpt")
    tool("prune", folder, "--keep-last", 2)
    assert names(folder) == ["epoch=2-v1.ckpt", "epoch=2.ckpt"]


def test_damaged_twin_is_set_aside(folder: Path, tool: Any) -> None:
    content = bytearray((folder / "epoch=2.ckpt").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "last.ckpt").write_bytes(content)
    os.utime(folder / "last.ckpt", (0, 0))
    said = tool("prune", folder, "--keep-last", 1)
    assert names(folder) == ["epoch=2.ckpt", "last.ckpt"]
    assert "damaged, to be looked at" in said.out


def test_damaged_files_do_not_count(folder: Path, tool: Any) -> None:
    cut(folder / "epoch=2.ckpt")
    assert tool("prune", folder, "--keep-last", 2).code == 0
    assert len(names(folder)) == 3


def test_nothing_is_deleted_if_no_file_is_whole(folder: Path, tool: Any) -> None:
    for epoch in range(3):
        cut(folder / f"epoch={epoch}.ckpt")
    said = tool("prune", folder, "--keep-last", 1)
    assert said.code == 2
    assert "None of the 3 files" in said.err
    assert len(names(folder)) == 3


def test_links_and_what_they_lead_to_stay(folder: Path, tool: Any) -> None:
    (folder / "last.ckpt").symlink_to("epoch=0.ckpt")
    said = tool("prune", folder, "--keep-last", 1)
    assert names(folder) == ["epoch=0.ckpt", "epoch=2.ckpt", "last.ckpt"]
    assert "last.ckpt leads to it" in said.out


def test_other_files_and_directories_stay(folder: Path, tool: Any) -> None:
    (folder / "notes.txt").write_text("")
    (folder / "sharded.ckpt").mkdir()
    tool("prune", folder, "--keep-last", 1)
    assert names(folder) == ["epoch=2.ckpt", "notes.txt", "sharded.ckpt"]


class TestKeepBest:
    @pytest.fixture
    def ranked(self, folder: Path) -> Path:
        """The same files; the oldest is the best by what the newest says."""
        newest = folder / "epoch=2.ckpt"
        content = torch.load(newest, weights_only=True)
        state = next(state for key, state in content["callbacks"].items() if key.startswith("ModelCheckpoint"))
        state["best_k_models"] = {f"/elsewhere/epoch={i}.ckpt": torch.tensor(float(i)) for i in range(3)}
        write_checkpoint(content, newest)
        return folder

    def test_best_by_what_the_newest_file_says(self, ranked: Path, tool: Any) -> None:
        said = tool("prune", ranked, "--keep-last", 1, "--keep-best", "val_loss:min")
        assert names(ranked) == ["epoch=0.ckpt", "epoch=2.ckpt"]
        assert "best val_loss: 0" in said.out

    def test_unknown_metric_names_those_there_are(self, ranked: Path, tool: Any) -> None:
        said = tool("prune", ranked, "--keep-last", 1, "--keep-best", "accuracy:max")
        assert said.code == 2
        assert "Ranked there: val_loss." in said.err
        assert len(names(ranked)) == 3

    def test_contradicting_mode_is_refused(self, ranked: Path, tool: Any) -> None:
        said = tool("prune", ranked, "--keep-last", 1, "--keep-best", "val_loss:max")
        assert said.code == 2
        assert "Use val_loss:min." in said.err

    @pytest.mark.parametrize("text", ["val_loss", "val_loss:best", ":min"])
    def test_unreadable_argument_shows_the_form(
        self, text: str, folder: Path, tool: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as left:
            tool("prune", folder, "--keep-last", 1, "--keep-best", text)
        assert left.value.code == 2
        assert "Use METRIC:min or METRIC:max" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["-1", "few", "1.5"])
def test_number_of_files_is_one(text: str, folder: Path, tool: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        tool("prune", folder, f"--keep-last={text}")
    assert left.value.code == 2
    assert "is no number of files" in capsys.readouterr().err


def test_store(store: str, tool: Any) -> None:
    import time

    for name in "abc":
        write_checkpoint({"state_dict": {}}, f"{store}/{name}.ckpt")
        time.sleep(0.002)  # stores date files to the microsecond
    said = tool("prune", store, "--keep-last", 1, "--json")
    kept = [file["path"] for file in said.data["files"] if file["action"] == "keep"]
    assert kept == [f"{store}/c.ckpt"]
    assert tool("verify", store, "--json").data["n_files"] == 1


def test_missing_directory_is_an_error(tmp_path: Path, tool: Any) -> None:
    said = tool("prune", tmp_path / "nope", "--keep-last", 1)
    assert said.code == 2
    assert "There is no directory" in said.err


def test_directory_without_checkpoints_is_an_error(tmp_path: Path, tool: Any) -> None:
    (tmp_path / "empty").mkdir()
    said = tool("prune", tmp_path / "empty", "--keep-last", 1)
    assert said.code == 2
    assert "There are no files *.ckpt" in said.err
