"""Files that are whole, and files that are not, told apart."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from fulgur.checkpoint import verify
from fulgur.checkpoint.load import load_checkpoint
from fulgur.checkpoint.seal import SealingFile
from fulgur.checkpoint.verify import open_verified, verify_checkpoint
from fulgur.checkpoint.write import write_checkpoint
from fulgur.errors import CheckpointError


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    write_checkpoint({"global_step": 3, "w": torch.arange(1000)}, tmp_path / "ours.ckpt")
    return tmp_path / "ours.ckpt"


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    torch.save({"global_step": 3, "w": torch.arange(1000)}, tmp_path / "theirs.ckpt")
    return tmp_path / "theirs.ckpt"


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 4
    path.write_bytes(content)


def test_own_file_is_good(ours: Path) -> None:
    verdict = verify_checkpoint(ours)
    assert (verdict.kind, verdict.reason, verdict.is_usable) == ("good", "is whole", True)


def test_file_of_another_program_has_no_checksum_and_may_be_opened(theirs: Path) -> None:
    verdict = verify_checkpoint(theirs)
    assert (verdict.kind, verdict.is_usable, verdict.seal) == ("unsealed", True, None)
    assert load_checkpoint(theirs)["global_step"] == 3


def test_file_of_torch_before_zip_may_be_opened(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(3)}, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    verdict = verify_checkpoint(tmp_path / "old.ckpt")
    assert (verdict.kind, verdict.reason) == ("unsealed", "was written by torch before 1.6, which keeps no checksums")
    assert load_checkpoint(tmp_path / "old.ckpt")["w"].tolist() == [1, 1, 1]


def test_empty_file(ours: Path) -> None:
    ours.write_bytes(b"")
    verdict = verify_checkpoint(ours)
    assert (verdict.kind, verdict.reason) == ("empty", "is no checkpoint: it is empty, 0 bytes")


def test_file_of_zeros_is_an_empty_one(ours: Path) -> None:
    ours.write_bytes(bytes(5000))
    assert verify_checkpoint(ours).kind == "empty"


@pytest.mark.parametrize("name", ["ours", "theirs"])
def test_truncated_file(name: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(name)
    path.write_bytes(path.read_bytes()[:3000])
    verdict = verify_checkpoint(path)
    assert verdict.kind == "truncated"
    assert verdict.reason == "is no checkpoint any more: it is cut short after 3000 bytes"


def test_file_that_lacks_a_middle_part_is_truncated(ours: Path) -> None:
    content = ours.read_bytes()
    ours.write_bytes(content[:2000] + content[3000:])
    verdict = verify_checkpoint(ours)
    size = len(content)
    assert (verdict.kind, verdict.reason) == (
        "truncated",
        f"is damaged: it has {size - 1000} bytes, of {size} that were written",
    )


def test_file_with_something_in_its_middle_is_damaged(ours: Path) -> None:
    content = ours.read_bytes()
    ours.write_bytes(content[:2000] + b"more" + content[2000:])
    assert verify_checkpoint(ours).kind == "damaged"


def test_file_with_something_behind_it_is_damaged(ours: Path) -> None:
    ours.write_bytes(ours.read_bytes() + b"more")
    assert verify_checkpoint(ours).kind == "damaged"


def test_flipped_bit_of_an_own_file(ours: Path) -> None:
    flip(ours, 2000)
    verdict = verify_checkpoint(ours)
    assert verdict.kind == "damaged"
    assert "its checksum is" in verdict.reason


def test_flipped_bit_in_a_tensor_of_another_programs_file(theirs: Path) -> None:
    flip(theirs, 2000)
    verdict = verify_checkpoint(theirs)
    assert verdict.kind == "damaged"
    assert "Bad CRC-32 for file 'theirs/data/0'" in verdict.reason


def test_other_programs_file_without_its_first_bytes_is_damaged(theirs: Path) -> None:
    flip(theirs, 0)
    assert verify_checkpoint(theirs).kind == "damaged"


@pytest.mark.parametrize("content", [b"text\n" * 300, b"\x80\x01K\x01", b"\x89PNG\r\n"])
def test_foreign_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.ckpt").write_bytes(content)
    verdict = verify_checkpoint(tmp_path / "a.ckpt")
    assert (verdict.kind, verdict.reason) == ("foreign", f"is no checkpoint: it begins with {content[:8]!r}")


def test_archive_of_something_else_is_foreign(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.ckpt", "w") as archive:
        archive.writestr("letter.txt", "dear")
    assert verify_checkpoint(tmp_path / "a.ckpt").kind == "foreign"


def compress(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def test_compressed_archive_could_be_a_bomb_and_is_refused(theirs: Path) -> None:
    compress(theirs)
    with pytest.raises(CheckpointError, match="compressed archive"):
        load_checkpoint(theirs)


def test_seal_does_not_make_a_compressed_archive_acceptable(ours: Path) -> None:
    compress(ours)
    content = ours.read_bytes()
    file = io.BytesIO()
    sealing = SealingFile(file)
    sealing.write(content)
    sealing.finish({})
    ours.write_bytes(file.getvalue())
    assert verify_checkpoint(ours).kind == "foreign"


def test_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        verify_checkpoint(tmp_path / "a.ckpt")


def test_without_reading_all_only_the_ends_count(ours: Path) -> None:
    flip(ours, 2000)
    assert verify_checkpoint(ours, reads_all=False).kind == "good"
    flip(ours, -5)
    assert verify_checkpoint(ours, reads_all=False).kind == "damaged"


def test_file_on_a_store_is_verified(store: str, ours: Path) -> None:
    write_checkpoint({"w": torch.arange(1000)}, f"{store}/a.ckpt")
    assert verify_checkpoint(f"{store}/a.ckpt").kind == "good"
    filesystem = fsspec.filesystem("memory")
    content = filesystem.cat("/runs/a.ckpt")
    filesystem.pipe("/runs/a.ckpt", content[:2000] + b"x" + content[2001:])
    assert verify_checkpoint(f"{store}/a.ckpt").kind == "damaged"
    with pytest.raises(CheckpointError, match=r"memory://runs/a\.ckpt' is damaged: its checksum"):
        load_checkpoint(f"{store}/a.ckpt")


def test_file_on_a_store_is_read_once(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint({"w": torch.arange(1000)}, f"{store}/a.ckpt")
    filesystem = fsspec.filesystem("memory")
    opened: list[str] = []
    original = type(filesystem).open

    def watch(self: Any, path: str, *args: Any, **kwargs: Any) -> Any:
        opened.append(path)
        return original(self, path, *args, **kwargs)

    monkeypatch.setattr(type(filesystem), "open", watch)
    assert load_checkpoint(f"{store}/a.ckpt")["w"][-1] == 999
    assert opened == ["/runs/a.ckpt"]


def test_large_file_of_a_store_is_not_held_in_memory(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint({"w": torch.arange(1000)}, f"{store}/a.ckpt")
    monkeypatch.setattr(verify, "_IN_MEMORY_SIZE", 100)
    with open_verified(f"{store}/a.ckpt") as file:
        assert file.fileno() > 0
        assert torch.load(file, weights_only=True)["w"][-1] == 999


def test_open_file_is_verified(ours: Path) -> None:
    flip(ours, 2000)
    with open(ours, "rb") as file, pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(file)


def test_mapped_file_is_opened_without_reading_its_tensors(ours: Path) -> None:
    flip(ours, 2000)
    assert load_checkpoint(ours, mmap=True)["global_step"] == 3
