"""The files that the tools read and write: checkpoints of any origin, bare weights, safetensors."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from fulgur.checkpoint.load import load_checkpoint
from fulgur.checkpoint.location import is_remote, is_sharded, local_path, open_filesystem
from fulgur.checkpoint.sharded_read import load_sharded
from fulgur.checkpoint.tools.safetensors_file import (
    SAFETENSORS,
    read_metadata,
    read_shapes,
    read_weights,
    write_weights,
)
from fulgur.checkpoint.verify import open_verified
from fulgur.checkpoint.write import checkpoint_exists, write_checkpoint
from fulgur.errors import CheckpointError

Kind = Literal["fulgur", "shards", "lightning", "weights", "safetensors", "other"]

# Types of what the tools look into; a file may come from anywhere.
_TYPES: dict[str, type] = {
    "state_dict": Mapping,
    "loops": Mapping,
    "callbacks": Mapping,
    "optimizer_states": list,
    "lr_schedulers": list,
    "fulgur": Mapping,
    "epoch": int,
    "global_step": int,
}

_NAMES = {
    "fulgur": "a fulgur checkpoint",
    "shards": "a sharded fulgur checkpoint",
    "lightning": "a Lightning checkpoint",
    "weights": "bare weights",
    "safetensors": "weights in safetensors",
    "other": "a file of torch.save",
}


@dataclass(frozen=True, slots=True)
class Opened:
    """A file that has been opened.

    Attributes:
        path: As it was given.
        kind: Who wrote it, by what is in it.
        size_bytes: Of the file.
        content: In the layout of a checkpoint: bare weights stand under ``state_dict``. Tensors of a local file are
            still on the disk; unless only shapes were asked for, every byte of it has been verified.
        metadata: What a safetensors file says beside its tensors.
    """

    path: str
    kind: Kind
    size_bytes: int
    content: dict[str, Any]
    metadata: dict[str, str]

    @property
    def kind_name(self) -> str:
        """What it is, with its article."""
        return _NAMES[self.kind]


def open_file(path: str, *, trust: bool = False, shapes_only: bool = False, is_verified: bool = False) -> Opened:
    """Open a checkpoint, bare weights or a safetensors file.

    Args:
        path: A local path or a URL.
        trust: Run what the file says, where it holds more than plain data.
        shapes_only: Verify and read no tensor; from a URL they come on the meta device.
        is_verified: Every byte has been verified already.

    Raises:
        FileNotFoundError: There is nothing at `path`.
        CheckpointError: It cannot be read, is not as it was written, or wants more than plain data.
        MissingExtraError: Tensors of a safetensors file are wanted, and the package is not installed.
    """
    if is_sharded(path):
        content = load_sharded(path, weights_only=not trust, shapes_only=shapes_only, is_verified=is_verified)
        _require_types(content, path)
        return Opened(path, "shards", size_of(path), content, {})
    if is_directory(path):
        raise CheckpointError(f"{path!r} is a directory. Name one file in it.")
    if path.endswith(SAFETENSORS):
        if not checkpoint_exists(path):
            raise FileNotFoundError(f"There is no file at {path!r}.")
        weights = read_shapes(path) if shapes_only else read_weights(path)
        return Opened(path, "safetensors", size_of(path), {"state_dict": weights}, read_metadata(path))
    location = "meta" if shapes_only and is_remote(path) else "cpu"
    reads_all = not (shapes_only or is_verified)
    if reads_all and not is_remote(path) and checkpoint_exists(path):
        with open_verified(path):  # once, so that tensors can stay on the disk until they are used
            pass
    is_mapped = not (reads_all and is_remote(path))
    content = load_checkpoint(path, map_location=location, weights_only=not trust, mmap=is_mapped)
    kind = _kind_of(content)
    if kind in ("fulgur", "lightning"):
        _require_types(content, path)
    return Opened(path, kind, size_of(path), {"state_dict": content} if kind == "weights" else content, {})


def _kind_of(content: dict[str, Any]) -> Kind:
    if "fulgur" in content:
        return "fulgur"
    if "pytorch-lightning_version" in content:
        return "lightning"
    if content and all(isinstance(value, Tensor) for value in content.values()):
        return "weights"
    return "other"


def _require_types(content: dict[str, Any], path: str) -> None:
    for key, value, expected in _typed_parts(content):
        if not isinstance(value, expected):
            raise CheckpointError(
                f"{path!r} has an unknown layout: its {key} is a {type(value).__name__}, not a {expected.__name__}. "
                "Give a file that a ModelCheckpoint or trainer.save_checkpoint has written."
            )


def _typed_parts(content: dict[str, Any]) -> Iterator[tuple[str, Any, type]]:
    """Name, value and expected type, the outer ones first."""
    yield from ((key, content[key], expected) for key, expected in _TYPES.items() if key in content)
    yield from (
        (f"optimizer_states[{i}]", value, Mapping) for i, value in enumerate(content.get("optimizer_states", ()))
    )
    own = content.get("fulgur", {})
    yield from ((f"fulgur.{key}", own[key], Mapping) for key in ("progress", "running") if key in own)


def is_directory(path: str) -> bool:
    """Whether `path`, a path or a URL, is a directory."""
    if not is_remote(path):
        return os.path.isdir(local_path(path))
    filesystem, inner = open_filesystem(path)
    return bool(filesystem.isdir(inner))


def size_of(path: str) -> int:
    """Size of the file at `path`, a path or a URL, in bytes; of a sharded checkpoint that of its files."""
    if not is_remote(path):
        files = [entry for entry in os.scandir(path) if entry.is_file()] if is_sharded(path) else ()
        return sum(entry.stat().st_size for entry in files) or os.path.getsize(local_path(path))
    filesystem, inner = open_filesystem(path)
    return int(filesystem.size(inner) or 0)


def find_tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors in nested dicts, lists and tuples, with their dotted names."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from find_tensors(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from find_tensors(item, f"{name}[{index}]")


def write_file(content: dict[str, Any], path: str, metadata: dict[str, str]) -> None:
    """Write a checkpoint, or only its weights if `path` ends in ``.safetensors``.

    Raises:
        CheckpointError: It could not be written. Nothing has changed at `path`.
        MissingExtraError: The package safetensors is not installed.
    """
    if path.endswith(SAFETENSORS):
        write_weights(content["state_dict"], path, metadata=metadata)
    else:
        write_checkpoint(content, path)
