"""The record at the end of a checkpoint file, and the checksum in it."""

from __future__ import annotations

import io
import os
import random
import zipfile
import zlib
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from fulgur.checkpoint import seal
from fulgur.checkpoint.crc import combine_crc32
from fulgur.checkpoint.load import load_checkpoint
from fulgur.checkpoint.seal import SealingFile, read_seal
from fulgur.checkpoint.verify import examine, verify_checkpoint
from fulgur.checkpoint.write import write_checkpoint
from fulgur.errors import CheckpointError

MANY_BYTES = seal._SKIPPED_SIZE + 12  # torch's own checksum is used from here on


def sealed(checkpoint: dict[str, Any], *, can_read: bool) -> bytes:
    file = io.BytesIO()
    sealing = SealingFile(file, can_read=can_read)
    torch.save(checkpoint, cast(Any, sealing))
    sealing.finish({})
    assert sealing.size_bytes == len(file.getvalue())
    return file.getvalue()


def seal_of(content: bytes) -> seal.Seal:
    found = read_seal(content[-seal.TAIL_SIZE :], len(content))
    assert found is not None
    return found


def run_like(step: int = 7, batches: int = 9) -> dict[str, Any]:
    progress = {"batches_total": batches}
    return {"global_step": step, "optimizer_states": [], "fulgur": {"progress": progress}, "w": torch.arange(5.0)}


@pytest.mark.parametrize("n_bytes", [0, 1, 255, 4096, 100_001])
def test_checksums_of_pieces_combine_to_that_of_the_whole(n_bytes: int) -> None:
    first, second = random.randbytes(1000), random.randbytes(n_bytes)
    combined = combine_crc32(zlib.crc32(first), zlib.crc32(second), n_bytes)
    assert combined == zlib.crc32(first + second)


def test_flip_of_any_bit_in_any_byte_is_refused(tmp_path: Path) -> None:
    write_checkpoint(run_like(), tmp_path / "a.ckpt")
    content = (tmp_path / "a.ckpt").read_bytes()
    for position in range(len(content)):
        for bit in (position % 8, 5):  # 5: the case of a letter
            flipped = bytearray(content)
            flipped[position] ^= 1 << bit
            verdict = examine(io.BytesIO(flipped))
            assert not verdict.is_usable, f"byte {position} of {len(content)}, bit {bit}"


@pytest.mark.parametrize("offset", [0, 20, 60, 100])
def test_flipped_file_is_not_loaded(tmp_path: Path, offset: int) -> None:
    write_checkpoint(run_like(), tmp_path / "a.ckpt")
    content = bytearray((tmp_path / "a.ckpt").read_bytes())
    content[-1 - offset] ^= 1
    (tmp_path / "a.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.ckpt' is damaged"):
        load_checkpoint(tmp_path / "a.ckpt")


def test_truncation_at_any_place_is_refused(tmp_path: Path) -> None:
    write_checkpoint(run_like(), tmp_path / "a.ckpt")
    content = (tmp_path / "a.ckpt").read_bytes()
    kinds = {examine(io.BytesIO(content[:size])).kind for size in range(len(content))}
    assert kinds == {"empty", "foreign", "truncated", "damaged"}


