"""What is done to a whole batch, whatever its nesting: move it, cast it, measure it.

The first two return the very object they were given when nothing in it changes, and the common batches (a tensor, or
a flat list, tuple or dict of tensors) cost one Python call.
"""

from __future__ import annotations

import copy
from collections import UserDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fulgur.errors import PossibleUserWarning
from fulgur.rank import rank_zero_warn

# Data that holds no tensor, told apart by exact type before anything slower is asked.
_ATOMS = frozenset((int, float, bool, complex, str, bytes, type(None)))

# To the host, a copy that does not wait hands out memory that is not written yet; on mps it has the same hazard.
_ALWAYS_WAIT = ("cpu", "mps")

_CPU = torch.device("cpu")

_has_warned_of_sizes = False


def move_to_device(batch: Any, device: torch.device | str, *, non_blocking: bool = False) -> Any:
    """Move every tensor in `batch` to `device`.

    Walks mappings, lists, tuples, named tuples and dataclasses, and calls ``.to(device)`` of anything else that has
    it. Sets, strings, numbers and unknown objects are left alone. The structure given is never changed.

    Args:
        batch: What a loader yields.
        device: Where to. A `torch.device` is faster than a string.
        non_blocking: Do not wait for copies from pinned memory. Ignored for copies to the CPU and to mps.

    Returns:
        The batch on `device`: the same object if nothing had to move, a new structure of the same types otherwise.
    """
    kind = type(batch)
    if kind is Tensor:
        if batch.device == device:
            return batch
        items: Any = (batch,)
    elif kind is dict:
        items = batch.values()
    elif kind is list or kind is tuple:
        items = batch
    else:
        return batch if kind in _ATOMS else _move_other(batch, device, non_blocking)

    for item in items:
        item_kind = type(item)
        if item_kind is Tensor:
            if item.device != device:
                break
        elif item_kind not in _ATOMS:
            break
    else:
        return batch

    wait_free = non_blocking and torch.device(device).type not in _ALWAYS_WAIT
    moved = []
    is_changed = False
    for item in items:
        item_kind = type(item)
        if item_kind is Tensor:
            result = item.to(device, non_blocking=wait_free)
        elif item_kind in _ATOMS:
            result = item
        else:
            result = move_to_device(item, device, non_blocking=non_blocking)
        is_changed |= result is not item
        moved.append(result)
    if not is_changed:
        return batch
    if kind is list:
        return moved
    if kind is dict:
        return dict(zip(batch, moved, strict=True))
    return moved[0] if kind is Tensor else tuple(moved)


def mover(device: torch.device) -> Callable[[Any], Any]:
    """`move_to_device` to `device`, for every batch of a run."""
    return move_to_cpu if device.type == "cpu" else partial(move_to_device, device=device, non_blocking=True)


def move_to_cpu(batch: Any) -> Any:
    """`move_to_device` to the CPU, where nearly every batch is already: half the cost for a flat one."""
    kind = type(batch)
    items = batch if kind is tuple or kind is list else batch.values() if kind is dict else (batch,)
    for item in items:
        if type(item) is not Tensor or not item.is_cpu:
            return move_to_device(batch, _CPU)
    return batch


def cast_floating(batch: Any, dtype: torch.dtype) -> Any:
    """Cast every floating-point tensor in `batch` to `dtype`; integers, booleans and complex numbers stay.

    Walks what `move_to_device` walks, but looks into no object that merely has ``.to``.

    Returns:
        The batch: the same object if nothing had to be cast.
    """
    kind = type(batch)
    if kind is Tensor:
        return batch.to(dtype) if batch.is_floating_point() and batch.dtype is not dtype else batch
    if kind in _ATOMS:
        return batch
    if kind is dict:
        items: Any = batch.values()
    elif kind is list or kind is tuple:
        items = batch
    else:
        return _cast_other(batch, dtype)

    cast = []
    is_changed = False
    for item in items:
        item_kind = type(item)
        if item_kind is Tensor:
            # A cast to the same type would change nothing, and cost ten times as much as this test.
            result = item.to(dtype) if item.is_floating_point() and item.dtype is not dtype else item
        elif item_kind in _ATOMS:
            result = item
        else:
            result = cast_floating(item, dtype)
        is_changed |= result is not item
        cast.append(result)
    if not is_changed:
        return batch
    if kind is list:
        return cast
    return dict(zip(batch, cast, strict=True)) if kind is dict else tuple(cast)


