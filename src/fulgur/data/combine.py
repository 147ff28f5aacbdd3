"""Several loaders as one: in step with each other, or one after the other.

What counts as several loaders is decided by `is_loader_collection`; `flatten_loaders` and `map_loaders` walk such a
collection, and `CombinedLoader` iterates over it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from itertools import chain, count, islice, repeat, zip_longest
from typing import Any, Literal, get_args

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fulgur.errors import MisconfigurationException, nearest_name

Mode = Literal["min_size", "max_size_cycle", "max_size", "sequential"]
Item = tuple[Any, int, int]

_END = object()


class CombinedLoader:
    """Iterate over several loaders as if they were one.

    Each item is ``(batch, batch_idx, dataloader_idx)``. In the three parallel modes `batch` has the structure of
    `iterables` with one batch in the place of each loader, and `dataloader_idx` is 0. In mode ``"sequential"`` the
    batches come as they are, and `batch_idx` counts within the loader `dataloader_idx`.

    Iterating costs no Python call per batch, except for one in mode ``"max_size_cycle"`` and one for nested
    structures.

    Args:
        iterables: A loader, or lists, tuples, dicts and dataclasses of loaders, nested as you like. A list is
            several loaders if its items are loaders or lists; a list of batches is one loader
            (see `is_loader_collection`).
        mode: ``"min_size"`` ends with the shortest loader. ``"max_size_cycle"`` ends when every loader has ended
            once, and starts the shorter ones anew. ``"max_size"`` ends with the longest and gives None for the
            others. ``"sequential"`` runs one after the other.

    Attributes:
        iterables: The loaders in the structure they were given in.
        limits: Most batches to take from each loader, in mode ``"sequential"``. None takes all. One number applies
            to every loader.

    Raises:
        ValueError: `mode` is not one of the four.

    Example:
        >>> for batch, batch_idx, dataloader_idx in CombinedLoader({"a": [1, 2], "b": [3, 4, 5]}):
        ...     print(batch, batch_idx)
        {'a': 1, 'b': 3} 0
        {'a': 2, 'b': 4} 1
    """

    def __init__(self, iterables: Any, mode: Mode = "min_size") -> None:
        if mode not in get_args(Mode):
            raise ValueError(
                f"mode={mode!r} is not a way to combine loaders.{nearest_name(str(mode), get_args(Mode))} "
                f"Use one of {', '.join(map(repr, get_args(Mode)))}."
            )
        self.iterables = iterables
        self._mode: Mode = mode
        self._is_collection = is_loader_collection(iterables) or _is_list_of_lists(iterables)
        self._flattened = _flatten_children(iterables) if self._is_collection else [iterables]
        self._limits: list[int | float] | None = None
        self._iterator: Iterator[Item] | None = None

    @classmethod
    def of(cls, source: Any, mode: Mode) -> CombinedLoader:
        """`source` itself if it is a CombinedLoader, or else one over it in `mode`.

        A list of lists of tensors is taken as one loader here, whose batches are lists; the constructor, whose
        purpose is to combine, takes it as several.
        """
        if isinstance(source, CombinedLoader):
            return source
        combined = cls(source, mode)
        if combined._is_collection and not is_loader_collection(source):
            combined._is_collection, combined._flattened = False, [source]
        return combined

    @property
    def mode(self) -> Mode:
        """How the loaders are combined."""
        return self._mode

    @property
    def flattened(self) -> list[Any]:
        """The loaders, depth first. Assign a list of the same length to exchange them; `iterables` follows."""
        return self._flattened

    @flattened.setter
    def flattened(self, loaders: Sequence[Any]) -> None:
        if len(loaders) != len(self._flattened):
            raise ValueError(f"flattened has {len(self._flattened)} loaders; got {len(loaders)}. Give one for each.")
        remaining = iter(loaders)
        if self._is_collection:
            self.iterables = _map_children(self.iterables, lambda _: next(remaining))
        else:
            self.iterables = loaders[0]
        self._flattened = list(loaders)
        self.reset()

    @property
    def limits(self) -> list[int | float] | None:
        """Most batches to take from each loader, in mode ``"sequential"``; None takes all."""
        return self._limits

    @limits.setter
    def limits(self, limits: int | float | Sequence[int | float] | None) -> None:
        n_loaders = len(self._flattened)
        if isinstance(limits, (int, float)):
            limits = [limits] * n_loaders
        if limits is not None and len(limits) != n_loaders:
            raise ValueError(f"limits={list(limits)} has {len(limits)} values for {n_loaders} loaders. Give one each.")
        self._limits = None if limits is None else list(limits)

    def reset(self) -> None:
        """Forget a running iteration; worker processes of its loaders end with it, unless they are persistent."""
        self._iterator = None

    def __iter__(self) -> Iterator[Item]:
        self.reset()
        self._iterator = self._build_iterator()
        return self._iterator

    def __next__(self) -> Item:
        if self._iterator is None:
            raise RuntimeError("next() of a CombinedLoader that is not being iterated. Call iter() on it first.")
        return next(self._iterator)

    def __len__(self) -> int:
        """Number of items of one pass.

        Raises:
            TypeError: One of the loaders has no length.
        """
        lengths = [_length(loader, idx) for idx, loader in enumerate(self._flattened)]
        if self._mode == "sequential":
            return sum(int(min(n, m)) for n, m in zip(lengths, self._limits or repeat(math.inf), strict=False))
        if self._mode == "min_size":
            return min(lengths, default=0)
        return max(lengths, default=0)

    def __repr__(self) -> str:
        return f"CombinedLoader({self.iterables!r}, mode={self._mode!r})"

    def _build_iterator(self) -> Iterator[Item]:
        if self._mode == "sequential":
            limits = self._limits or repeat(math.inf)
            return chain.from_iterable(map(_one_loader, self._flattened, count(), limits))
        if not self._is_collection:
            return zip(self._flattened[0], count(), repeat(0), strict=False)
        return zip(_rebuilt(self.iterables, self._columns()), count(), repeat(0), strict=False)

    def _columns(self) -> Iterator[tuple[Any, ...]]:
        if self._mode == "max_size_cycle":
            return _cycle_until_all_ended(self._flattened)
        if self._mode == "max_size":
            return zip_longest(*self._flattened)
        return zip(*self._flattened, strict=False)


def is_loader_collection(source: Any) -> bool:
    """Whether `source` holds several loaders, as opposed to being one loader.

    The rule, for an object and, once it is a collection, for each of its items:

    1. A `DataLoader` or `CombinedLoader` is one loader. So is any other iterable that is not a list, a tuple, a
       mapping or a dataclass without ``__iter__``: a generator, a ``range``, a `Dataset`, your own class.
    2. A container with a `DataLoader` or `CombinedLoader` anywhere in it is a collection.
    3. A list or tuple is a collection if every leaf in it is an iterable that yields batches. Tensors, arrays,
       anything with ``.to``, strings, numbers, sets and None are data: a list of tensors, of ``(tensor, tensor)``
       pairs or of dicts of tensors is one loader, and each item is a batch.
    4. A mapping or dataclass is a collection if every value is such an iterable, a list or tuple, or a collection:
       iterating over a dict would only give its keys. A dict of tensors is neither; it is a batch.
    5. An empty list or tuple is a collection of no loaders.

    Example:
        >>> batch = torch.zeros(2, 3)
        >>> is_loader_collection([batch, batch]), is_loader_collection([DataLoader(batch), [batch, batch]])
        (False, True)
    """
    if not _is_container(source):
        return False
    leaves = list(_leaves(source))
    if any(isinstance(leaf, (DataLoader, CombinedLoader)) for leaf in leaves):
        return True
    if isinstance(source, (list, tuple)):
        return all(map(_yields_batches, leaves))
    return all(
        isinstance(child, (list, tuple)) or _yields_batches(child) or is_loader_collection(child)
        for child in _children(source)
    )


def flatten_loaders(source: Any) -> list[Any]:
    """The loaders of `source`, depth first; `source` alone if it is one loader. A CombinedLoader counts as one."""
    return _flatten_children(source) if is_loader_collection(source) else [source]


def map_loaders(source: Any, fn: Callable[[Any], Any]) -> Any:
    """`source` with each loader replaced by ``fn(loader)``, in a new structure of the same types."""
    return _map_children(source, fn) if is_loader_collection(source) else fn(source)


def _flatten_children(collection: Any) -> list[Any]:
    return [loader for child in _children(collection) for loader in flatten_loaders(child)]


def _map_children(collection: Any, fn: Callable[[Any], Any]) -> Any:
    return _with_children(collection, [map_loaders(child, fn) for child in _children(collection)])


def _is_list_of_lists(source: Any) -> bool:
    return isinstance(source, (list, tuple)) and all(
        isinstance(item, list) or _yields_batches(item) or is_loader_collection(item) for item in source
    )


def _is_container(x: Any) -> bool:
    return isinstance(x, (list, tuple, Mapping)) or (_is_record(x) and not hasattr(x, "__iter__"))


def _is_record(x: Any) -> bool:
    return is_dataclass(x) and not isinstance(x, type)


def _children(container: Any) -> list[Any]:
    if isinstance(container, Mapping):
        return list(container.values())
    if _is_record(container):
        return [getattr(container, field.name) for field in fields(container)]
    return list(container)


def _with_children(container: Any, children: list[Any]) -> Any:
    """A copy of `container` that holds `children` instead of its own."""
    if isinstance(container, Mapping):
        items = dict(zip(container, children, strict=True))
        if not isinstance(container, dict):
            return items
        rebuilt: Any = copy.copy(container)
        rebuilt.update(items)
        return rebuilt
    if _is_record(container):
        rebuilt = copy.copy(container)
        for field, child in zip(fields(container), children, strict=True):
            object.__setattr__(rebuilt, field.name, child)
        return rebuilt
    if hasattr(container, "_fields"):
        return type(container)(*children)
    return type(container)(children)


def _leaves(x: Any) -> Iterator[Any]:
    if hasattr(x, "to") or not _is_container(x):
        yield x
    else:
        for child in _children(x):
            yield from _leaves(child)


def _yields_batches(x: Any) -> bool:
    """Whether `x` is an iterable of batches rather than data."""
    if isinstance(x, (DataLoader, CombinedLoader)):
        return True
    if _is_container(x) or isinstance(x, (Tensor, str, bytes, bytearray, set, frozenset, type)):
        return False
    if hasattr(x, "to") or hasattr(x, "__array__"):
        return False
    return isinstance(x, Dataset) or hasattr(x, "__iter__")


def _length(loader: Any, idx: int) -> int:
    try:
        return len(loader)
    except (TypeError, NotImplementedError) as error:
        raise TypeError(
            f"A CombinedLoader has a length only if each of its loaders has one; "
            f"loader {idx} ({type(loader).__name__}) has none."
        ) from error


def _one_loader(loader: Iterable[Any], idx: int, limit: int | float) -> Iterator[Item]:
    # With a limit of 0 the loader is not even started: that could start worker processes.
    if limit == 0:
        return iter(())
    batches = iter(loader) if limit == math.inf else islice(loader, int(limit))
    return zip(batches, count(), repeat(idx), strict=False)


def _rebuilt(structure: Any, columns: Iterator[tuple[Any, ...]]) -> Iterator[Any]:
    """Turn tuples with one batch for each loader into the structure of `structure`."""
    kind = type(structure)
    is_flat = len(_flatten_children(structure)) == len(_children(structure)) and not any(
        map(is_loader_collection, _children(structure))
    )
    if is_flat and kind is tuple:
        return columns
    if is_flat and kind is list:
        return map(list, columns)
    if is_flat and kind is dict:
        return map(dict, map(zip, repeat(tuple(structure)), columns))
    return map(_rebuilder(structure), columns)


def _rebuilder(structure: Any) -> Callable[[tuple[Any, ...]], Any]:
    def rebuild(batches: tuple[Any, ...]) -> Any:
        remaining = iter(batches)
        return _map_children(structure, lambda _: next(remaining))

    return rebuild


def _cycle_until_all_ended(loaders: list[Iterable[Any]]) -> Iterator[tuple[Any, ...]]:
    iterators = [iter(loader) for loader in loaders]
    has_ended = [getattr(loader, "n_passes", 0) > 1 for loader in loaders]  # a resumed epoch may have come round
    while loaders:
        batches = [next(iterator, _END) for iterator in iterators]
        # Look at all loaders before any is started anew: after the last step none needs to be.
        for idx, batch in enumerate(batches):
            has_ended[idx] |= batch is _END
        if all(has_ended):
            return
        for idx, batch in enumerate(batches):
            if batch is _END:
                iterators[idx] = iter(loaders[idx])
                batches[idx] = _first(iterators[idx], idx)
        yield tuple(batches)


def _first(iterator: Iterator[Any], idx: int) -> Any:
    batch = next(iterator, _END)
    if batch is _END:
        raise MisconfigurationException(
            f"Loader {idx} of the combined loaders gave no batch when it was started anew, so mode='max_size_cycle' "
            "cannot repeat it. Give a loader that can be iterated over again and is not empty, or use "
            "mode='min_size' or 'max_size'."
        )
    return batch
