"""Directories and versions, on disk and behind URLs."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import pytest

from fulgur.loggers import run_dir


@pytest.fixture(params=["disk", "url"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "logs") if request.param == "disk" else f"memory://{uuid4().hex}/logs"


def test_first_version_is_zero(root: str) -> None:
    assert run_dir.find_next_version(root) == 0


def test_next_version_is_one_more_than_the_highest(root: str) -> None:
    for name in ("version_0", "version_10", "version_9"):
        run_dir.make_dir(run_dir.join_path(root, name))
    assert run_dir.find_next_version(root) == 11


@pytest.mark.parametrize(("name", "expected"), [("version_x", 0), ("version_2_b", 3), ("version_2b", 0), ("v_7", 0)])
def test_only_names_with_a_number_count_as_versions(root: str, name: str, expected: int) -> None:
    run_dir.make_dir(run_dir.join_path(root, name))
    assert run_dir.find_next_version(root) == expected


def test_claimed_versions_differ(root: str) -> None:
    assert [run_dir.claim_version(root) for _ in range(3)] == [0, 1, 2]


def test_versions_claimed_at_the_same_time_differ(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        versions = list(pool.map(run_dir.claim_version, [str(tmp_path)] * 24))
    assert sorted(versions) == list(range(24))


def test_version_dir_of_a_number_and_of_a_string() -> None:
    assert (run_dir.version_dir(4), run_dir.version_dir("best")) == ("version_4", "best")


def test_empty_parts_drop_out_of_a_path(root: str) -> None:
    assert run_dir.join_path(root, "", "a", "") == f"{root}/a".replace("/", "/" if "://" in root else os.sep)


def test_home_and_variables_are_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/user")
    monkeypatch.setenv("PROJECT", "digits")
    assert run_dir.expand_path("~/$PROJECT") == "/home/user/digits"


def test_text_is_written_whole(root: str) -> None:
    run_dir.make_dir(root)
    path = run_dir.join_path(root, "a.txt")
    run_dir.write_text(path, "old, and longer")
    run_dir.write_text(path, "new ü")
    assert read_text(path) == "new ü"


def test_text_leaves_no_temporary_file(tmp_path: Path) -> None:
    run_dir.write_text(str(tmp_path / "a.txt"), "text")
    assert os.listdir(tmp_path) == ["a.txt"]


def test_files_move_aside_to_the_first_free_name(root: str) -> None:
    run_dir.make_dir(root)
    path = run_dir.join_path(root, "m.csv")
    moved = []
    for text in ("first", "second"):
        run_dir.write_text(path, text)
        moved.append(run_dir.move_aside(path))
    assert moved == [run_dir.join_path(root, "m_0.csv"), run_dir.join_path(root, "m_1.csv")]
    assert [read_text(path) for path in moved] == ["first", "second"]
    assert not run_dir.exists(path)


def read_text(path: str) -> str:
    if not run_dir.is_remote(path):
        return Path(path).read_text(encoding="utf-8")
    fs, fs_path = run_dir.split_url(path)
    return fs.cat_file(fs_path).decode()
