"""Checkpoints that DeepSpeed's engine has written: a directory of its own files, sealed as one of shards is.

    run.ckpt/
      meta.pt            everything but weights and optimizer states, with a checksum for each other file
      latest             DeepSpeed's: the name of the directory below
      zero_to_fp32.py    DeepSpeed's: makes one file of weights, without fulgur; beside it, zero_to_torch.py
      checkpoint/        DeepSpeed's: weights and optimizer states, each rank its part

DeepSpeed opens its files as pickles that may run anything. Here they are opened as plain data, with the few classes of
DeepSpeed's that they hold.
"""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, cast

import torch

from fulgur.checkpoint.location import local_path
from fulgur.checkpoint.sharded import SHARDS_KEY
from fulgur.checkpoint.sharded_write import (
    FORMAT_VERSION,
    Ranks,
    SummingFile,
    begin_directory,
    checked_target,
    complete_directory,
    failed_write,
    measure_file,
)
from fulgur.checkpoint.write import sync_directory
from fulgur.errors import CheckpointError, CheckpointRefusedError, MissingExtraError

ENGINE_KEY = "deepspeed"
"""In `meta.pt`, under `SHARDS_KEY`: what DeepSpeed's engine has written."""

TAG = "checkpoint"
_CLASSES = (
    ("deepspeed.runtime.fp16.loss_scaler", "LossScaler"),
    ("deepspeed.runtime.fp16.loss_scaler", "DynamicLossScaler"),
    ("deepspeed.runtime.zero.config", "ZeroStageEnum"),
    ("deepspeed.utils.tensor_fragment", "fragment_address"),
)


# ------------------------------------------------------------------------------------------------------------ writing


@dataclass(slots=True)
class Written:
    """What a rank has written: size and checksum of each file, by its path in the directory; or why it has not."""

    files: dict[str, tuple[int, int]] = field(default_factory=dict)
    failure: str = ""


class EngineWriter:
    """Stands for the engine's own ``checkpoint_engine``: writes with checksums, and opens as plain data.

    A failure is kept and not raised, for the engine has barriers in which the other ranks would wait for this one.

    Args:
        inner: The engine's own.

    Attributes:
        directory: What file names are relative to.
        written: What has been written since `begin`.
        trusts: Whether files may hold more than plain data.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.directory = ""
        self.written = Written()
        self.trusts = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def begin(self, directory: str) -> None:
        """Write into `directory` from now on."""
        self.directory, self.written = directory, Written()

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Make a directory."""
        try:
            os.makedirs(path, exist_ok=exist_ok)
        except OSError as error:
            self._note(error)

    def save(self, state_dict: Any, path: str) -> None:
        """Write a file, and wait until it is on the disk."""
        try:
            with open(path, "wb") as file:
                stream = SummingFile(file)
                torch.save(state_dict, cast("IO[bytes]", stream))
                os.fsync(stream.fileno())
        except Exception as error:
            self._note(error)
            return
        name = os.path.relpath(path, self.directory).replace(os.sep, "/")
        self.written.files[name] = (stream.size_bytes, stream.crc32)

    def load(self, path: str, map_location: Any = None) -> Any:
        """Open a file."""
        return _open(path, trusts=self.trusts)

    def _note(self, error: Exception) -> None:
        self.written.failure = self.written.failure or f"{type(error).__name__}: {error}"


