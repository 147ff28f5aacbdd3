"""The seal of a checkpoint file: a record at its very end that vouches for every byte before it.

`torch.save` writes a zip archive, and a zip archive ends in a record of 22 bytes and a comment of any content. The seal
is this comment: the file stays one that every reader of the format opens, and appears whole with one rename. Its
checksum covers all of the file but the checksum itself and what always follows it.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any

import torch

from fulgur.checkpoint.crc import combine_crc32

END_OF_ARCHIVE = b"PK\5\6"
END_SIZE = 22  # bytes of an archive's last record, without the comment
TAIL_SIZE = 1024  # bytes that are sure to hold the last record and the seal

_NAME, _START = b"fulgur ", b'fulgur {"format":1,'
_BEFORE_CHECKSUM, _CHECKSUM_SIZE, _AFTER_CHECKSUM = b'"crc32":"', 8, b'"}'
_CONTENTS_ENTRY = b"PK\1\2"
_IN_EXTRA = 0xFFFFFFFF  # what stands for a number of more than 32 bits
_SKIPPED_SIZE = 1 << 20  # adding up less than this costs less than finding out what torch knows


@dataclass(frozen=True, slots=True)
class Seal:
    """What the last bytes of a checkpoint file say about it.

    Attributes:
        crc32: Checksum of the first `covered_bytes` of the file.
        covered_bytes: All but the checksum itself.
        archive_bytes: Size of the file without the seal.
        global_step: Of the run when it was saved; None in a file that is no run's.
        batches_total: Likewise.
        is_full: Whether training can go on from it: it holds more than weights.
    """

    crc32: int
    covered_bytes: int
    archive_bytes: int
    global_step: int | None
    batches_total: int | None
    is_full: bool


class SealingFile:
    """What `torch.save` writes to: passes everything on to `file`, and keeps its checksum.

    Large entries of the archive are not read for that: torch has their checksums, and writes them into the table of
    contents. Holds the last record back, so that it can be written with the length of the comment even where nothing
    can be written twice, as on a store.

    Args:
        file: Open for writing binary data.
        can_read: Whether `file` can be read, too. Without, every byte is added up as it comes.

    Attributes:
        size_bytes: What has been written so far.
    """

    def __init__(self, file: IO[bytes], *, can_read: bool = False) -> None:
        self._file = file
        self._skips = can_read and torch.serialization.get_crc32_options()
        self._crc = 0
        self._pieces: list[_Piece] = []  # before the bytes that `_crc` is of
        self._piece_start = 0
        self._contents = b""  # the table of contents
        self._tail = b""
        self.size_bytes = 0

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if view[: len(_CONTENTS_ENTRY)] == _CONTENTS_ENTRY:
            self._contents = bytes(view)
        elif len(view) >= _SKIPPED_SIZE and self._skips:
            self._skip(view)
            return len(view)
        if len(view) >= END_SIZE:
            self._emit(self._tail)
            self._emit(view[:-END_SIZE])
            self._tail = bytes(view[-END_SIZE:])
        else:
            joined = self._tail + view
            self._emit(joined[:-END_SIZE])
            self._tail = joined[-END_SIZE:]
        return len(view)

    def flush(self) -> None:
        self._file.flush()

    def finish(self, description: Mapping[str, Any]) -> None:
        """Write the end of the archive with the seal as its comment.

        Args:
            description: What readers may want to know without opening the archive. JSON.
        """
        assert self._tail.startswith(END_OF_ARCHIVE), "torch.save wrote something else than a zip archive"
        assert self._tail.endswith(b"\0\0"), "the archive has a comment already"
        content = {"archive_bytes": self.size_bytes + END_SIZE, **description}
        text = json.dumps(content, separators=(",", ":")).encode()
        comment = _START + text[1:-1] + b"," + _BEFORE_CHECKSUM
        length = len(comment) + _CHECKSUM_SIZE + len(_AFTER_CHECKSUM)
        assert END_SIZE + length <= TAIL_SIZE
        self._emit(self._tail[:-2] + length.to_bytes(2, "little") + comment)
        self._file.write(b"%08x" % self._add_up() + _AFTER_CHECKSUM)
        self.size_bytes += _CHECKSUM_SIZE + len(_AFTER_CHECKSUM)

    def _emit(self, data: bytes | memoryview) -> None:
        self._crc = zlib.crc32(data, self._crc)
        self._file.write(data)
        self.size_bytes += len(data)

    def _skip(self, view: memoryview) -> None:
        self._emit(self._tail)
        self._tail = b""
        self._end_piece(self._crc)
        self._file.write(view)
        self.size_bytes += len(view)
        self._end_piece(None)

    def _end_piece(self, crc: int | None) -> None:
        self._pieces.append(_Piece(self._piece_start, self.size_bytes - self._piece_start, crc))
        self._piece_start, self._crc = self.size_bytes, 0

    def _add_up(self) -> int:
        self._end_piece(self._crc)
        known = _read_contents(self._contents)
        total = 0
        for piece in self._pieces:
            crc = piece.crc32
            if crc is None:
                crc = _find_crc32(known, piece) or self._read_back(piece)
            total = combine_crc32(total, crc, piece.num_bytes)
        return total

    def _read_back(self, piece: _Piece) -> int:
        """Checksum of an entry that the table of contents does not tell; no torch so far needs it."""
        self._file.flush()
        self._file.seek(piece.start)
        crc, left = 0, piece.num_bytes
        while left > 0 and (chunk := self._file.read(min(left, _SKIPPED_SIZE))):
            crc, left = zlib.crc32(chunk, crc), left - len(chunk)
        self._file.seek(0, os.SEEK_END)
        return crc


@dataclass(frozen=True, slots=True)
class _Piece:
    """A stretch of a file; without a checksum where it is an entry of the archive that nobody has read."""

    start: int
    num_bytes: int
    crc32: int | None


@dataclass(frozen=True, slots=True)
class _Entry:
    """What the table of contents says of an entry of the archive."""

    start: int
    num_bytes: int
    crc32: int


def _find_crc32(entries: list[_Entry], piece: _Piece) -> int | None:
    index = bisect_left(entries, piece.start, key=lambda entry: entry.start) - 1
    if index < 0 or entries[index].num_bytes != piece.num_bytes:
        return None
    return entries[index].crc32


def _read_contents(contents: bytes) -> list[_Entry]:
    """The entries of a table of contents, in the order in which they lie in the file."""
    entries, at = [], 0
    while contents[at : at + 4] == _CONTENTS_ENTRY:
        crc, _, size, name, extra, comment = struct.unpack_from("<III3H", contents, at + 16)
        (start,) = struct.unpack_from("<I", contents, at + 42)
        end_of_name = at + 46 + name
        if _IN_EXTRA in (size, start):
            size, start = _read_extra(contents[end_of_name : end_of_name + extra], size, start)
        entries.append(_Entry(start, size, crc))
        at = end_of_name + extra + comment
    return sorted(entries, key=lambda entry: entry.start)


def _read_extra(extra: bytes, size: int, start: int) -> tuple[int, int]:
    """Size and start of an entry that needs 64 bits for one of them; the size comes twice, for it is not compressed."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            numbers = struct.unpack_from(f"<{length // 8}Q", extra, at + 4)
            return (numbers[0] if size == _IN_EXTRA else size), (numbers[-1] if start == _IN_EXTRA else start)
        at += 4 + length
    return size, start


def read_seal(tail: bytes, size_bytes: int) -> Seal | None:
    """The seal in the last bytes of a file, or None if they hold none that is whole.

    Args:
        tail: The last `TAIL_SIZE` bytes, or all of a smaller file.
        size_bytes: Size of the file.
    """
    end = tail.rfind(END_OF_ARCHIVE)
    comment = tail[end + END_SIZE :]
    if end < 0 or tail[end + END_SIZE - 2 : end + END_SIZE] != len(comment).to_bytes(2, "little"):
        return None
    checksum = comment[-len(_AFTER_CHECKSUM) - _CHECKSUM_SIZE : -len(_AFTER_CHECKSUM)]
    try:
        crc32, content = int(checksum, 16), json.loads(comment[len(_NAME) :])
    except (ValueError, RecursionError):
        return None
    # Compared as they would be written: int() and json accept more than one spelling.
    is_spelt_so = checksum == b"%08x" % crc32 and comment.endswith(_BEFORE_CHECKSUM + checksum + _AFTER_CHECKSUM)
    archive_bytes = _whole_number(content.get("archive_bytes")) if isinstance(content, dict) else None
    if not comment.startswith(_START) or not is_spelt_so or archive_bytes is None:
        return None
    return Seal(
        crc32=crc32,
        covered_bytes=size_bytes - _CHECKSUM_SIZE - len(_AFTER_CHECKSUM),
        archive_bytes=archive_bytes,
        global_step=_whole_number(content.get("global_step")),
        batches_total=_whole_number(content.get("batches_total")),
        is_full=content.get("is_full") is True,
    )


def describe(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """What the seal of `checkpoint` says about the run it is of."""
    own = checkpoint.get("fulgur")
    progress = own.get("progress") if isinstance(own, dict) else None
    found = {
        "global_step": checkpoint.get("global_step"),
        "batches_total": progress.get("batches_total") if isinstance(progress, dict) else None,
    }
    counters = {name: value for name, value in found.items() if _whole_number(value) is not None}
    return {**counters, "is_full": "optimizer_states" in checkpoint}


def _whole_number(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < 1 << 63 else None
