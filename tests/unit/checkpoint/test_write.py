"""Writing, deleting and linking checkpoints."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from fulgur.checkpoint.load import load_checkpoint
from fulgur.checkpoint.write import checkpoint_exists, link_checkpoint, remove_checkpoint, write_checkpoint
from fulgur.errors import CheckpointError


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file may grow over 100 kB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, previous)


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    write_checkpoint({"epoch": 3, "weights": torch.arange(4)}, tmp_path / "a.ckpt")
    loaded = load_checkpoint(tmp_path / "a.ckpt")
    assert loaded["epoch"] == 3
    assert loaded["weights"].tolist() == [0, 1, 2, 3]


def test_missing_directories_are_created(tmp_path: Path) -> None:
    write_checkpoint({"epoch": 0}, tmp_path / "a" / "b" / "c.ckpt")
    assert os.listdir(tmp_path / "a" / "b") == ["c.ckpt"]


def test_file_url_is_a_local_path(tmp_path: Path) -> None:
    write_checkpoint({"epoch": 0}, f"file://{tmp_path}/a.ckpt")
    assert (tmp_path / "a.ckpt").is_file()


def test_new_file_replaces_the_old_one(tmp_path: Path) -> None:
    for epoch in range(2):
        write_checkpoint({"epoch": epoch}, tmp_path / "a.ckpt")
    assert load_checkpoint(tmp_path / "a.ckpt") == {"epoch": 1}
    assert os.listdir(tmp_path) == ["a.ckpt"]


def test_file_has_the_permissions_the_umask_gives(tmp_path: Path) -> None:
    write_checkpoint({"epoch": 0}, tmp_path / "a.ckpt")
    (tmp_path / "plain").touch()
    assert (tmp_path / "a.ckpt").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_longest_possible_name_is_written(tmp_path: Path) -> None:
    name = "n" * 250 + ".ckpt"
    write_checkpoint({"epoch": 0}, tmp_path / name)
    assert os.listdir(tmp_path) == [name]


def test_full_disk_leaves_the_old_file_and_no_temporary_one(tmp_path: Path, full_disk: None) -> None:
    write_checkpoint({"epoch": 0}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"a\.ckpt.*File too large"):
        write_checkpoint({"epoch": 1, "weights": torch.zeros(100_000)}, tmp_path / "a.ckpt")
    assert load_checkpoint(tmp_path / "a.ckpt") == {"epoch": 0}
    assert os.listdir(tmp_path) == ["a.ckpt"]


def test_object_that_cannot_be_pickled_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="could not be written") as caught:
        write_checkpoint({"f": lambda: 0}, tmp_path / "a.ckpt")
    assert caught.value.__cause__ is not None
    assert os.listdir(tmp_path) == []


def test_interrupt_while_writing_leaves_nothing(tmp_path: Path) -> None:
    class Interrupting:
        def __reduce__(self) -> str:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_checkpoint({"x": Interrupting()}, tmp_path / "a.ckpt")
    assert os.listdir(tmp_path) == []


def test_kill_while_writing_keeps_the_previous_checkpoint(tmp_path: Path) -> None:
    write_checkpoint({"epoch": 0}, tmp_path / "a.ckpt")
    program = """
        import os, signal, sys, torch
        from fulgur.checkpoint.write import write_checkpoint

        class Killing:
            def __reduce__(self):
                os.kill(os.getpid(), signal.SIGKILL)

        write_checkpoint({"weights": torch.zeros(1000), "x": Killing()}, sys.argv[1])
    """
    killed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "a.ckpt")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert load_checkpoint(tmp_path / "a.ckpt") == {"epoch": 0}


def test_directory_in_the_place_of_the_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").mkdir()
    with pytest.raises(CheckpointError, match="IsADirectoryError"):
        write_checkpoint({"epoch": 0}, tmp_path / "a.ckpt")
    assert os.listdir(tmp_path) == ["a.ckpt"]


def test_remote_store_gets_the_file_and_no_temporary_one(store: str) -> None:
    write_checkpoint({"epoch": 0}, f"{store}/a.ckpt")
    write_checkpoint({"epoch": 1}, f"{store}/a.ckpt")
    assert load_checkpoint(f"{store}/a.ckpt") == {"epoch": 1}
    assert fsspec.filesystem("memory").ls("/runs", detail=False) == ["/runs/a.ckpt"]


def test_failure_on_a_remote_store_keeps_the_old_file(store: str) -> None:
    write_checkpoint({"epoch": 0}, f"{store}/a.ckpt")
    with pytest.raises(CheckpointError, match="memory://"):
        write_checkpoint({"f": lambda: 0}, f"{store}/a.ckpt")
    assert load_checkpoint(f"{store}/a.ckpt") == {"epoch": 0}
    assert fsspec.filesystem("memory").ls("/runs", detail=False) == ["/runs/a.ckpt"]


@pytest.mark.parametrize("name", ["a[1].ckpt", "a*.ckpt", "loss=?.ckpt"])
def test_name_that_looks_like_a_pattern_is_a_name(store: str, name: str) -> None:
    for epoch in range(2):
        write_checkpoint({"epoch": epoch}, f"{store}/{name}")
    assert load_checkpoint(f"{store}/{name}") == {"epoch": 1}
    assert fsspec.filesystem("memory").ls("/runs", detail=False) == [f"/runs/{name}"]


def test_upload_that_lost_something_on_the_way_is_an_error(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint({"epoch": 0}, f"{store}/a.ckpt")
    monkeypatch.setattr(MemoryFileSystem, "size", lambda self, path: 100)
    with pytest.raises(CheckpointError, match="the store has 100 bytes, of"):
        write_checkpoint({"epoch": 1}, f"{store}/a.ckpt")
    assert load_checkpoint(f"{store}/a.ckpt") == {"epoch": 0}
    assert fsspec.filesystem("memory").ls("/runs", detail=False) == ["/runs/a.ckpt"]


def test_unknown_protocol_is_an_error_that_names_the_url() -> None:
    with pytest.raises(CheckpointError, match=r"nowhere://x/a\.ckpt"):
        write_checkpoint({"epoch": 0}, "nowhere://x/a.ckpt")


def test_remove_deletes_a_file(tmp_path: Path) -> None:
    write_checkpoint({"epoch": 0}, tmp_path / "a.ckpt")
    remove_checkpoint(tmp_path / "a.ckpt")
    assert os.listdir(tmp_path) == []


def test_remove_deletes_a_directory_of_shards(tmp_path: Path) -> None:
    write_checkpoint({"epoch": 0}, tmp_path / "a.ckpt" / "shard0")
    remove_checkpoint(tmp_path / "a.ckpt")
    assert os.listdir(tmp_path) == []


def test_remove_deletes_a_link_and_not_what_it_points_to(tmp_path: Path) -> None:
    write_checkpoint({"epoch": 0}, tmp_path / "a.ckpt")
    link_checkpoint(tmp_path / "a.ckpt", tmp_path / "last.ckpt")
    remove_checkpoint(tmp_path / "last.ckpt")
    assert os.listdir(tmp_path) == ["a.ckpt"]


def test_remove_of_what_is_not_there_does_nothing(tmp_path: Path, store: str) -> None:
    remove_checkpoint(tmp_path / "a.ckpt")
    remove_checkpoint(f"{store}/a.ckpt")


def test_remove_deletes_on_a_remote_store(store: str) -> None:
    write_checkpoint({"epoch": 0}, f"{store}/a.ckpt")
    remove_checkpoint(f"{store}/a.ckpt")
    assert not checkpoint_exists(f"{store}/a.ckpt")


def test_link_is_relative_so_that_the_folder_can_move(tmp_path: Path) -> None:
    write_checkpoint({"epoch": 0}, tmp_path / "run" / "sub" / "a.ckpt")
    link_checkpoint(tmp_path / "run" / "sub" / "a.ckpt", tmp_path / "run" / "last.ckpt")
    (tmp_path / "run").rename(tmp_path / "moved")
    assert load_checkpoint(tmp_path / "moved" / "last.ckpt") == {"epoch": 0}


def test_link_replaces_a_file_and_an_older_link(tmp_path: Path) -> None:
    for epoch, name in enumerate("abc"):
        write_checkpoint({"epoch": epoch}, tmp_path / f"{name}.ckpt")
    link_checkpoint(tmp_path / "a.ckpt", tmp_path / "c.ckpt")
    link_checkpoint(tmp_path / "b.ckpt", tmp_path / "c.ckpt")
    assert load_checkpoint(tmp_path / "c.ckpt") == {"epoch": 1}
    assert sorted(os.listdir(tmp_path)) == ["a.ckpt", "b.ckpt", "c.ckpt"]


def test_link_becomes_a_copy_where_the_disk_has_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "symlink", refuse)
    write_checkpoint({"epoch": 0}, tmp_path / "a.ckpt")
    link_checkpoint(tmp_path / "a.ckpt", tmp_path / "last.ckpt")
    assert not (tmp_path / "last.ckpt").is_symlink()
    assert load_checkpoint(tmp_path / "last.ckpt") == {"epoch": 0}


def test_link_on_a_remote_store_is_an_error(store: str) -> None:
    with pytest.raises(ValueError, match="local disks"):
        link_checkpoint(f"{store}/a.ckpt", f"{store}/last.ckpt")


def test_link_that_leads_nowhere_is_no_checkpoint(tmp_path: Path) -> None:
    link_checkpoint(tmp_path / "gone.ckpt", tmp_path / "last.ckpt")
    assert not checkpoint_exists(tmp_path / "last.ckpt")
