"""What a killed run has left behind goes away; what somebody is writing does not."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import fsspec
import pytest

from fulgur.checkpoint.temporary import mark_as_written, temporary_name
from fulgur.checkpoint.write import write_checkpoint

HOUR_S = 3600.0


def leave_behind(directory: Path, *, age_s: float, name: str = "a.ckpt") -> str:
    path = directory / temporary_name(name)
    path.write_bytes(b"half a checkpoint")
    then = time.time() - age_s
    os.utime(path, (then, then))
    return path.name


def test_leftover_is_removed_by_the_next_save_beside_it(tmp_path: Path) -> None:
    leave_behind(tmp_path, age_s=HOUR_S)
    write_checkpoint({}, tmp_path / "b.ckpt")
    assert os.listdir(tmp_path) == ["b.ckpt"]


def test_leftover_of_a_killed_save_is_removed(tmp_path: Path) -> None:
    program = """
        import os, signal, sys, torch
        from fulgur.checkpoint.write import write_checkpoint

        class Killing:
            def __reduce__(self):
                os.kill(os.getpid(), signal.SIGKILL)

        write_checkpoint({"weights": torch.zeros(1000), "x": Killing()}, sys.argv[1])
    """
    path = os.pathsep.join(sys.path)
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "a.ckpt")],
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    (leftover,) = os.listdir(tmp_path)
    os.utime(tmp_path / leftover, (0, 0))
    write_checkpoint({}, tmp_path / "b.ckpt")
    assert os.listdir(tmp_path) == ["b.ckpt"]


def test_file_that_is_being_written_stays(tmp_path: Path) -> None:
    name = leave_behind(tmp_path, age_s=HOUR_S)
    with open(tmp_path / name, "rb") as file:
        mark_as_written(file)
        write_checkpoint({}, tmp_path / "b.ckpt")
    assert sorted(os.listdir(tmp_path)) == [name, "b.ckpt"]


def test_file_that_has_just_begun_stays(tmp_path: Path) -> None:
    name = leave_behind(tmp_path, age_s=0)
    write_checkpoint({}, tmp_path / "b.ckpt")
    assert sorted(os.listdir(tmp_path)) == [name, "b.ckpt"]


@pytest.mark.parametrize(
    "name", [".cache.tmp", "a.0123456789ab.tmp", ".a.ckpt.0123456789AB.tmp", ".a.0123456789ab.tmp~"]
)
def test_files_of_others_stay(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    os.utime(tmp_path / name, (0, 0))
    write_checkpoint({}, tmp_path / "b.ckpt")
    assert sorted(os.listdir(tmp_path)) == sorted([name, "b.ckpt"])


def test_directory_with_such_a_name_stays(tmp_path: Path) -> None:
    name = temporary_name("a")
    (tmp_path / name).mkdir()
    os.utime(tmp_path / name, (0, 0))
    write_checkpoint({}, tmp_path / "b.ckpt")
    assert sorted(os.listdir(tmp_path)) == [name, "b.ckpt"]


@pytest.mark.parametrize(("age", "stays"), [(timedelta(days=2), False), (timedelta(hours=2), True)])
def test_leftover_on_a_store_is_removed_after_a_day(store: str, age: timedelta, stays: bool) -> None:
    filesystem = fsspec.filesystem("memory")
    name = f"/runs/{temporary_name('a')}"
    filesystem.pipe(name, b"half a checkpoint")
    filesystem.store[name].modified = datetime.now(timezone.utc) - age
    write_checkpoint({}, f"{store}/b.ckpt")
    assert filesystem.exists(name) == stays
