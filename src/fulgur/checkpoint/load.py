"""Opening a checkpoint without running anything that is in it."""

from __future__ import annotations

import io
import os
import pickle
import re
from collections.abc import Callable
from functools import partial
from typing import IO, Any

import torch

from fulgur.checkpoint.allowed import allow, are_callbacks
from fulgur.checkpoint.location import directory_of, is_remote, is_sharded, list_files, local_path
from fulgur.checkpoint.verify import is_archive, open_verified, require_whole
from fulgur.checkpoint.write import checkpoint_exists
from fulgur.errors import CheckpointError, CheckpointRefusedError

MapLocation = str | torch.device | dict[str, str] | Callable[..., Any] | None

# The ways torch's safe unpickler names what it would not build.
_WANTED = re.compile(r"(?:GLOBAL|[Uu]nsupported class|unrecognized function|but got) ([\w.<>]+\w)")


def load_checkpoint(
    path: str | os.PathLike[str] | IO[bytes],
    *,
    map_location: MapLocation = None,
    weights_only: bool | None = None,
    storage_options: dict[str, Any] | None = None,
    mmap: bool = False,
    needs_hparams: bool = True,
) -> dict[str, Any]:
    """Read the checkpoint at `path`, once it has been verified that no byte of it has changed.

    Opened as plain data and tensors unless told otherwise, so that a file from a stranger cannot run code.

    Args:
        path: A local path, a URL of any filesystem fsspec knows, or an open file. Of a directory of shards all are
            read, into whole tensors; a ``.safetensors`` file is a checkpoint of weights alone.
        map_location: Where tensors go, as `torch.load` has it. ``None`` puts them where they were.
        weights_only: False opens files that hold other objects, by running what the file says: only for files you
            trust. ``None`` means True.
        storage_options: Arguments for the fsspec filesystem of a URL.
        mmap: Leave the tensors of a local file on the disk; each is read when it is used, and its bytes are not
            verified. Files in torch's format of before 1.6 are read whole.
        needs_hparams: False opens files whose hyperparameters hold objects too, without making them: those are left
            out.

    Raises:
        FileNotFoundError: There is nothing at `path`; the message lists the checkpoints beside it.
        CheckpointRefusedError: The file wants more than plain data.
        CheckpointError: The file is damaged, or is no checkpoint.
    """
    safe = weights_only is None or weights_only
    if not isinstance(path, (str, os.PathLike)):
        location = str(getattr(path, "name", "the open file"))
        file = path if path.seekable() and path.tell() == 0 else io.BytesIO(path.read())
        require_whole(file, location)
        return _unpickle(file, location, map_location, safe)
    location = os.fspath(path)
    if not checkpoint_exists(location, storage_options=storage_options):
        raise FileNotFoundError(describe_missing(location))
    if is_sharded(location):
        from fulgur.checkpoint.sharded_read import load_sharded

        return load_sharded(location, map_location=map_location, weights_only=weights_only)
    if location.endswith(".safetensors"):
        from fulgur.checkpoint.tools.deployment import load_exported

        return load_exported(location, map_location)
    try:
        with open_verified(location, storage_options=storage_options, reads_all=not mmap) as file:
            mapped = local_path(location) if mmap and is_archive(file) and not is_remote(location) else None
            return _unpickle(file, location, map_location, safe, mapped=mapped, needs_hparams=needs_hparams)
    except OSError as error:
        raise _unreadable(location, error) from error


def _unpickle(
    file: IO[bytes],
    location: str,
    map_location: MapLocation,
    safe: bool,
    *,
    mapped: str | None = None,
    needs_hparams: bool = True,
) -> dict[str, Any]:
    source: Any = file if mapped is None else mapped
    try:
        if not safe:
            content = torch.load(source, map_location=map_location, weights_only=False, mmap=mapped is not None)
        else:
            content = _load_plain(source, file, map_location, is_mapped=mapped is not None, needs_hparams=needs_hparams)
    except pickle.UnpicklingError as error:
        wanted = _find_wanted(file, error) if safe else []
        raise (_refused(location, wanted) if wanted else _unreadable(location, error)) from error
    except (ImportError, AttributeError) as error:
        raise (_unreadable if safe else _not_found)(location, error) from error
    except Exception as error:
        raise _unreadable(location, error) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{location!r} is no checkpoint: it holds a {type(content).__name__}, not a dict.")
    return content


