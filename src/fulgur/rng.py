"""Random generators: seeding all of them, taking their states and giving them back.

The generators are Python's, NumPy's (where NumPy is loaded), torch's and those of the accelerators in use.
"""

from __future__ import annotations

import _random
import ctypes
import operator
import os
import random
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

MAX_SEED = 2**32 - 1
"""Largest seed that every generator takes."""

_SEED_VARIABLE = "PL_GLOBAL_SEED"
_WORKERS_VARIABLE = "PL_SEED_WORKERS"

_python_generator: Any = random.getstate.__self__  # type: ignore[attr-defined]
_MT19937_BYTES = 4 * 624 + 4  # its words, and the position in them
_numpy_seen: tuple[bytes, dict[str, Any]] | None = None
_python_address: int | None = None
_python_seen: tuple[bytes, tuple[Any, ...]] | None = None


def seed_everything(seed: int | None = None, workers: bool = False, verbose: bool = True) -> int:
    """Seed Python, NumPy and torch, on the CPU and on every accelerator.

    The seed is also put into the environment (``PL_GLOBAL_SEED``), so that processes started later begin from it.

    Args:
        seed: 0 to 2**32 - 1. None takes ``PL_GLOBAL_SEED`` from the environment, or 0.
        workers: Whether the Trainer also gives each `DataLoader` worker seeds of its own, unless the loader has a
            ``worker_init_fn``.
        verbose: Whether to say which seed is used, once, on rank 0.

    Returns:
        The seed used.

    Raises:
        ValueError: The seed is not a whole number in range.

    Example:
        >>> seed_everything(7, verbose=False)
        7
    """
    if seed is None:
        chosen, source = os.environ.get(_SEED_VARIABLE) or 0, f"{_SEED_VARIABLE} in the environment"
    else:
        chosen, source = seed, "seed"
    chosen = _checked_seed(chosen, source)
    if verbose:
        from fulgur.rank import rank_zero_info

        rank_zero_info(f"Seed set to {chosen}")
    os.environ[_SEED_VARIABLE] = str(chosen)
    os.environ[_WORKERS_VARIABLE] = str(int(workers))
    _seed_generators(chosen)
    return chosen


def reset_seed() -> None:
    """Seed all generators again with the last `seed_everything`; does nothing if there was none."""
    seed = os.environ.get(_SEED_VARIABLE)
    if seed:
        _seed_generators(_checked_seed(seed, f"{_SEED_VARIABLE} in the environment"))


def should_seed_workers() -> bool:
    """Whether `seed_everything` was called with ``workers=True``, here or in the process that started this one."""
    return os.environ.get(_WORKERS_VARIABLE, "0") == "1"


def seed_worker(worker_id: int, rank: int = 0) -> None:
    """Seed the generators of a `DataLoader` worker; a ``worker_init_fn``.

    Workers of one loader, of several ranks and of different epochs get seeds that have nothing in common.

    Args:
        worker_id: Index of the worker in its loader.
        rank: Global rank of the process that owns the loader.
    """
    import hashlib

    base = torch.initial_seed() - worker_id
    digest = hashlib.blake2b(f"{base}:{worker_id}:{rank}".encode(), digest_size=24).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little"))
    random.seed(int.from_bytes(digest[8:16], "little"))
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed([int.from_bytes(digest[i : i + 4], "little") for i in (16, 20)])


def capture_rng(include_cuda: bool = True) -> dict[str, Any]:
    """The state of every generator, as plain data and tensors, ready for a checkpoint.

    Args:
        include_cuda: Whether to take the generators of all CUDA devices too. Waits for the devices.

    Returns:
        A dict with the keys ``"python"`` and ``"torch"`` and, where there is such a generator, ``"numpy"``,
        ``"cuda"`` and ``"mps"``.
    """
    return plain_rng(snapshot_rng(include_cuda))


def snapshot_rng(include_cuda: bool = True) -> dict[str, Any]:
    """The same as `capture_rng` in the form the generators give it, which is cheaper: for states that few will need."""
    state: dict[str, Any] = {"python": _python_state(), "torch": torch.get_rng_state()}
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        state["numpy"] = _numpy_state(numpy)
    # An untouched CUDA is left alone: asking would start it, and a process that started it cannot fork.
    if include_cuda and torch.cuda.is_initialized():  # type: ignore[no-untyped-call, unused-ignore]
        state["cuda"] = torch.cuda.get_rng_state_all()  # waits for the device
    if include_cuda and torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    return state


