"""Copies of a run's tensors on the host, so that training goes on while they are written."""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

_UNCHANGING = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)
_SMALL_BYTES = 1 << 14  # below, looking for memory to use again costs more than getting some
_LARGE_BYTES = 1 << 23  # from here on a second thread is worth its start


class HostStage:
    """Takes copies into memory that is used again for the next ones: pinned where they come from CUDA.

    What shares memory shares it in the copy too, so the file has the size it would have without. A copy from CUDA is
    queued behind the steps before it and does not hold up the host.
    """

    def __init__(self) -> None:
        self._free: dict[tuple[int, bool], list[torch.UntypedStorage]] = defaultdict(list)
        self._in_use: list[tuple[tuple[int, bool], torch.UntypedStorage]] = []
        self._copied: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}
        self._events: dict[torch.device, torch.cuda.Event] = {}
        self._bytes_to_copy = 0
        self._to_copy: list[tuple[Any, Any]] = []  # target and source, tensors or storages of the host

    def copy(self, value: Any) -> Any:
        """`value` as it is at this moment, in new containers, with its tensors on the host.

        Tensors may still be on their way: see `wait`.
        """
        self._to_copy.clear()
        self._bytes_to_copy = 0
        with torch.no_grad():
            staged = self._copy(value)
        _copy_all(self._to_copy, n_threads=2 if self._bytes_to_copy >= _LARGE_BYTES else 1)
        self._to_copy.clear()
        for device, event in self._events.items():
            event.record(torch.cuda.current_stream(device))
        return staged

    def wait(self) -> None:
        """Wait until all copies are there; from any thread."""
        for event in list(self._events.values()):
            event.synchronize()  # waits for the device

    def forget_sources(self) -> None:
        """From now on copy what was copied before anew: it may have changed."""
        self._copied.clear()

    def take_back(self) -> None:
        """Use the memory of all copies again; nobody may need them any more."""
        self._copied.clear()
        self._events.clear()
        self._free.clear()  # order matters: what the last copies had no use for goes
        for key, memory in self._in_use:
            self._free[key].append(memory)
        self._in_use.clear()

    def release(self) -> None:
        """Give the memory back to the system."""
        self.take_back()
        self._free.clear()

    def _copy(self, value: Any) -> Any:
        kind = type(value)
        if kind in _UNCHANGING:
            return value
        copy_one = _CONTAINERS.get(kind)
        if copy_one is not None:
            return copy_one(value, self._copy)
        if isinstance(value, Tensor):
            return self._copy_any_tensor(value)
        return copy.deepcopy(value)

    def _copy_any_tensor(self, tensor: Tensor) -> Tensor:
        kind = type(tensor)
        if kind is Tensor and _is_plain(tensor):
            return self._copy_tensor(tensor)
        if kind is torch.nn.Parameter and _is_plain(tensor):
            return torch.nn.Parameter(self._copy_tensor(tensor.detach()), requires_grad=tensor.requires_grad)
        is_here = tensor.device.type in ("cpu", "meta")
        return copy.deepcopy(tensor) if is_here else tensor.cpu()  # waits for the device

    def _copy_tensor(self, tensor: Tensor) -> Tensor:
        source = tensor.untyped_storage()
        found = self._copied.get(source._cdata)
        if found is not None:
            memory = found[1]
        else:
            memory = self._find_memory(source)
            # The source is kept, for its address stands for it.
            self._copied[source._cdata] = (source, memory)
        staged = torch.empty(0, dtype=tensor.dtype)
        staged.set_(memory, tensor.storage_offset(), tensor.size(), tensor.stride())
        if found is None:
            is_cuda = tensor.is_cuda
            is_whole = tensor.nbytes == source.nbytes() and tensor.is_contiguous()
            # Tensors are a fifth faster than their bytes.
            pair: tuple[Any, Any] = (staged, tensor) if is_whole else (memory, source)
            if not is_cuda:
                self._to_copy.append(pair)
                self._bytes_to_copy += source.nbytes()
            else:
                pair[0].copy_(pair[1], non_blocking=True)
                self._events.setdefault(tensor.device, torch.cuda.Event())
        return staged.requires_grad_() if tensor.requires_grad else staged

    def _find_memory(self, source: torch.UntypedStorage) -> torch.UntypedStorage:
        num_bytes, is_pinned = source.nbytes(), source.device.type == "cuda"
        if num_bytes < _SMALL_BYTES and not is_pinned:
            return _allocate(num_bytes, is_pinned=False)
        key = (num_bytes, is_pinned)
        free = self._free.get(key)
        memory = free.pop() if free else _allocate(num_bytes, is_pinned=is_pinned)
        self._in_use.append((key, memory))
        return memory


def _copy_all(pairs: list[tuple[Any, Any]], *, n_threads: int) -> None:
    """Copy sources to targets. A second thread saves up to two fifths of the time: one core leaves bandwidth unused."""
    left = iter(pairs)
    errors: list[BaseException] = []

    def work() -> None:
        try:
            with torch.no_grad():
                for target, source in left:
                    target.copy_(source)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, name="fulgur-copy") if n_threads > 1 else None
    if thread is not None:
        with suppress(RuntimeError):  # the interpreter is on its way out and starts no more threads
            thread.start()
    work()
    if thread is not None and thread.ident is not None:
        thread.join()
    if errors:
        raise errors[0]


def _allocate(num_bytes: int, *, is_pinned: bool) -> torch.UntypedStorage:
    return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=is_pinned).untyped_storage()


def _is_plain(tensor: Tensor) -> bool:
    """Whether the tensor is nothing but a view of memory that can be copied."""
    return (
        tensor.layout is torch.strided
        and tensor.device.type != "meta"
        and not (tensor.is_quantized or tensor.is_conj() or tensor.is_neg() or tensor.__dict__)
    )


def _copy_dict(value: Any, copy_item: Callable[[Any], Any]) -> Any:
    if type(value) is dict:
        return {key: copy_item(item) for key, item in value.items()}
    copied = copy.copy(value)  # with its attributes, such as `_metadata` of a state_dict
    for key, item in value.items():
        copied[key] = copy_item(item)
    return copied


_CONTAINERS: dict[type, Callable[[Any, Callable[[Any], Any]], Any]] = {
    dict: _copy_dict,
    OrderedDict: _copy_dict,
    list: lambda value, copy_item: [copy_item(item) for item in value],
    tuple: lambda value, copy_item: tuple(copy_item(item) for item in value),
}
