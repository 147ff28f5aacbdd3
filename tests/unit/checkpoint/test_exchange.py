from __future__ import annotations

import os
from pathlib import Path

import pytest

from fulgur.checkpoint import exchange
from fulgur.checkpoint.exchange import put_in_place


def make(path: Path, content: str) -> Path:
    path.mkdir()
    (path / "a").write_text(content)
    return path


@pytest.mark.parametrize("can_exchange", [True, False])
@pytest.mark.parametrize("earlier", ["nothing", "directory", "file", "link"])
def test_new_directory_takes_the_place_of_the_earlier_one(
    tmp_path: Path, earlier: str, can_exchange: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not can_exchange:
        monkeypatch.setattr(exchange, "_exchange", lambda first, second: False)
    source, target = make(tmp_path / "new", "new"), tmp_path / "target"
    linked = make(tmp_path / "linked", "linked")
    if earlier == "directory":
        make(target, "old")
    elif earlier == "file":
        target.write_text("old")
    elif earlier == "link":
        target.symlink_to(linked)
    put_in_place(source, target)
    assert (target / "a").read_text() == "new"
    assert (linked / "a").read_text() == "linked"
    assert sorted(os.listdir(tmp_path)) == ["linked", "target"]
