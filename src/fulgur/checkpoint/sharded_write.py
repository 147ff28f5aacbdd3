"""Writing a sharded checkpoint: each rank its part, and the directory appears whole or not at all.

Reading order: `save_sharded` -> `begin_directory` (rank 0 makes a temporary one) -> `_plan` (who writes what, the one
exchange between ranks that needs all of them at once) -> `_write_part` -> `_commit` (rank 0: index, `meta.pt`, rename).
In the background the last two happen in threads, which speak through the store of the process group.
"""

from __future__ import annotations

import os
import pickle
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol, cast

from torch import Tensor

from fulgur.checkpoint.exchange import put_in_place
from fulgur.checkpoint.io import AsyncCheckpointIO
from fulgur.checkpoint.location import META_FILE, is_remote, is_sharded, local_path
from fulgur.checkpoint.sharded import INDEX_FILE, SHARDED_PARTS, SHARDS_KEY, take_shards
from fulgur.checkpoint.temporary import LOCK_FILE, mark_as_written, remove_leftovers, temporary_name
from fulgur.checkpoint.write import make_directory, sync_directory, write_checkpoint
from fulgur.errors import CheckpointError

if TYPE_CHECKING:
    from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.metadata import Metadata
    from torch.distributed.checkpoint.planner import SavePlan

FORMAT_VERSION = 1
_POLL_S = 0.02
_CHUNK_SIZE = 1 << 22


class Ranks(Protocol):
    """What writing together takes of a strategy."""

    @property
    def global_rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    def open_stores(self, name: str, connections: Sequence[str]) -> list[Any]: ...

    def broadcast(self, obj: Any, src: int = 0) -> Any: ...

    def all_gather_object(self, obj: Any) -> list[Any]: ...


@dataclass(slots=True)
class _Part:
    """What a rank has written: torch's own account of it, and size and checksum of each file; or why it has not."""

    results: list[Any] = field(default_factory=list)
    files: dict[str, tuple[int, int]] = field(default_factory=dict)
    failure: str = ""


@dataclass(slots=True)
class _Plan:
    """Who writes what."""

    writer: FileSystemWriter
    planner: DefaultSavePlanner
    own: SavePlan
    metadata: Metadata


def save_sharded(
    checkpoint: dict[str, Any],
    path: str | os.PathLike[str],
    ranks: Ranks,
    *,
    parameters: Mapping[str, list[str]],
    parts: Sequence[str] = SHARDED_PARTS,
    background: AsyncCheckpointIO | None = None,
    timeout_s: float = 1800.0,
) -> None:
    """Write `checkpoint` to the directory `path`, each rank the parts of the tensors that it holds.

    All ranks must call it, and all get the error if it fails. `path` must be on a disk that all of them share. An
    earlier checkpoint at `path` is replaced in the instant in which the new one is safe.

    Args:
        checkpoint: Of this rank, with its distributed tensors; of everything else rank 0's is written.
        path: A local path.
        ranks: Who takes part.
        parameters: Names of the parameters of each optimizer, by the optimizer's key in the checkpoint.
        parts: Keys of the checkpoint under which distributed tensors are looked for.
        background: Writes in its thread. ``None`` writes at once.
        timeout_s: How long rank 0 waits in the background for the others.

    Raises:
        CheckpointError: It could not be written. Nothing has changed at `path`.
        ValueError: `path` is a URL.
        IsADirectoryError: There is a directory at `path` that is no checkpoint.
    """
    target = checked_target(path)
    failure: Exception | None = None
    if ranks.global_rank == 0 and background is not None:
        try:
            background.settle()
        except CheckpointError as error:
            failure = error
    temporary = None
    if ranks.global_rank == 0 and failure is None:
        temporary, failure = begin_directory(target)
    name, failure = ranks.broadcast((str(temporary.path) if temporary else "", failure))  # all ranks must reach this
    if failure is not None:
        raise failure
    plain, shards = take_shards(checkpoint, parts)
    plan = _plan(shards, Path(name), ranks)  # all ranks must reach this
    locals_ = {key: _local_part(tensor) for key, tensor in shards.items()}
    plain[SHARDS_KEY] = {"format": FORMAT_VERSION, "parameters": dict(parameters)}
    if tuple(parts) != SHARDED_PARTS:
        plain[SHARDS_KEY]["parts"] = list(parts)
    if background is None:
        _save_now(plan, plain, locals_, target, temporary, ranks)
    else:
        (store,) = ranks.open_stores("sharded", ("sharded",))
        write = partial(_save_in_thread, plan, target, temporary, store, ranks, timeout_s)
        background.begin({"plain": plain if ranks.global_rank == 0 else {}, "locals": locals_}, write, os.fspath(path))


