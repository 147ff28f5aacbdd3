"""Opening a sharded checkpoint without running anything that is in it.

Its index is a pickle of torch.distributed.checkpoint's. `_IndexUnpickler` makes nothing but the handful of dataclasses
that an index is made of, and what they say is checked before a file is opened for it.
"""

from __future__ import annotations

import os
import pathlib
import pickle
import zlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from fulgur.checkpoint.load import MapLocation, load_checkpoint
from fulgur.checkpoint.location import META_FILE, local_path
from fulgur.checkpoint.sharded import INDEX_FILE, SHARDS_KEY, keys_of, put_shards
from fulgur.checkpoint.verify import Verdict, verify_checkpoint
from fulgur.errors import CheckpointError, CheckpointRefusedError

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

Layout = Callable[[str, torch.Size, Mapping[str, Any]], "Tensor | None"]
"""For a tensor's key, its shape and what `meta.pt` says of shards: a distributed tensor laid out as the one wanted, or
None for the whole tensor in the host's memory."""

_CHUNK_SIZE = 1 << 22
_METADATA = "torch.distributed.checkpoint.metadata"
_ALLOWED = {
    *((_METADATA, name) for name in ("BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex")),
    *((_METADATA, name) for name in ("StorageMeta", "TensorProperties", "TensorStorageMetadata")),
    (_METADATA, "_MEM_FORMAT_ENCODING"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
}
_PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module in ("pathlib", "pathlib._local") and name in _PATHS:
            return pathlib.PurePosixPath  # where the index was written, which nobody reads
        if (module, name) in _ALLOWED or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise CheckpointRefusedError(
            f"The index of a sharded checkpoint holds more than an index: it wants {module}.{name}. Opening it could "
            "run code, so it was not opened."
        )


# --------------------------------------------------------------------------------------------------------- the parts


def load_meta(path: str | os.PathLike[str], *, weights_only: bool | None = None, mmap: bool = False) -> dict[str, Any]:
    """What `meta.pt` of the sharded checkpoint at `path` holds; names of shards stand for tensors."""
    return load_checkpoint(_inside(path, META_FILE), map_location="cpu", weights_only=weights_only, mmap=mmap)


def load_index(path: str | os.PathLike[str]) -> Metadata:
    """The index of the sharded checkpoint at `path`: where each part of each tensor lies.

    Raises:
        CheckpointRefusedError: It wants more than an index is made of.
        CheckpointError: It is damaged, or names files that are not its own.
    """
    location = _inside(path, INDEX_FILE)
    try:
        with open(location, "rb") as file:
            index = _IndexUnpickler(file).load()
        _check_index(index, os.fspath(path))
    except (CheckpointError, FileNotFoundError):
        raise
    except Exception as error:
        raise CheckpointError(f"{location!r} cannot be read: {type(error).__name__}: {error}.") from error
    return cast("Metadata", index)


def _check_index(index: Any, path: str) -> None:
    """Refuse an index whose fields are of other types, or that leads out of its directory."""
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

    if not isinstance(index, Metadata):
        raise CheckpointError(f"The index of {path!r} is a {type(index).__name__}, not that of a sharded checkpoint.")
    for key, entry in index.state_dict_metadata.items():
        if not isinstance(entry, TensorStorageMetadata) or not isinstance(entry.size, torch.Size):
            raise CheckpointRefusedError(
                f"In {path!r}, {key!r} is no tensor but a pickled object. Opening it could run code, so it was not "
                "opened."
            )
    size_bytes = {name: os.path.getsize(_inside(path, name)) for name in os.listdir(local_path(path))}
    for info in index.storage_data.values():
        name = info.relative_path if isinstance(info, _StorageInfo) else None
        if name not in size_bytes or os.path.basename(name) != name:
            raise CheckpointError(f"The index of {path!r} leads to {name!r}, which is not in that directory.")
        if not 0 <= info.offset <= info.offset + info.length <= size_bytes[name]:
            raise CheckpointError(f"The index of {path!r} leads beyond the end of {name!r}.")


def _inside(path: str | os.PathLike[str], name: str) -> str:
    return os.path.join(local_path(path), name)


# ------------------------------------------------------------------------------------------------------ whole or not


def verify_sharded(path: str | os.PathLike[str], *, reads_all: bool = True, share: slice = slice(None)) -> Verdict:
    """Whether all files of the sharded checkpoint at `path` are as they were written.

    Args:
        path: The directory.
        reads_all: Verify every byte. False looks at sizes only.
        share: Which of the files to look at: several ranks can share the work. `meta.pt` is always looked at.
    """
    meta = verify_checkpoint(_inside(path, META_FILE), reads_all=reads_all)
    if not meta.is_usable:
        return Verdict(meta.kind, f"is damaged: its {META_FILE} {meta.reason}")
    files = load_meta(path, mmap=True).get(SHARDS_KEY, {}).get("files")
    if not isinstance(files, Mapping):
        return Verdict("foreign", f"is no sharded checkpoint: its {META_FILE} names no files")
    for name, (size, crc) in list(files.items())[share]:
        flaw = _find_flaw(_inside(path, _kept_within(name)), size, crc if reads_all else None)
        if flaw is not None:
            return Verdict("truncated" if "missing" in flaw else "damaged", f"is damaged: {name} {flaw}")
    return Verdict("good", "is whole", meta.seal)


def _kept_within(name: str) -> str:
    """`name` as a path that does not lead out of the directory."""
    is_within = not os.path.isabs(name) and ".." not in pathlib.PurePosixPath(name).parts
    return name if is_within else os.path.basename(name)


def _find_flaw(location: str, size: int, crc: int | None) -> str | None:
    if not os.path.isfile(location):
        return "is missing"
    found = os.path.getsize(location)
    if found != size:
        return f"has {found} bytes, of {size} that were written"
    if crc is None:
        return None
    total = 0
    with open(location, "rb") as file:
        while chunk := file.read(_CHUNK_SIZE):
            total = zlib.crc32(chunk, total)
    return None if total == crc else f"has the checksum {total:08x}, and {crc:08x} was written"


# ------------------------------------------------------------------------------------------------------------ opening


def load_sharded(
    path: str | os.PathLike[str],
    *,
    map_location: MapLocation = None,
    weights_only: bool | None = None,
    layout: Layout | None = None,
    is_verified: bool = False,
    shapes_only: bool = False,
) -> dict[str, Any]:
    """The checkpoint in the directory `path`, as `load_checkpoint` gives that of a file.

    Args:
        path: The directory.
        map_location: Where whole tensors go. ``None`` is the host.
        weights_only: For `meta.pt`, as in `load_checkpoint`. Shards are always opened as plain tensors.
        layout: Says of each tensor whether only parts of it are wanted. ``None``: all are read whole.
        is_verified: Every byte has been verified already.
        shapes_only: Read no tensor; they come on the meta device.

    Raises:
        CheckpointError: It is damaged, or no sharded checkpoint.
        CheckpointRefusedError: It wants more than plain data.
    """
    if not is_verified:
        verdict = verify_sharded(path, reads_all=not shapes_only)
        if not verdict.is_usable:
            raise CheckpointError(f"{os.fspath(path)!r} {verdict.reason}. Use another checkpoint.")
    plain = load_meta(path, weights_only=weights_only)
    if "deepspeed" in plain.get(SHARDS_KEY, {}):
        device = "meta" if shapes_only else map_location
        return _load_of_engine(plain, path, trusts=weights_only is False, device=device)
    index = load_index(path)
    targets = {}
    for key in keys_of(plain):
        entry = index.state_dict_metadata.get(key)
        if entry is None:
            raise CheckpointError(f"{os.fspath(path)!r} is damaged: its index lacks {key!r}.")
        targets[key] = _target(key, cast("TensorStorageMetadata", entry), plain[SHARDS_KEY], layout, shapes_only)
    if not shapes_only:
        _read(path, index, targets)
    device = map_location if isinstance(map_location, (str, torch.device)) else None
    if device is not None and layout is None and torch.device(device).type != "cpu":
        targets = {key: tensor.to(device) for key, tensor in targets.items()}
    return put_shards(plain, targets)


def _load_of_engine(plain: dict[str, Any], path: Any, *, trusts: bool, device: Any) -> dict[str, Any]:
    """The checkpoint of DeepSpeed's engine, with whole weights; its optimizer states are of use to the engine only."""
    from fulgur.checkpoint.engine_files import read_engine_weights

    weights = read_engine_weights(path, trusts=trusts)
    if isinstance(device, (str, torch.device)):
        weights = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in weights.items()}
    return {**{key: value for key, value in plain.items() if key != SHARDS_KEY}, "state_dict": weights}


def _target(
    key: str, entry: TensorStorageMetadata, shards: Mapping[str, Any], layout: Layout | None, shapes_only: bool
) -> Tensor:
    like = layout(key, entry.size, shards) if layout is not None else None
    if like is not None:
        return torch.empty_like(like, dtype=entry.properties.dtype)
    return torch.empty(entry.size, dtype=entry.properties.dtype, device="meta" if shapes_only else "cpu")


def _read(path: str | os.PathLike[str], index: Metadata, targets: dict[str, Tensor]) -> None:
    """Fill `targets`, without a word to other ranks: each reads what it needs."""
    from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
    from torch.distributed.checkpoint.filesystem import FileSystemReader

    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    reader = FileSystemReader(local_path(path))
    try:
        planner.set_up_planner(cast("dict[str, Any]", targets), index, True)
        reader.set_up_storage_reader(index, True)
        plans = planner.create_global_plan([reader.prepare_local_plan(planner.create_local_plan())])
        reader.read_data(planner.finish_plan(reader.prepare_global_plan(plans)[0]), planner).wait()
    except Exception as error:
        raise CheckpointError(
            f"The tensors of {os.fspath(path)!r} cannot be read: {type(error).__name__}: {error}."
        ) from error