def find_batch_size(batch: Any) -> int | None:
    """Size of the first dimension of the first tensor in `batch`, depth first.

    Walks mappings (by value), dataclasses and other iterables, but no strings and no iterators, which it would use
    up. A tensor without dimensions says nothing about the batch and counts, as 1, only if there is no other.
    A `PackedSequence` has the number of its sequences. Warns once in a process when tensors disagree.

    Returns:
        The number of samples, or None if there is no tensor.
    """
    if type(batch) is Tensor:
        return batch.size(0) if batch.dim() else 1
    found: int | None = None
    has_scalar = False
    stack: list[Iterator[Any]] = [iter((batch,))]
    while stack:
        for item in stack[-1]:
            kind = type(item)
            if kind in _ATOMS:
                continue
            if kind is Tensor or isinstance(item, Tensor):
                if not item.dim():
                    has_scalar = True
                    continue
                size = item.size(0)
            elif kind is list or kind is tuple:
                stack.append(iter(item))
                break
            elif kind is dict:
                stack.append(iter(item.values()))
                break
            elif kind is PackedSequence:
                size = _count_sequences(item)
            else:
                stack.append(_parts(item))
                break
            if found is None:
                found = size
            elif size != found and not _has_warned_of_sizes:
                _warn_of_sizes(found, size)
        else:
            stack.pop()
    return 1 if found is None and has_scalar else found


def _move_other(batch: Any, device: torch.device | str, non_blocking: bool) -> Any:
    if isinstance(batch, (Tensor, PackedSequence)):
        wait_free = non_blocking and torch.device(device).type not in _ALWAYS_WAIT
        # Both take a string too; the stubs of PackedSequence do not know it.
        return batch.to(device, non_blocking=wait_free)  # type: ignore[arg-type]
    if isinstance(batch, type):
        return batch
    if callable(getattr(batch, "to", None)):
        moved = batch.to(device)
        # A `to` that works in place may return nothing.
        return batch if moved is None else moved
    return _map_parts(batch, lambda part: move_to_device(part, device, non_blocking=non_blocking))


def _cast_other(batch: Any, dtype: torch.dtype) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(dtype) if batch.is_floating_point() else batch
    if isinstance(batch, PackedSequence):
        return batch.to(dtype=dtype) if batch.data.is_floating_point() else batch
    return _map_parts(batch, lambda part: cast_floating(part, dtype))


def _map_parts(batch: Any, fn: Callable[[Any], Any]) -> Any:
    """`batch` with `fn` applied to its parts; `batch` itself if it has none or none changes."""
    if isinstance(batch, Mapping):
        return _map_mapping(batch, fn)
    if isinstance(batch, (list, tuple)):
        parts = [fn(part) for part in batch]
        if all(new is old for new, old in zip(parts, batch, strict=True)):
            return batch
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    if is_dataclass(batch) and not isinstance(batch, type):
        return _map_fields(batch, fn)
    return batch


def _map_mapping(batch: Mapping[Any, Any], fn: Callable[[Any], Any]) -> Any:
    changed = {}
    for key, old in batch.items():
        new = fn(old)
        if new is not old:
            changed[key] = new
    if not changed:
        return batch
    if isinstance(batch, (dict, UserDict)):
        # A copy keeps what the constructor may not take: a default factory, attributes.
        rebuilt: Any = copy.copy(batch)
        rebuilt.update(changed)
        return rebuilt
    try:
        return type(batch)({**batch, **changed})  # type: ignore[call-arg]
    except TypeError as error:
        raise TypeError(
            f"A batch of type {type(batch).__name__} cannot be rebuilt as {type(batch).__name__}(dict). Give the class "
            "a method `to(self, device)`, or override `transfer_batch_to_device`."
        ) from error


def _map_fields(batch: Any, fn: Callable[[Any], Any]) -> Any:
    rebuilt = None
    for field in fields(batch):
        if not hasattr(batch, field.name):
            continue
        old = getattr(batch, field.name)
        new = fn(old)
        if new is not old:
            rebuilt = copy.copy(batch) if rebuilt is None else rebuilt
            # Frozen dataclasses refuse plain assignment.
            object.__setattr__(rebuilt, field.name, new)
    return batch if rebuilt is None else rebuilt


def _parts(item: Any) -> Iterator[Any]:
    """What `find_batch_size` looks into, for all but the plain containers."""
    if isinstance(item, Mapping):
        return iter(item.values())
    if is_dataclass(item) and not isinstance(item, type):
        return iter([getattr(item, field.name) for field in fields(item) if hasattr(item, field.name)])
    is_text_or_array = isinstance(item, (str, bytes, bytearray, type)) or hasattr(item, "__array__")
    if isinstance(item, Iterable) and not isinstance(item, Iterator) and not is_text_or_array:
        return iter(item)
    return iter(())


def _count_sequences(packed: PackedSequence) -> int:
    if packed.sorted_indices is not None:
        return packed.sorted_indices.size(0)
    # Lies on the CPU by contract: does not wait.
    return int(packed.batch_sizes[0])


def _warn_of_sizes(first: int, other: int) -> None:
    global _has_warned_of_sizes
    _has_warned_of_sizes = True
    rank_zero_warn(
        f"The tensors of a batch differ in their first dimension ({first} and {other}), so the batch size is a guess: "
        f"{first}, from the first tensor. Say it with `self.log(..., batch_size=batch_size)`.",
        PossibleUserWarning,
    )
