"""Where a program reads a tensor's value on the host, which makes the host wait for the device.

Two nets, because neither sees everything. The methods of `Tensor` that return host data are replaced while a block
runs: on a CPU these reads are free and no operator runs for most of them, so this alone lets a test without a GPU see
what will wait on one. Below them a `TorchDispatchMode` sees what Python does not: scalars that torch reads for itself
(``torch.arange(tensor)``, a learning rate that is a tensor) and copies that leave the device (``.to("cpu")``).
"""

from __future__ import annotations

import functools
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_METHODS = (
    "__array__",
    "__bool__",
    "__complex__",
    "__contains__",
    "__float__",
    "__format__",
    "__index__",
    "__int__",
    "__repr__",
    "cpu",
    "equal",
    "is_nonzero",
    "item",
    "numpy",
    "tolist",
)
_OWN_FILE = os.path.abspath(__file__)
_TORCH = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep
_FLUSH = (os.path.join("fulgur", "metrics.py"), "to_host")


@dataclass(frozen=True, slots=True, repr=False)
class HostRead:
    """One read of a tensor on the host.

    Attributes:
        name: What read it: ``"Tensor.item"``, or an operator such as ``"aten::_local_scalar_dense"``.
        stack: The frames that led to it, outermost first.
    """

    name: str
    stack: traceback.StackSummary

    @property
    def frame(self) -> traceback.FrameSummary:
        """The innermost frame that is not torch's."""
        return next((f for f in reversed(self.stack) if not f.filename.startswith(_TORCH)), self.stack[-1])

    @property
    def is_flush(self) -> bool:
        """Whether it is the copy that brings all logged values over at once."""
        frame = self.frame
        return frame.filename.endswith(_FLUSH[0]) and frame.name == _FLUSH[1]

    def __repr__(self) -> str:
        frame = self.frame
        return f"{self.name} at {frame.filename}:{frame.lineno} in {frame.name}: {frame.line}"


@contextmanager
def count_host_reads() -> Iterator[list[HostRead]]:
    """Record where tensors are read on the host: ``.item()``, ``.cpu()``, ``.tolist()``, ``float(t)``, ``if t`` ….

    Reads of CPU tensors count, though they are free: the same program waits on a GPU. ``tensor.to("cpu")`` counts only
    where the tensor really leaves a device, since a batch is moved in the same way. `Tensor` is changed for all
    threads while the block runs; operators that torch runs for itself are seen in this thread only. For eager code:
    what `torch.compile` made runs eagerly in the block.

    Yields:
        The reads, growing as they happen.

    Example:
        >>> with count_host_reads() as reads:
        ...     value = torch.ones(()).item()
        >>> [read.name for read in reads]
        ['Tensor.item']
    """
    reads: list[HostRead] = []
    with _watching(reads.append):
        yield reads


@contextmanager
def forbid_host_reads(*, allow_flush: bool = False) -> Iterator[None]:
    """Raise where a tensor is read on the host; see `count_host_reads` for what counts.

    Args:
        allow_flush: Let pass the one copy that brings the values of ``self.log`` over, every ``log_every_n_steps``
            and at the end of an epoch.

    Raises:
        RuntimeError: A tensor was read. Raised before the read, at its place.
    """

    def refuse(read: HostRead) -> None:
        if not (allow_flush and read.is_flush):
            raise RuntimeError(
                f"{read!r} reads a tensor on the host, where that is forbidden: the host would wait for the device. "
                "Keep the value a tensor; self.log takes tensors as they are."
            )

    with _watching(refuse):
        yield


@contextmanager
def _watching(on_read: Callable[[HostRead], None]) -> Iterator[None]:
    watch = _Watch(on_read)
    own = vars(Tensor)
    originals = {name: own.get(name) for name in _METHODS}
    for name in _METHODS:
        setattr(Tensor, name, watch.wrap(name, getattr(Tensor, name)))
    try:
        with watch:
            yield
    finally:
        for name, original in originals.items():
            if original is None:  # inherited from torch's C class
                delattr(Tensor, name)
            else:
                setattr(Tensor, name, original)


class _Watch(TorchDispatchMode):
    """Reports reads, of which one may be made of several: the outermost is the one reported."""

    def __init__(self, on_read: Callable[[HostRead], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.on_read = on_read
        self.is_reading = False

    def wrap(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def read(*args: Any, **kwargs: Any) -> Any:
            if self.is_reading:
                return method(*args, **kwargs)
            self.is_reading = True
            try:
                self.on_read(HostRead(f"Tensor.{name}", _stack()))
                return method(*args, **kwargs)
            finally:
                self.is_reading = False

        return read

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self.is_reading and _reads(func, args, kwargs):
            self.on_read(HostRead(func.name().partition(".")[0], _stack()))
        return func(*args, **kwargs)


def _reads(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an operator returns host data, or a copy on the host of what lies elsewhere."""
    aten = torch.ops.aten
    if func in (aten._local_scalar_dense.default, aten.equal.default):
        return True
    if func is aten._to_copy.default:
        device = kwargs.get("device")
        return device is not None and device.type == "cpu" and args[0].device.type != "cpu"
    return func is aten.copy_.default and args[0].device.type == "cpu" and args[1].device.type != "cpu"


def _stack() -> traceback.StackSummary:
    frames = traceback.walk_stack(sys._getframe(1))
    found = traceback.StackSummary.extract(frames, lookup_lines=False)
    return traceback.StackSummary.from_list([f for f in reversed(found) if f.filename != _OWN_FILE])