def save_engine(
    checkpoint: Mapping[str, Any],
    path: str | os.PathLike[str],
    ranks: Ranks,
    *,
    write: Callable[[str], Written],
    about: Mapping[str, Any],
) -> None:
    """Write the directory `path`: what `write` puts into it, and `checkpoint` without weights and optimizer states.

    All ranks must call it, and all get the error if it fails. An earlier checkpoint at `path` is replaced in the
    instant in which the new one is safe.

    Args:
        checkpoint: Rank 0's is written.
        path: A local path, on a disk that all ranks share.
        ranks: Who takes part.
        write: Has the engine write into a directory. All ranks call it.
        about: What a reader has to know of the engine.

    Raises:
        CheckpointError: It could not be written. Nothing has changed at `path`.
        ValueError: `path` is a URL.
        IsADirectoryError: There is a directory at `path` that is no checkpoint.
    """
    target = checked_target(path)
    temporary, failure = begin_directory(target) if ranks.global_rank == 0 else (None, None)
    name, failure = ranks.broadcast((str(temporary.path) if temporary else "", failure))  # all ranks must reach this
    if failure is not None:
        raise failure
    parts = ranks.all_gather_object(write(name))  # all ranks must reach this
    if temporary is not None:
        plain = {**checkpoint, "state_dict": {}, "optimizer_states": [{ENGINE_KEY: TAG}]}
        plain[SHARDS_KEY] = {"format": FORMAT_VERSION, "parameters": {}, "parts": [], ENGINE_KEY: dict(about)}
        try:
            failures = [f"rank {rank}: {part.failure}" for rank, part in enumerate(parts) if part.failure]
            if failures:
                raise OSError("; ".join(failures))
            files = {name: entry for part in parts for name, entry in part.files.items()}
            beside = [temporary.path / "latest", *temporary.path.glob("*.py")]
            files |= {file.name: measure_file(file) for file in beside}
            _sync(temporary.path / TAG, beside)
            complete_directory(plain, files, target, temporary)
        except (OSError, CheckpointError, ValueError) as error:
            temporary.remove()
            failure = failed_write(target, str(error).rstrip("."))
        except BaseException:
            temporary.remove()
            raise
    failure = ranks.broadcast(failure)  # all ranks must reach this
    if failure is not None:
        raise failure


def _sync(folder: Path, files: Iterable[Path]) -> None:
    """Wait until what DeepSpeed has written beside the engine's files is on the disk, and the names of those."""
    for file in files:
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())
    sync_directory(folder)


# ------------------------------------------------------------------------------------------------------------ reading


def engine_of(plain: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What `meta.pt` says of the engine that wrote the directory; None where none has."""
    found = plain.get(SHARDS_KEY, {}).get(ENGINE_KEY)
    return found if isinstance(found, Mapping) else None


def read_engine_weights(path: str | os.PathLike[str], *, trusts: bool = False) -> dict[str, Any]:
    """The weights in the directory `path`, whole, in float32, with buffers as they were: put together by DeepSpeed.

    Args:
        path: A directory that `save_engine` has written.
        trusts: Run what its files say, where they hold more than plain data.

    Raises:
        MissingExtraError: DeepSpeed is not installed.
        CheckpointRefusedError: A file holds more than plain data.
        CheckpointError: A file cannot be read.
    """
    if find_spec("deepspeed") is None:
        raise MissingExtraError(f"{os.fspath(path)!r}, a checkpoint of DeepSpeed's engine,", "deepspeed", "deepspeed")
    folder = Path(local_path(path)) / TAG
    first: Any = None
    for file in sorted(folder.glob("*_states.pt")):
        content = _open(str(file), trusts=trusts, is_mapped=True)  # order matters: DeepSpeed opens them as they come
        first = content if first is None and file.name.endswith("model_states.pt") else first
    if first is None:
        raise CheckpointError(f"{os.fspath(path)!r} is damaged: there is no file of weights in it.")
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        found = get_fp32_state_dict_from_zero_checkpoint(local_path(path), TAG)
    held = first["module"]
    return {name: held[name] if name in first["buffer_names"] else found.get(name, held[name]) for name in held}


def _open(path: str, *, trusts: bool, is_mapped: bool = False) -> Any:
    """The content of one of DeepSpeed's files, in the host's memory."""
    try:
        if trusts:
            return torch.load(path, map_location="cpu", weights_only=False)
        with _allow_classes():
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_mapped)
    except FileNotFoundError as error:
        raise CheckpointError(f"There is no {path!r}, which belongs to the checkpoint.") from error
    except pickle.UnpicklingError as error:
        first = str(error).partition("Please file")[0].splitlines()
        raise CheckpointRefusedError(
            f"{path!r} holds more than plain data ({' '.join(first)[:200]}). Opening it could run code, so it was not "
            "opened. If you trust where the file comes from, pass weights_only=False."
        ) from error


@contextmanager
def _allow_classes() -> Iterator[None]:
    """DeepSpeed's own classes in its files: they hold values, and making one runs no more than that."""
    found = (getattr(import_module(module), name, None) for module, name in _CLASSES)
    with torch.serialization.safe_globals([cls for cls in found if cls is not None]):
        yield
