"""Paths and URLs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fulgur.checkpoint.location import canonical, directory_of, is_inside, is_remote, join, list_files


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a/b.ckpt", False),
        ("/a/b.ckpt", False),
        ("C:/a.ckpt", False),
        ("file:///a.ckpt", False),
        ("s3://b/a.ckpt", True),
        ("memory://a", True),
    ],
)
def test_urls_are_told_from_paths(path: str, expected: bool) -> None:
    assert is_remote(path) is expected


def test_canonical_resolves_links(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    os.symlink("real", tmp_path / "link")
    assert canonical(tmp_path / "link" / "a.ckpt") == str(tmp_path / "real" / "a.ckpt")


def test_canonical_normalizes_a_url() -> None:
    assert canonical("s3://bucket/run/../a.ckpt") == canonical("s3://bucket/a.ckpt")


def test_canonical_expands_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert canonical("~/a") == str(tmp_path / "a")


@pytest.mark.parametrize(
    ("path", "directory", "expected"),
    [
        ("/a/b/c.ckpt", "/a/b", True),
        ("/a/b/c/d.ckpt", "/a/b", True),
        ("/a/bc/d.ckpt", "/a/b", False),
        ("/a/b/../d.ckpt", "/a/b", False),
        ("s3://b/run/a.ckpt", "s3://b/run", True),
        ("s3://b/other/a.ckpt", "s3://b/run", False),
        ("memory://a.ckpt", "memory://", True),
    ],
)
def test_inside(path: str, directory: str, expected: bool) -> None:
    assert is_inside(path, directory) is expected


def test_a_link_is_inside_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    os.symlink("../elsewhere.ckpt", tmp_path / "run" / "last.ckpt")
    assert is_inside(str(tmp_path / "run" / "last.ckpt"), str(tmp_path / "run"))


def test_join_and_directory_of_are_each_others_inverse() -> None:
    for directory in ("/a/b", "s3://bucket/run"):
        assert directory_of(join(directory, "x.ckpt")) == directory


def test_files_of_a_missing_directory_are_none(tmp_path: Path) -> None:
    assert list_files(tmp_path / "nope") == list_files("memory://nope") == []