def checked_target(path: str | os.PathLike[str]) -> Path:
    """`path` as a local one that may be written.

    Raises:
        ValueError: `path` is a URL.
        IsADirectoryError: There is a directory that is no checkpoint.
    """
    if is_remote(path):
        raise ValueError(
            f"{os.fspath(path)!r} is a URL, and sharded checkpoints are written to disks that all ranks share. Use a "
            "local path, or state_dict_type='full' (save_distributed_checkpoint=False) for one file."
        )
    target = Path(local_path(path))
    if target.is_dir() and not target.is_symlink() and not is_sharded(target) and any(target.iterdir()):
        raise IsADirectoryError(f"{str(target)!r} is a directory that is no checkpoint. Use another path.")
    return target


def _local_part(tensor: Any) -> Tensor:
    local: Tensor = tensor.to_local()
    return local


# ------------------------------------------------------------------------------------------------- before and after


@dataclass(slots=True)
class TemporaryDirectory:
    """The directory that is being written, and the lock that says so."""

    path: Path
    lock: IO[bytes]

    def remove(self) -> None:
        self.lock.close()
        shutil.rmtree(self.path, ignore_errors=True)


def begin_directory(target: Path) -> tuple[TemporaryDirectory | None, CheckpointError | None]:
    """Make the directory that is renamed to `target` when it is complete; or say why there is none."""
    try:
        make_directory(target.parent)
        remove_leftovers(target.parent)
        path = target.with_name(temporary_name(target.name))
        path.mkdir()
        lock = open(path / LOCK_FILE, "xb")  # noqa: SIM115  held until the directory has its name
        mark_as_written(lock)
        return TemporaryDirectory(path, lock), None
    except OSError as error:
        return None, failed_write(target, str(error))


def failed_write(target: Path, why: str) -> CheckpointError:
    """The error for a checkpoint that could not be written."""
    return CheckpointError(f"The checkpoint {str(target)!r} could not be written: {why}. Earlier ones are untouched.")


def _commit(
    plan: _Plan, plain: dict[str, Any], target: Path, temporary: TemporaryDirectory, parts: list[_Part]
) -> None:
    """Complete the temporary directory and give it its name. On rank 0."""
    failures = [f"rank {rank}: {part.failure}" for rank, part in enumerate(parts) if part.failure]
    if failures:
        raise OSError("; ".join(failures))
    plan.writer.finish(plan.metadata, [part.results for part in parts])
    files = {name: entry for part in parts for name, entry in part.files.items()}
    files[INDEX_FILE] = measure_file(temporary.path / INDEX_FILE)
    complete_directory(plain, files, target, temporary)


def complete_directory(
    plain: dict[str, Any], files: Mapping[str, tuple[int, int]], target: Path, temporary: TemporaryDirectory
) -> None:
    """Write `meta.pt`, with size and checksum of all other files, and give the directory its name. On rank 0."""
    plain[SHARDS_KEY]["files"] = {name: list(entry) for name, entry in sorted(files.items())}
    write_checkpoint(plain, temporary.path / META_FILE)
    os.unlink(temporary.path / LOCK_FILE)
    sync_directory(temporary.path)
    put_in_place(temporary.path, target)
    sync_directory(target.parent)
    temporary.lock.close()


def measure_file(path: Path) -> tuple[int, int]:
    """Size and checksum."""
    crc = size = 0
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_SIZE):
            crc, size = zlib.crc32(chunk, crc), size + len(chunk)
    return size, crc


# --------------------------------------------------------------------------------------------------- who writes what


def _plan(shards: dict[str, Tensor], directory: Path, ranks: Ranks) -> _Plan:
    """Agree on who writes what. All ranks must call it."""
    from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

    rank = ranks.global_rank
    planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    planner.set_up_planner(cast("dict[str, Any]", shards), None, rank == 0)
    writer = _build_writer(directory)
    writer.set_up_storage_writer(rank == 0)
    local = planner.create_local_plan()
    plans, metadata = planner.create_global_plan(ranks.all_gather_object(local))  # all ranks must reach this
    own = planner.finish_plan(writer.prepare_global_plan(plans)[rank])
    return _Plan(writer, planner, own, metadata)


def _build_writer(directory: Path) -> FileSystemWriter:
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.metadata import StorageMeta

    class Writer(FileSystemWriter):
        def storage_meta(self) -> StorageMeta:
            return StorageMeta(save_id=self.save_id)  # the name of the temporary directory is nobody's business

    writer = Writer(directory)
    writer.fs = _summing_filesystem()
    return writer


