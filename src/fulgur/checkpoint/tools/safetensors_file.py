"""Weights in the format safetensors. Only tensors need its package; names and shapes are read without it."""

from __future__ import annotations

import json
import os
import posixpath
import struct
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import IO, Any, TypeVar

import torch
from torch import Tensor

from fulgur.checkpoint.location import is_remote, local_path, open_filesystem
from fulgur.checkpoint.temporary import temporary_name
from fulgur.errors import CheckpointError, MissingExtraError

SAFETENSORS = ".safetensors"
_LARGEST_HEADER = 100_000_000

# Names of dtypes in the header, for those that torch has.
_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}

Result = TypeVar("Result")


def _telling_damage(read: Callable[[str], Result]) -> Callable[[str], Result]:
    @wraps(read)
    def guarded(path: str) -> Result:
        try:
            return read(path)
        except (MissingExtraError, OSError):
            raise
        except Exception as error:
            raise CheckpointError(
                f"{path!r} cannot be read: it is damaged, cut short, or no safetensors file ({type(error).__name__}: "
                f"{error})."
            ) from error

    return guarded


@_telling_damage
def read_metadata(path: str) -> dict[str, str]:
    """What the file at `path` says beside its tensors."""
    return dict(_read_header(path).get("__metadata__", {}))


@_telling_damage
def read_shapes(path: str) -> dict[str, Tensor]:
    """The tensors of the file at `path` on the meta device: without values."""
    entries = {name: entry for name, entry in _read_header(path).items() if name != "__metadata__"}
    return {
        name: torch.empty(entry["shape"], dtype=_DTYPES[entry["dtype"]], device="meta")
        for name, entry in entries.items()
    }


@_telling_damage
def read_weights(path: str) -> dict[str, Tensor]:
    """The tensors of the file at `path`, on the CPU.

    Raises:
        CheckpointError: The file is damaged.
        MissingExtraError: The package is not installed.
    """
    safetensors = _import_safetensors()
    if not is_remote(path):
        return dict(safetensors.load_file(local_path(path)))
    with _open(path) as file:
        return dict(safetensors.load(file.read()))


def write_weights(weights: Mapping[str, Any], path: str, *, metadata: dict[str, str]) -> None:
    """Write `weights` to `path` so that they are there completely, or not at all.

    Raises:
        CheckpointError: They could not be written, or are no tensors.
        MissingExtraError: The package is not installed.
    """
    safetensors = _import_safetensors()
    tensors = _separate(weights)
    try:
        if is_remote(path):
            _write_remote(safetensors.save(tensors, metadata=metadata), path)
        else:
            _write_local(lambda place: safetensors.save_file(tensors, place, metadata=metadata), Path(local_path(path)))
    except Exception as error:
        raise CheckpointError(f"{path!r} could not be written: {type(error).__name__}: {error}.") from error


def _separate(weights: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights as the format wants them: contiguous, and none in the memory of another."""
    others = [name for name, value in weights.items() if not isinstance(value, Tensor)]
    if others:
        raise CheckpointError(
            f"safetensors holds tensors only, and these weights are none: {others}. Use a .ckpt file instead."
        )
    seen: set[int] = set()
    separate = {}
    for name, tensor in weights.items():
        storage = tensor.untyped_storage()
        is_alone = storage._cdata not in seen and storage.nbytes() == tensor.nbytes and tensor.is_contiguous()
        separate[name] = tensor.detach() if is_alone else tensor.detach().contiguous().clone()
        seen.add(storage._cdata)
    return separate


def _write_local(write: Callable[[Path], None], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(temporary_name(target.name))
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _write_remote(data: bytes, url: str) -> None:
    filesystem, path = open_filesystem(url)
    filesystem.makedirs(posixpath.dirname(path), exist_ok=True)
    filesystem.pipe_file(path, data)


def _read_header(path: str) -> dict[str, Any]:
    with _open(path) as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > _LARGEST_HEADER:
            raise ValueError(f"its header would be {length} bytes long")
        return dict(json.loads(file.read(length)))


def _open(path: str) -> IO[bytes]:
    if not is_remote(path):
        return open(local_path(path), "rb")
    filesystem, inner = open_filesystem(path)
    file: IO[bytes] = filesystem.open(inner, "rb")
    return file


def _import_safetensors() -> Any:
    try:
        import safetensors.torch
    except ModuleNotFoundError:
        raise MissingExtraError("The format safetensors", "safetensors", "safetensors") from None
    return safetensors.torch
