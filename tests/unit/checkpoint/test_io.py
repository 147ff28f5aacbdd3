"""The plugins that write checkpoints: at once, with several tries, or while training goes on."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from fulgur.checkpoint import write
from fulgur.checkpoint.io import AsyncCheckpointIO, TorchCheckpointIO
from fulgur.checkpoint.load import load_checkpoint
from fulgur.errors import CheckpointError


class Failing:
    """Stands in for `os.replace` and fails a number of times."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, times: int) -> None:
        self.left, self.pauses, self._replace = times, [], os.replace  # type: ignore[var-annotated]
        monkeypatch.setattr(write.os, "replace", self)
        monkeypatch.setattr(write.time, "sleep", self.pauses.append)

    def __call__(self, *args: Any) -> None:
        self.left -= 1
        if self.left >= 0:
            raise OSError(28, "No space left on device")
        self._replace(*args)


# ------------------------------------------------------------------------------------------------- TorchCheckpointIO


def test_third_try_may_be_the_one_that_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Failing(monkeypatch, times=2)
    TorchCheckpointIO().save_checkpoint({"x": 1}, tmp_path / "a.ckpt")
    assert load_checkpoint(tmp_path / "a.ckpt") == {"x": 1}
    assert disk.pauses == [1.0, 2.0]


def test_after_three_tries_the_error_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Failing(monkeypatch, times=3)
    with pytest.raises(CheckpointError, match=r"a\.ckpt' could not be written in 3 tries: OSError.*No space left"):
        TorchCheckpointIO().save_checkpoint({}, tmp_path / "a.ckpt")
    assert os.listdir(tmp_path) == []


def test_each_failed_try_gets_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Failing(monkeypatch, times=1)
    TorchCheckpointIO(pause_s=0.25).save_checkpoint({}, tmp_path / "a.ckpt")
    (line,) = caplog.messages
    assert line.endswith("No space left on device. Trying again in 0.25 s.")


def test_what_cannot_be_stored_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Failing(monkeypatch, times=0)
    with pytest.raises(CheckpointError, match=r"a\.ckpt' could not be written: "):
        TorchCheckpointIO().save_checkpoint({"f": lambda: 0}, tmp_path / "a.ckpt")
    assert disk.pauses == []


def test_number_of_tries_is_the_users_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Failing(monkeypatch, times=4)
    TorchCheckpointIO(num_tries=5, pause_s=1).save_checkpoint({}, tmp_path / "a.ckpt")
    assert disk.pauses == [1, 2, 4, 8]


def test_no_tries_at_all_are_refused() -> None:
    with pytest.raises(ValueError, match="num_tries=0"):
        TorchCheckpointIO(num_tries=0)


def test_storage_options_of_a_local_path_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"storage_options=\{'key': 1\} is for URLs"):
        TorchCheckpointIO().save_checkpoint({}, tmp_path / "a.ckpt", storage_options={"key": 1})


def test_storage_options_reach_the_filesystem(store: str) -> None:
    class Optioned(MemoryFileSystem):  # type: ignore[misc]
        protocol = "optioned"

        def __init__(self, key: str) -> None:
            super().__init__()
            keys.append(key)

    keys: list[str] = []
    fsspec.register_implementation("optioned", Optioned, clobber=True)
    writer = TorchCheckpointIO(storage_options={"key": "own"})
    writer.save_checkpoint({"x": 1}, "optioned://runs/a.ckpt")
    writer.save_checkpoint({"x": 2}, "optioned://runs/b.ckpt", storage_options={"key": "passed"})
    assert writer.load_checkpoint("optioned://runs/b.ckpt") == {"x": 2}
    assert list(dict.fromkeys(keys)) == ["own", "passed"]


# ------------------------------------------------------------------------------------------------- AsyncCheckpointIO