@pytest.mark.parametrize("can_read", [True, False])
def test_checksum_is_that_of_all_that_precedes_it(can_read: bool) -> None:
    tensors = {"large": torch.randn(MANY_BYTES // 4), "small": torch.randn(10), "last": torch.randn(MANY_BYTES)}
    content = sealed(tensors, can_read=can_read)
    found = seal_of(content)
    assert found.crc32 == zlib.crc32(content[: found.covered_bytes])
    assert found.covered_bytes == len(content) - len('12345678"}')


def test_flip_in_a_large_tensor_is_refused() -> None:
    content = bytearray(sealed({"large": torch.zeros(MANY_BYTES)}, can_read=True))
    content[len(content) // 2] ^= 1
    assert examine(io.BytesIO(content)).kind == "damaged"


def test_large_tensor_that_begins_like_a_table_of_contents() -> None:
    tensor = torch.zeros(MANY_BYTES, dtype=torch.uint8)
    tensor[:4] = torch.tensor(list(b"PK\1\2"))
    assert examine(io.BytesIO(sealed({"large": tensor}, can_read=True))).kind == "good"


def test_torch_without_checksums_of_its_own() -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        content = sealed({"large": torch.randn(MANY_BYTES)}, can_read=True)
    finally:
        torch.serialization.set_crc32_options(before)
    assert examine(io.BytesIO(content)).kind == "good"


def test_entry_that_torch_does_not_tell_is_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seal, "_read_contents", lambda contents: [])
    content = sealed({"large": torch.randn(3 * MANY_BYTES)}, can_read=True)
    assert examine(io.BytesIO(content)).kind == "good"


def test_table_of_contents_beyond_four_gigabytes_is_read() -> None:
    info = zipfile.ZipInfo("archive/data/0")
    info.CRC, info.file_size, info.compress_size, info.header_offset = 17, 5 << 32, 5 << 32, 6 << 32
    writer = zipfile.ZipFile(io.BytesIO(), "w")
    writer.filelist.append(info)
    writer._didModify = True  # type: ignore[attr-defined]
    file = cast(io.BytesIO, writer.fp)
    writer.close()
    (entry,) = seal._read_contents(file.getvalue())
    assert (entry.start, entry.num_bytes, entry.crc32) == (6 << 32, 5 << 32, 17)


def test_every_reader_of_torch_opens_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    write_checkpoint({"w": torch.arange(1000)}, path)
    for options in ({"weights_only": True}, {"weights_only": False}, {"weights_only": True, "mmap": True}):
        assert torch.load(path, **options)["w"].tolist() == list(range(1000))
    with open(path, "rb") as file:
        assert torch.load(file, weights_only=True)["w"].tolist() == list(range(1000))


def test_file_is_a_good_zip_archive(tmp_path: Path) -> None:
    write_checkpoint({"w": torch.arange(1000)}, tmp_path / "a.ckpt")
    with zipfile.ZipFile(tmp_path / "a.ckpt") as archive:
        assert archive.testzip() is None
        assert archive.comment.startswith(b"fulgur {")


def test_seal_tells_counters_without_opening_the_archive(tmp_path: Path) -> None:
    write_checkpoint(run_like(step=12, batches=36), tmp_path / "a.ckpt")
    found = verify_checkpoint(tmp_path / "a.ckpt").seal
    assert found is not None
    assert (found.global_step, found.batches_total, found.is_full) == (12, 36, True)


def test_seal_of_weights_says_so(tmp_path: Path) -> None:
    write_checkpoint({"global_step": 3, "state_dict": {}}, tmp_path / "a.ckpt")
    found = verify_checkpoint(tmp_path / "a.ckpt").seal
    assert found is not None
    assert (found.global_step, found.batches_total, found.is_full) == (3, None, False)


@pytest.mark.parametrize("step", [True, -1, 1 << 70, "7", torch.tensor(7), None])
def test_counter_that_is_none_is_left_out(tmp_path: Path, step: object) -> None:
    write_checkpoint({"global_step": step, "fulgur": 3}, tmp_path / "a.ckpt")
    found = verify_checkpoint(tmp_path / "a.ckpt").seal
    assert found is not None
    assert found.global_step is None


@pytest.mark.parametrize(
    "comment",
    [
        b"",
        b"fulgur",
        b'fulgur {"format":1,"crc32":"00000000"}',
        b'fulgur {"format":1,"archive_bytes":"x","crc32":"00000000"}',
        b'fulgur {"format":1,"archive_bytes":5,"crc32":"0000000A"}',
        b'fulgur {"format":1,"archive_bytes":5,"crc32":"+0000001"}',
        b'fulgur {"format":2,"archive_bytes":5,"crc32":"00000000"}',
        b'fulgur {"format":1,"archive_bytes":5, "crc32":"00000000" }',
        b'fulgur {"format":1,"a":' + b"[" * 900 + b"]" * 50 + b',"crc32":"00000000"}',
    ],
)
def test_comment_of_another_form_is_no_seal(comment: bytes) -> None:
    tail = b"PK\5\6" + bytes(16) + len(comment).to_bytes(2, "little") + comment
    assert read_seal(tail[-seal.TAIL_SIZE :], len(tail)) is None


def test_writing_costs_no_second_file(tmp_path: Path) -> None:
    write_checkpoint({"large": torch.randn(MANY_BYTES)}, tmp_path / "a.ckpt")
    assert os.listdir(tmp_path) == ["a.ckpt"]