def _summing_filesystem() -> Any:
    """A filesystem that keeps size and checksum of each file it writes, in `sums`."""
    from torch.distributed.checkpoint.filesystem import FileSystem

    class Summing(FileSystem):
        def __init__(self) -> None:
            self.sums: dict[str, tuple[int, int]] = {}

        @contextmanager
        def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[Any]:
            with open(path, mode) as file:
                if "w" not in mode:
                    yield file
                    return
                stream = SummingFile(file)
                yield stream
                self.sums[os.path.basename(path)] = (stream.size_bytes, stream.crc32)

    return Summing()


class SummingFile:
    """Passes everything on to `file`, which is written from its beginning to its end, and keeps the checksum."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.crc32 = self.size_bytes = 0

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._file.write(view)
        self.crc32, self.size_bytes = zlib.crc32(view, self.crc32), self.size_bytes + len(view)
        return len(view)

    def tell(self) -> int:
        return self.size_bytes

    def flush(self) -> None:
        self._file.flush()

    def fileno(self) -> int:
        self._file.flush()  # order matters: torch asks before it syncs, and forgets what is still in the buffer
        return self._file.fileno()

    def close(self) -> None:
        self._file.close()

    def seekable(self) -> bool:
        return False


def _write_part(plan: _Plan, locals_: dict[str, Tensor]) -> _Part:
    """Write this rank's tensors. Whatever goes wrong is in the answer: the others are waiting for it."""
    plan.planner.lookup_object = lambda index: locals_[index.fqn]  # type: ignore[method-assign]
    try:
        if not os.path.isdir(plan.writer.path):
            raise FileNotFoundError(
                f"{str(plan.writer.path)!r}, which rank 0 has made, is not seen here: ranks must share the disk. Use "
                "state_dict_type='full' (save_distributed_checkpoint=False), which rank 0 writes alone"
            )
        results = plan.writer.write_data(plan.own, plan.planner).wait()
        return _Part(results, dict(plan.writer.fs.sums))  # type: ignore[attr-defined]
    except Exception as error:
        return _Part(failure=f"{type(error).__name__}: {error}")


# ------------------------------------------------------------------------------------------------ now, or in a thread


def _save_now(
    plan: _Plan,
    plain: dict[str, Any],
    locals_: dict[str, Tensor],
    target: Path,
    temporary: TemporaryDirectory | None,
    ranks: Ranks,
) -> None:
    parts = ranks.all_gather_object(_write_part(plan, locals_))  # all ranks must reach this
    failure = _finish(plan, plain, target, temporary, lambda: parts)
    failure = ranks.broadcast(failure)  # all ranks must reach this
    if failure is not None:
        raise failure


def _finish(
    plan: _Plan,
    plain: dict[str, Any],
    target: Path,
    temporary: TemporaryDirectory | None,
    collect: Callable[[], list[_Part]],
) -> CheckpointError | None:
    """On rank 0 commit what `collect` brings, or remove it. On others nothing."""
    if temporary is None:
        return None
    try:
        _commit(plan, plain, target, temporary, collect())
    except (OSError, CheckpointError, ValueError) as error:
        temporary.remove()
        return failed_write(target, str(error).rstrip("."))
    except BaseException:
        temporary.remove()
        raise
    return None


def _save_in_thread(
    plan: _Plan,
    target: Path,
    temporary: TemporaryDirectory | None,
    store: Any,
    ranks: Ranks,
    timeout_s: float,
    staged: dict[str, Any],
) -> None:
    part = _write_part(plan, staged["locals"])
    if temporary is None:
        store.set(str(ranks.global_rank), pickle.dumps(part))
        return
    collect = partial(_collect_parts, part, store, ranks.world_size, timeout_s)
    failure = _finish(plan, staged["plain"], target, temporary, collect)
    if failure is not None:
        raise failure


def _collect_parts(own: _Part, store: Any, world_size: int, timeout_s: float) -> list[_Part]:
    parts, deadline = [own], time.monotonic() + timeout_s
    for rank in range(1, world_size):
        while not store.check([str(rank)]):
            if time.monotonic() > deadline:
                raise OSError(f"rank {rank} has not written its part within {timeout_s:g} s")
            time.sleep(_POLL_S)
        # of this job's own ranks, like every object that they broadcast
        parts.append(pickle.loads(store.get(str(rank))))
        with suppress(Exception):  # not every store can forget
            store.delete_key(str(rank))
    return parts