def test_file_holds_the_state_of_the_moment_of_the_save(tmp_path: Path, held: Any) -> None:
    writer, tensor, counts = AsyncCheckpointIO(held), torch.ones(10_000), {"steps": 1}
    held.hold()
    writer.save_checkpoint({"w": tensor, "counts": counts}, tmp_path / "a.ckpt")
    tensor.fill_(2)
    counts["steps"] = 2
    held.let_go()
    writer.wait()
    saved = load_checkpoint(tmp_path / "a.ckpt")
    assert saved["w"].eq(1).all()
    assert saved["counts"] == {"steps": 1}


def test_save_returns_before_the_file_is_written(tmp_path: Path, held: Any) -> None:
    writer = AsyncCheckpointIO(held)
    held.hold()
    writer.save_checkpoint({}, tmp_path / "a.ckpt")
    assert not (tmp_path / "a.ckpt").exists()
    held.let_go()
    writer.teardown()
    assert (tmp_path / "a.ckpt").exists()


def test_second_save_waits_for_the_first(tmp_path: Path, held: Any) -> None:
    writer = AsyncCheckpointIO(held)
    held.hold()
    writer.save_checkpoint({"w": torch.ones(10_000)}, tmp_path / "a.ckpt")
    threading.Timer(0.05, held.let_go).start()
    writer.save_checkpoint({"w": torch.zeros(10_000)}, tmp_path / "b.ckpt")
    assert held.done[0] == ("write", str(tmp_path / "a.ckpt"))
    writer.wait()
    assert load_checkpoint(tmp_path / "a.ckpt")["w"].eq(1).all()
    assert load_checkpoint(tmp_path / "b.ckpt")["w"].eq(0).all()


def test_many_saves_use_the_same_memory(tmp_path: Path) -> None:
    writer, tensor, addresses = AsyncCheckpointIO(), torch.zeros(10_000), set()
    for step in range(5):
        tensor.fill_(step)
        writer.save_checkpoint({"w": tensor}, tmp_path / f"{step}.ckpt")
        writer.wait()
        addresses.add(writer._stage._in_use[0][1].data_ptr())
    assert len(addresses) == 1
    assert [load_checkpoint(tmp_path / f"{step}.ckpt")["w"][0].item() for step in range(5)] == [0, 1, 2, 3, 4]
    writer.teardown()
    assert not writer._stage._in_use
    assert not writer._stage._free


def test_saves_of_one_moment_do_not_wait_for_each_other(tmp_path: Path, held: Any) -> None:
    writer, tensor = AsyncCheckpointIO(held), torch.ones(10_000)
    held.hold()
    with writer.together():
        writer.save_checkpoint({"w": tensor, "name": "a"}, tmp_path / "a.ckpt")
        writer.settle()
        writer.save_checkpoint({"w": tensor, "name": "b"}, tmp_path / "b.ckpt")
    assert len(writer._stage._in_use) == 1
    tensor.zero_()
    held.let_go()
    writer.wait()
    for name in "ab":
        saved = load_checkpoint(tmp_path / f"{name}.ckpt")
        assert saved["name"] == name
        assert saved["w"].eq(1).all()


def test_error_is_raised_at_the_next_save_and_once(tmp_path: Path, held: Any) -> None:
    writer = AsyncCheckpointIO(held)
    held.fails = CheckpointError("the disk is full")
    writer.save_checkpoint({}, tmp_path / "a.ckpt")
    writer._join()
    held.fails = None
    with pytest.raises(CheckpointError, match="the disk is full"):
        writer.save_checkpoint({}, tmp_path / "b.ckpt")
    writer.save_checkpoint({}, tmp_path / "c.ckpt")
    writer.teardown()
    assert os.listdir(tmp_path) == ["c.ckpt"]


def test_error_of_the_last_save_is_raised_at_teardown(tmp_path: Path, held: Any) -> None:
    writer = AsyncCheckpointIO(held)
    held.fails = CheckpointError("the disk is full")
    writer.save_checkpoint({}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="the disk is full"):
        writer.teardown()
    writer.teardown()