def _python_state() -> tuple[Any, ...]:
    """The state of Python's global generator, which takes 25 µs: for one that has not moved, the state seen last."""
    global _python_seen, _python_address
    if _python_address is None:
        _python_address = _find_python_words()
    if not _python_address:
        return random.getstate()
    words = ctypes.string_at(_python_address, _MT19937_BYTES)
    if _python_seen is None or _python_seen[0] != words or _python_seen[1][2] != _python_generator.gauss_next:
        _python_seen = (words, random.getstate())
    return _python_seen[1]


def _find_python_words() -> int:
    """Where Python's generator has its position and its words: behind the header, in CPython; 0 if they are not."""
    header = object.__basicsize__
    if sys.implementation.name != "cpython" or _random.Random.__basicsize__ < header + _MT19937_BYTES:
        return 0
    address = id(_python_generator) + header
    position, *words = struct.unpack("i624I", ctypes.string_at(address, _MT19937_BYTES))
    return address if random.getstate()[1] == (*words, position) else 0


def _numpy_state(numpy: Any) -> Any:
    """The state of NumPy's global generator, which takes NumPy 35 µs: for one that has not moved, the state seen last.

    Equal words mean an equal state unless a second normal number was kept for later, which leaves the words alone.
    """
    global _numpy_seen
    find_generator = getattr(numpy.random, "get_bit_generator", None)  # numpy < 1.24 has none
    generator = find_generator() if find_generator is not None else None
    if not isinstance(generator, numpy.random.MT19937):
        return numpy.random.get_state(legacy=False)
    words = ctypes.string_at(generator.ctypes.state_address, _MT19937_BYTES)
    if _numpy_seen is None or _numpy_seen[0] != words or _numpy_seen[1]["has_gauss"]:
        _numpy_seen = (words, numpy.random.get_state(legacy=False))
    return _numpy_seen[1]


def plain_rng(state: dict[str, Any]) -> dict[str, Any]:
    """What `snapshot_rng` gave, as plain data and tensors; what is plain already stays as it is."""
    return state | {"numpy": _plain(state["numpy"])} if "numpy" in state else state


def restore_rng(state: dict[str, Any]) -> None:
    """Give every generator the state that `capture_rng` or `snapshot_rng` took.

    Generators that this process does not have are left out, and so are devices beyond those it has.
    """
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    torch.set_rng_state(state["torch"].cpu())
    numpy = sys.modules.get("numpy")
    if numpy is not None and "numpy" in state:
        global _numpy_seen
        _numpy_seen = None
        numpy.random.set_state(state["numpy"])
    if "cuda" in state and torch.cuda.is_available():
        for device, device_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(device_state.cpu(), device)
    if "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"].cpu())


def is_same_rng(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether two results of `snapshot_rng` without accelerators are the same state."""
    if first["python"] != second["python"] or not torch.equal(first["torch"], second["torch"]):
        return False
    one, other = first.get("numpy"), second.get("numpy")
    return one is other or (one is not None and other is not None and _plain(one) == _plain(other))


def fold_rng(rank: int) -> None:
    """Let torch's generators draw other numbers on every rank, though they were equal. Rank 0 keeps what it has.

    Args:
        rank: Data rank: ranks that see the same data draw the same.
    """
    if rank == 0:
        return
    import hashlib

    tensor = torch.get_rng_state()
    state = ctypes.string_at(tensor.data_ptr(), tensor.nbytes)
    digest = hashlib.blake2b(state + str(rank).encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "little"))


@contextmanager
def isolate_rng(include_cuda: bool = True) -> Iterator[None]:
    """Leave every generator as it was, whatever is drawn inside.

    Args:
        include_cuda: Whether to keep the generators of CUDA devices too.
    """
    state = snapshot_rng(include_cuda)
    try:
        yield
    finally:
        restore_rng(state)


def _checked_seed(seed: Any, source: str) -> int:
    try:
        value = int(seed) if isinstance(seed, str) else operator.index(seed)
    except (TypeError, ValueError):
        raise ValueError(f"{source}={seed!r} is not a whole number. Give one from 0 to {MAX_SEED}.") from None
    if not 0 <= value <= MAX_SEED:
        raise ValueError(f"{source}={value} is out of range. Give a seed from 0 to {MAX_SEED}.")
    return value


def _seed_generators(seed: int) -> None:
    random.seed(seed)
    torch.manual_seed(seed)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(seed)


def _plain(value: Any) -> Any:
    """`value` with its NumPy arrays and numbers as lists and Python numbers."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value.tolist() if hasattr(value, "tolist") else value
