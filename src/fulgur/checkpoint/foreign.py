"""What a file is that is no archive of `torch.save`, found out without running anything in it."""

from __future__ import annotations

import io
import os
import pickletools
import tarfile
import zlib
from dataclasses import dataclass
from typing import IO

# How much of a file is looked through: pickles name what they want near their beginning, and a compressed file may
# unfold into anything.
_LOOKED_AT_SIZE = 1 << 24
_TAR_MARK, _TAR_MARK_AT = b"ustar", 257
_COMPRESSIONS = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ\0": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
}
_OTHERS = {b"\x89HDF\r\n\x1a\n": "an HDF5 file, as Keras writes", b"GGUF": "a GGUF file"}
# What every pickle of weights asks for, and what is only looked up or made of plain values.
_HARMLESS = ("collections.OrderedDict", "torch._utils._rebuild_", "torch.Size")
_N_NAMED = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """What a file is.

    Attributes:
        is_a: To follow "it is".
        way_out: What to do with it: whole sentences.
    """

    is_a: str
    way_out: str = "Use another checkpoint."


def identify(file: IO[bytes]) -> Finding | None:
    """Tell what `file` is; None for something nobody here knows. Its position is another one afterwards."""
    file.seek(0)
    head = file.read(_TAR_MARK_AT + len(_TAR_MARK))
    for mark, (name, program) in _COMPRESSIONS.items():
        if head.startswith(mark):
            inner = _inside_gzip(file) if name == "gzip" else ""
            return Finding(f"compressed with {name}{inner}", f"Unpack it first, with `{program}`.")
    for mark, is_a in _OTHERS.items():
        if head.startswith(mark):
            return Finding(is_a)
    if head[8:10] == b'{"' and int.from_bytes(head[:8], "little") < file.seek(0, os.SEEK_END):
        return Finding(
            "weights in safetensors",
            "Name it *.safetensors, and make a checkpoint of it with `fulgur checkpoint convert IN.safetensors OUT`.",
        )
    if head[_TAR_MARK_AT:] == _TAR_MARK:
        return _identify_tar(file)
    wanted = find_globals(_beginning(file))
    return None if wanted is None else _plain_pickle(wanted)


def _plain_pickle(wanted: list[str]) -> Finding:
    return Finding(
        f"a plain pickle, which torch.save does not write{_wanting(wanted)}",
        "Opening a pickle can run code. If you trust where it comes from, save it anew: "
        "torch.save(pickle.load(open(path, 'rb')), new_path).",
    )


def _identify_tar(file: IO[bytes]) -> Finding:
    file.seek(0)
    names: list[str] = []
    content = b""
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:  # read one by one: nothing is unpacked
                names.append(member.name)
                if member.name == "pickle" and member.isfile():
                    source = archive.extractfile(member)
                    content = source.read(_LOOKED_AT_SIZE) if source is not None else b""
                if len(names) >= 100:
                    break
    except (tarfile.TarError, OSError, ValueError, EOFError):  # what can be read of it tells enough
        pass
    if not {"pickle", "storages", "tensors"} <= set(names):
        return Finding("a tar archive of something else", "Unpack it, and give a file inside it.")
    wanted = find_globals(content) or []
    return Finding(
        f"in torch's tar format of before 2017{_wanting(wanted)}",
        "It can only be opened by running what it says. If you trust where it comes from, save it anew: "
        "torch.save(torch.load(path, weights_only=False), new_path).",
    )


def _inside_gzip(file: IO[bytes]) -> str:
    """A clause about what the compressed file holds, as far as its beginning tells."""
    file.seek(0)
    try:
        content = zlib.decompressobj(wbits=31).decompress(file.read(_LOOKED_AT_SIZE), _LOOKED_AT_SIZE)
    except zlib.error:
        return ""
    if content.startswith(b"PK\3\4"):
        return ", and a zip archive inside, as torch.save writes it"
    wanted = find_globals(content)
    return "" if wanted is None else f", and a plain pickle inside{_wanting(wanted)}"


def _wanting(wanted: list[str]) -> str:
    if not wanted:
        return ""
    more = f" and {len(wanted) - _N_NAMED} more" if len(wanted) > _N_NAMED else ""
    return f"; it wants {', '.join(wanted[:_N_NAMED])}{more}"


def _beginning(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read(_LOOKED_AT_SIZE)


def find_globals(content: bytes) -> list[str] | None:
    """Names of the functions and classes that a pickle asks for, sorted, without those of plain weights.

    Reads the pickle's instructions and follows none. None where `content` is no pickle. One of protocol 2 or newer may
    be cut short; in one of before, which is text, every instruction must make sense.

    Example:
        >>> import pickle, fractions
        >>> find_globals(pickle.dumps([fractions.Fraction(1, 2)]))
        ['fractions.Fraction']
    """
    names: set[str] = set()
    texts: list[str] = []  # the last two texts, also those fetched from the memo: a STACK_GLOBAL takes them
    memo: dict[int, str | None] = {}
    last: str | None = None
    n_read = position = 0
    try:
        for opcode, argument, at in pickletools.genops(io.BytesIO(content)):
            n_read, position = n_read + 1, at or 0
            if opcode.name in ("GLOBAL", "INST"):
                names.add(str(argument).replace(" ", "."))
            elif opcode.name == "STACK_GLOBAL":
                names.add(".".join(texts))
            if opcode.name == "MEMOIZE" or "PUT" in opcode.name:
                memo[len(memo) if argument is None else int(argument)] = last
                continue
            last = (
                memo.get(int(argument or 0))
                if "GET" in opcode.name
                else argument
                if isinstance(argument, str)
                else None
            )
            if last is not None:
                texts = [*texts[-1:], last]
    except (ValueError, OverflowError):
        position = -1
    is_binary = content[:1] == b"\x80" and content[1:2] in (b"\2", b"\3", b"\4", b"\5") and n_read > 1
    if not is_binary and (n_read < 3 or position != len(content) - 1):
        return None
    return sorted(name for name in names if not name.startswith(_HARMLESS) and not name.endswith("Storage"))