def test_failure_is_told_from_the_thread(tmp_path: Path, held: Any) -> None:
    writer, told = AsyncCheckpointIO(held), threading.Event()
    writer.on_failure = told.set
    writer.save_checkpoint({}, tmp_path / "a.ckpt")
    writer.wait()
    assert not told.is_set()
    held.fails = CheckpointError("the disk is full")
    writer.save_checkpoint({}, tmp_path / "a.ckpt")
    writer._join()
    assert told.is_set()
    with pytest.raises(CheckpointError):
        writer.wait()


def test_what_cannot_be_copied_is_an_error_at_once(tmp_path: Path) -> None:
    writer = AsyncCheckpointIO()
    with pytest.raises(CheckpointError, match=r"a\.ckpt' could not be copied to the host.*pickle"):
        writer.save_checkpoint({"lock": threading.Lock()}, tmp_path / "a.ckpt")
    writer.teardown()
    assert os.listdir(tmp_path) == []


def test_deletion_comes_after_the_write(tmp_path: Path, held: Any) -> None:
    writer, old, new = AsyncCheckpointIO(held), tmp_path / "old.ckpt", tmp_path / "new.ckpt"
    writer.save_checkpoint({}, old)
    writer.wait()
    held.hold()
    writer.save_checkpoint({}, new)
    writer.remove_checkpoint(old)
    assert old.exists()
    held.let_go()
    writer.wait()
    assert held.done[1:] == [("write", str(new)), ("remove", str(old))]


def test_nothing_is_deleted_after_a_write_that_failed(tmp_path: Path, held: Any) -> None:
    writer, old = AsyncCheckpointIO(held), tmp_path / "old.ckpt"
    writer.save_checkpoint({}, old)
    writer.wait()
    held.fails = CheckpointError("the disk is full")
    writer.save_checkpoint({}, tmp_path / "new.ckpt")
    writer._join()
    writer.remove_checkpoint(old)
    with pytest.raises(CheckpointError):
        writer.wait()
    assert old.exists()


def test_deletion_with_nothing_to_wait_for_is_done_at_once(tmp_path: Path) -> None:
    writer = AsyncCheckpointIO()
    writer.save_checkpoint({}, tmp_path / "a.ckpt")
    writer.wait()
    writer.remove_checkpoint(tmp_path / "a.ckpt")
    assert os.listdir(tmp_path) == []


def test_loading_waits_for_what_is_being_written(tmp_path: Path, held: Any) -> None:
    writer = AsyncCheckpointIO(held)
    held.hold()
    writer.save_checkpoint({"x": 1}, tmp_path / "a.ckpt")
    threading.Timer(0.05, held.let_go).start()
    assert writer.load_checkpoint(tmp_path / "a.ckpt") == {"x": 1}


def test_program_that_just_ends_has_its_last_save(tmp_path: Path) -> None:
    program = """
        import sys, torch
        from fulgur.checkpoint.io import AsyncCheckpointIO

        AsyncCheckpointIO().save_checkpoint({"w": torch.ones(2_000_000)}, sys.argv[1])
    """
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "a.ckpt")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
    )
    assert load_checkpoint(tmp_path / "a.ckpt")["w"].eq(1).all()


def test_no_thread_stays_when_all_is_written(tmp_path: Path) -> None:
    writer = AsyncCheckpointIO()
    writer.save_checkpoint({}, tmp_path / "a.ckpt")
    writer.wait()
    assert [thread for thread in threading.enumerate() if thread.name == "fulgur-checkpoint"] == []


@pytest.mark.gpu
def test_file_from_cuda_holds_the_state_of_the_moment(tmp_path: Path) -> None:
    writer, tensor = AsyncCheckpointIO(), torch.zeros(1 << 24, device="cuda")
    for step in range(3):
        tensor.fill_(step)
        torch.cuda._sleep(50_000_000)
        writer.save_checkpoint({"w": tensor}, tmp_path / f"{step}.ckpt")
        tensor.fill_(-1)
    writer.teardown()
    for step in range(3):
        assert load_checkpoint(tmp_path / f"{step}.ckpt")["w"].eq(step).all()