def _load_plain(
    source: Any, file: IO[bytes], map_location: MapLocation, *, is_mapped: bool, needs_hparams: bool
) -> Any:
    """Load tensors, builtin containers and what `allowed` lists; nothing of the file runs."""
    load = partial(torch.load, source, map_location=map_location, weights_only=True, mmap=is_mapped)
    try:
        with allow():
            return load()
    except pickle.UnpicklingError as error:
        wanted = _find_wanted(file, error)
        if not are_callbacks(wanted):
            content = None if needs_hparams else _load_without_objects(file, wanted, load)
            if content is None:
                raise
            return content
        file.seek(0)
        with allow(wanted):
            return load()


def _load_without_objects(file: IO[bytes], wanted: list[str], load: Callable[[], Any]) -> Any:
    """The content without the hyperparameters that want more than plain data; None if other parts want it too."""
    from fulgur.checkpoint.objects import open_without

    file.seek(0)
    callbacks = [name for name in wanted if are_callbacks([name])]
    with allow(callbacks):
        try:
            return open_without([name for name in wanted if name not in callbacks], load)
        except pickle.UnpicklingError:
            return None


def require_weights(checkpoint: dict[str, Any], location: object) -> None:
    """Refuse a file that holds something else than the checkpoint of a training.

    Raises:
        CheckpointError: There is no ``state_dict`` in it.
    """
    if "state_dict" in checkpoint:
        return
    is_bare = bool(checkpoint) and all(isinstance(value, torch.Tensor) for value in checkpoint.values())
    raise CheckpointError(
        f"{str(location)!r} has no 'state_dict'; its keys are {sorted(map(str, checkpoint))[:10]}. "
        + (
            "These look like bare weights: load them with model.load_state_dict(torch.load(path))."
            if is_bare
            else "Give a file that a ModelCheckpoint or trainer.save_checkpoint has written."
        )
    )


def _find_wanted(file: IO[bytes], error: Exception) -> list[str]:
    """Names of the globals a file asks for beyond plain data; empty if the file is not a pickle at all."""
    try:
        file.seek(0)
        with allow():
            names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except Exception:  # not every format can be looked through ahead
        names = []
    return sorted(set(names)) or _WANTED.findall(str(error))[:1]


def _refused(location: str, wanted: list[str]) -> CheckpointRefusedError:
    return CheckpointRefusedError(
        f"{location!r} holds more than plain data: it wants {', '.join(wanted)}. Opening it could run code, so it was "
        "not opened. If you trust where the file comes from, pass weights_only=False."
    )


def _unreadable(location: str, error: Exception) -> CheckpointError:
    # The first sentence only: torch goes on with advice to open the file unsafely.
    cause = (str(error).splitlines() or [""])[0].split(". ")[0].rstrip(".")
    if "TorchScript" in cause:
        return CheckpointError(
            f"{location!r} is no checkpoint: it is a TorchScript archive, a program. Run it with torch.jit.load if you "
            "trust where it comes from."
        )
    return CheckpointError(
        f"{location!r} cannot be read: it is damaged, cut short, or no checkpoint ({type(error).__name__}: {cause})."
    )


def _not_found(location: str, error: ImportError | AttributeError) -> CheckpointError:
    """For a file that wants a class or a function of code that is not here: it is whole."""
    missing = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    way_out = "Open it with the versions of the code and the packages that it was saved with"
    if missing:
        way_out = f"Install the package {missing!r}, or make it importable"
    return CheckpointError(
        f"{location!r} names classes or functions that are not found here: {error}. The file itself may be whole. "
        f"{way_out}; or try without weights_only=False: most files of Lightning open as plain data."
    )


def describe_missing(location: str) -> str:
    """What to say where there is no checkpoint at `location`, with those that are beside it."""
    directory = directory_of(location)
    beside = [name for name in list_files(directory) if name.endswith(".ckpt")]
    shown = ", ".join(beside[:10]) + (f" and {len(beside) - 10} more" if len(beside) > 10 else "")
    found = f"{directory!r} holds: {shown}." if beside else f"There are no checkpoints in {directory!r} either."
    return f"There is no checkpoint at {location!r}. {found}"
