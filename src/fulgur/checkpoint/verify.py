"""Whether a checkpoint file is whole, and if not, what has happened to it."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, Literal

from fulgur.checkpoint.location import is_remote, is_sharded, local_path, open_filesystem
from fulgur.checkpoint.seal import END_OF_ARCHIVE, END_SIZE, TAIL_SIZE, Seal, read_seal
from fulgur.errors import CheckpointError

Kind = Literal["good", "unsealed", "empty", "truncated", "damaged", "foreign"]

# How files begin that `torch.save` wrote before torch 1.6: a pickled number.
_BEFORE_ZIP = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_ZIP_ENTRY = b"PK\3\4"
_SEAL_WORDS = (b"fulgur {", b'"crc32":"')
_CHUNK_SIZE = 1 << 22
_IN_MEMORY_SIZE = 1 << 28  # larger files of a store are put into a temporary file while they are opened


@dataclass(frozen=True, slots=True)
class Verdict:
    """What `verify_checkpoint` found.

    Attributes:
        kind: ``"good"`` is a file whose checksum fits. ``"unsealed"`` has no checksum, because another program wrote
            it, and nothing wrong that can be seen without one. ``"empty"`` holds nothing, or zeros. ``"truncated"``
            lacks its end. ``"damaged"`` has other bytes than were written. ``"foreign"`` never was a checkpoint.
        reason: The same as a clause to follow "it", for example ``"is cut short: ..."``.
        seal: What the file says about itself; only where it is whole.
        way_out: What to do where it is of no use: whole sentences.
    """

    kind: Kind
    reason: str
    seal: Seal | None = None
    way_out: str = "Use another checkpoint."

    @property
    def is_usable(self) -> bool:
        """Whether the file may be opened."""
        return self.kind in ("good", "unsealed")


def verify_checkpoint(
    path: str | os.PathLike[str], *, storage_options: dict[str, Any] | None = None, reads_all: bool = True
) -> Verdict:
    """Read all of the file at `path` and tell whether it is whole. Nothing in it is unpickled.

    Of a directory of shards, all of its files; their list is read as plain data.

    Args:
        path: A local path, or a URL of any filesystem fsspec knows.
        storage_options: Arguments for the fsspec filesystem of a URL.
        reads_all: Verify every byte. False looks at beginning and end only.

    Raises:
        FileNotFoundError: There is nothing.
        OSError: It cannot be read.

    Example:
        >>> verify_checkpoint("runs/epoch=3-step=40.ckpt").kind  # doctest: +SKIP
        'good'
    """
    if is_sharded(path):
        from fulgur.checkpoint.sharded_read import verify_sharded

        return verify_sharded(path, reads_all=reads_all)
    with _open(os.fspath(path), storage_options, copies=False) as file:
        return examine(file, reads_all=reads_all)


@contextmanager
def open_verified(
    path: str | os.PathLike[str], *, storage_options: dict[str, Any] | None = None, reads_all: bool = True
) -> Iterator[IO[bytes]]:
    """The file at `path`, open at its beginning, once it has been verified.

    What is verified is what is read: the same open file, or the same download of a store's.

    Args:
        path: A local path, or a URL of any filesystem fsspec knows.
        storage_options: Arguments for the fsspec filesystem of a URL.
        reads_all: Verify every byte. False looks at beginning and end only, and downloads nothing else.

    Raises:
        CheckpointError: It is not whole; the message says what has happened to it.
    """
    location = os.fspath(path)
    with _open(location, storage_options, copies=reads_all) as file:
        require_whole(file, location, reads_all=reads_all)
        yield file


def require_whole(file: IO[bytes], location: str, *, reads_all: bool = True) -> None:
    """Raise a `CheckpointError` that names `location` unless `file` is whole. Leaves it at its beginning."""
    verdict = examine(file, reads_all=reads_all)
    if not verdict.is_usable:
        raise CheckpointError(f"{location!r} {verdict.reason}. {verdict.way_out}")
    file.seek(0)


def is_archive(file: IO[bytes]) -> bool:
    """Whether `file`, which is at its beginning, is in the format of torch since 1.6."""
    head = file.read(len(_ZIP_ENTRY))
    file.seek(0)
    return head == _ZIP_ENTRY


def examine(file: IO[bytes], *, reads_all: bool = True) -> Verdict:
    """As `verify_checkpoint`, for an open file that can seek.

    Args:
        file: At any position; it has another one afterwards.
        reads_all: Verify every byte. Without, a file counts as whole whose beginning, end and table of contents are.
    """
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return Verdict("empty", "is no checkpoint: it is empty, 0 bytes")
    file.seek(max(0, size - TAIL_SIZE))
    tail = file.read(TAIL_SIZE)
    seal = read_seal(tail, size)
    if seal is not None:
        return _examine_sealed(file, size, tail, seal, reads_all)
    file.seek(0)
    head = file.read(len(_BEFORE_ZIP))
    if head == _BEFORE_ZIP:
        return Verdict("unsealed", "was written by torch before 1.6, which keeps no checksums")
    if not any(head):
        return Verdict("empty", f"is no checkpoint: it begins with zeros ({size} bytes in all), as after a lost write")
    has_end = END_OF_ARCHIVE in tail or any(word in tail for word in _SEAL_WORDS)
    if not head.startswith(_ZIP_ENTRY):
        if has_end:
            return Verdict("damaged", "is damaged: its first bytes are not those of a zip archive, its last ones are")
        from fulgur.checkpoint.foreign import identify

        found = identify(file)
        if found is None:
            return Verdict("foreign", f"is no checkpoint: it begins with {head[:8]!r}")
        return Verdict("foreign", f"is no checkpoint: it is {found.is_a}", way_out=found.way_out)
    if tail[-END_SIZE:].startswith(END_OF_ARCHIVE) and tail.endswith(b"\0\0"):
        return _examine_archive(file, size, reads_all=reads_all)
    if has_end:
        return Verdict("damaged", "is damaged: its last bytes are not as they were written")
    return Verdict("truncated", f"is no checkpoint any more: it is cut short after {size} bytes")


def _examine_sealed(file: IO[bytes], size: int, tail: bytes, seal: Seal, reads_all: bool) -> Verdict:
    seal_bytes = len(tail) - tail.rfind(END_OF_ARCHIVE) - END_SIZE
    expected = seal.archive_bytes + seal_bytes
    if size != expected:
        kind: Kind = "truncated" if size < expected else "damaged"
        return Verdict(kind, f"is damaged: it has {size} bytes, of {expected} that were written")
    found = _checksum(file, seal.covered_bytes) if reads_all else seal.crc32
    if found != seal.crc32:
        return Verdict("damaged", f"is damaged: its checksum is {found:08x}, and {seal.crc32:08x} was written")
    verdict = _examine_archive(file, size, reads_all=False)
    return Verdict("good", "is whole", seal) if verdict.is_usable else verdict


def _checksum(file: IO[bytes], size: int) -> int:
    crc, left = 0, size
    file.seek(0)
    while left > 0 and (chunk := file.read(min(left, _CHUNK_SIZE))):
        crc = zlib.crc32(chunk, crc)
        left -= len(chunk)
    return crc


def _examine_archive(file: IO[bytes], size: int, *, reads_all: bool) -> Verdict:
    """Look through the archive's table of contents, and with `reads_all` at the checksum that it has of each entry."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            if not any(entry.filename.rpartition("/")[2] == "data.pkl" for entry in entries):
                return Verdict("foreign", "is no checkpoint: it is a zip archive of something else")
            # Stored as they are, entries cannot be larger than the file: it is no bomb.
            if any(entry.compress_type for entry in entries) or sum(entry.file_size for entry in entries) > size:
                return Verdict("foreign", "is no checkpoint: it is a compressed archive, which torch does not write")
            for entry in entries if reads_all else ():
                if entry.CRC:  # 0 where torch was told not to keep them
                    _read_entry(archive, entry)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        return Verdict("damaged", f"is damaged: {error}")
    return Verdict("unsealed", "has no checksum, and no visible damage")


def _read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    with archive.open(entry) as content:
        while content.read(_CHUNK_SIZE):
            pass


@contextmanager
def _open(location: str, storage_options: dict[str, Any] | None, *, copies: bool) -> Iterator[IO[bytes]]:
    """The file; with `copies` what a store has is read once, however often one seeks in it."""
    if not is_remote(location):
        with open(local_path(location), "rb") as file:
            yield file
        return
    filesystem, inner = open_filesystem(location, storage_options)
    with filesystem.open(inner, "rb") as source:
        if not copies:
            yield source
            return
        is_small = (source.size or 0) <= _IN_MEMORY_SIZE
        with io.BytesIO() if is_small else tempfile.TemporaryFile() as copy:
            shutil.copyfileobj(source, copy, _CHUNK_SIZE)
            yield copy
