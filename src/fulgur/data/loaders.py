"""Questions about loaders, and changed copies of them.

Nothing here changes a loader that the user holds. A changed DataLoader is a shallow copy with another sampler, so it
keeps its class and every attribute, whatever its constructor takes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any, cast

from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from fulgur.data.combine import CombinedLoader, flatten_loaders
from fulgur.errors import MisconfigurationException

# Lets floor(100 * 0.29) be 29, not the 28 that binary fractions make of it.
_ROUNDING = 1e-9


def check_loaders(source: Any, *, name: str) -> None:
    """Refuse what cannot be iterated over for batches. Starts no loader.

    Args:
        source: A loader or a collection of loaders.
        name: Where it came from, for the message: ``"train_dataloader()"``.

    Raises:
        TypeError: A loader in `source` is not iterable, or is a batch or a dataset rather than a loader.
    """
    for loader in flatten_loaders(source):
        if isinstance(loader, CombinedLoader):
            check_loaders(loader.iterables, name=name)
        elif isinstance(loader, Mapping):
            raise TypeError(
                f"{name} gave a {type(loader).__name__} with the keys {list(loader)[:5]!r} whose values are not "
                "loaders: that is a batch. Give a loader that yields such batches, for example a list of them."
            )
        elif not _is_iterable(loader):
            raise TypeError(
                f"{name} gave {_described(loader)}, which is not iterable.{_hint(loader)} Give a DataLoader, any other "
                "iterable of batches, or a list, tuple or dict of them."
            )
        elif _is_data(loader):
            raise TypeError(
                f"{name} gave a {type(loader).__name__}, which holds samples, not batches. Give "
                "DataLoader(dataset, batch_size=32); where its items are batches already, batch_size=None."
            )


def sized_length(loader: Any) -> int | float:
    """Number of batches of `loader`; ``inf`` if it has no length, as with most DataLoaders of an IterableDataset."""
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return math.inf


def check_limit(limit: int | float, *, name: str) -> None:
    """Refuse a batch limit that is neither a count (0, 1, 2, ...) nor a fraction (0.0 to 1.0).

    Raises:
        MisconfigurationException: It is negative, not finite, or a count with a fractional part.
    """
    is_number = isinstance(limit, (int, float))
    if is_number and limit >= 0 and (limit <= 1 or float(limit).is_integer()):
        return
    raise MisconfigurationException(
        f"{name}={limit!r} is not a number of batches. Use an int >= 0 for a count, or a float from 0.0 to 1.0 for a "
        "fraction of the loader."
    )


def resolve_limit(n_batches: int | float, limit: int | float, *, name: str) -> int | float:
    """Number of batches to run: at most `n_batches`, and no more than `limit` allows.

    Args:
        n_batches: Length of the loader; ``inf`` if it has none.
        limit: An int is a count, a float up to 1.0 a fraction of `n_batches` (rounded down), 1.0 being all of it.
            A float above 1 must be whole, and is a count.
        name: The Trainer argument, for messages.

    Returns:
        An int, or ``inf`` for an unlimited loader without length.

    Raises:
        MisconfigurationException: The limit is not a number of batches, is a fraction of a loader without length, or
            is a fraction so small that nothing of a loader remains.
    """
    check_limit(limit, name=name)
    if limit == 0:
        return 0
    if isinstance(limit, int) or limit > 1:
        return min(n_batches, int(limit))
    if limit == 1.0:
        return n_batches
    if n_batches == math.inf:
        raise MisconfigurationException(
            f"{name}={limit} is a fraction, but the loader has no length. Use 1.0 for all batches or an int for a "
            "count, or give the dataset a `__len__`."
        )
    n_kept = math.floor(n_batches * limit + _ROUNDING)
    if n_kept == 0 and n_batches > 0:
        raise MisconfigurationException(
            f"{name}={limit} of {n_batches} batches is less than one batch. "
            f"Use at least {_rounded_up(1 / n_batches)}, or an int for a count."
        )
    return n_kept


def is_shuffled(loader: Any) -> bool:
    """Whether `loader` is known to draw samples in random order. False where nobody can tell."""
    if isinstance(loader, CombinedLoader):
        return any(map(is_shuffled, loader.flattened))
    sampler = _find_sampler(loader)
    if isinstance(sampler, (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)):
        return True
    return getattr(sampler, "shuffle", False) is True


def sequential(loader: Any) -> Any:
    """`loader`, made to yield its samples in the order of the dataset, the same in every epoch.

    For `overfit_batches`. The samples of a SubsetRandomSampler come in the order of its indices; any other sampler is
    replaced by one over the whole dataset.

    Returns:
        A changed copy, or `loader` itself if it is in order already, or is not a DataLoader over a map-style dataset.

    Raises:
        MisconfigurationException: A custom batch sampler holds no sampler that could be replaced.
    """
    if isinstance(loader, CombinedLoader):
        return _map_combined(loader, sequential)
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return loader
    sampler = _find_sampler(loader)
    if isinstance(sampler, SequentialSampler):
        return loader
    if isinstance(sampler, SubsetRandomSampler):
        return with_sampler(loader, list(sampler.indices))
    return with_sampler(loader, SequentialSampler(cast(Sized, loader.dataset)))


def with_sampler(loader: DataLoader[Any], sampler: Iterable[Any]) -> DataLoader[Any]:
    """A copy of `loader` that draws its samples from `sampler`, in batches made as before.

    Raises:
        MisconfigurationException: A custom batch sampler has no attribute ``sampler`` to put it in.
    """
    batch_sampler = loader.batch_sampler
    if batch_sampler is None:
        return replaced(loader, sampler=sampler)
    if not hasattr(batch_sampler, "sampler"):
        raise MisconfigurationException(
            f"The batch sampler {type(batch_sampler).__name__} of a DataLoader has no attribute `sampler`, so its "
            "sampler cannot be replaced. Let it draw from `self.sampler`, or give the DataLoader a `sampler` and a "
            "`batch_size` in its place."
        )
    batches: Any = copy.copy(batch_sampler)
    batches.sampler = sampler
    return replaced(loader, sampler=sampler, batch_sampler=batches)


def without_drop_last(loader: Any) -> Any:
    """`loader`, made to keep a last batch that is not full. For predict, where every sample counts.

    Returns:
        A changed copy, or `loader` itself if it drops nothing.
    """
    if isinstance(loader, CombinedLoader):
        return _map_combined(loader, without_drop_last)
    if not isinstance(loader, DataLoader):
        return loader
    batch_sampler: Any = loader.batch_sampler
    if not loader.drop_last and not getattr(batch_sampler, "drop_last", False):
        return loader
    if hasattr(batch_sampler, "drop_last"):
        batch_sampler = copy.copy(batch_sampler)
        batch_sampler.drop_last = False
    return replaced(loader, drop_last=False, batch_sampler=batch_sampler)


def find_epoch_setters(loaders: Iterable[Any]) -> tuple[Callable[[int], None], ...]:
    """The ``set_epoch`` of every sampler of `loaders`, to be called with the epoch before each pass.

    Looks at a loader's sampler, its batch sampler and the sampler in that. Found once, so that an epoch costs nothing
    where there is none.
    """
    return tuple(sampler.set_epoch for sampler in epoch_samplers(*loaders))


def epoch_samplers(*loaders: Any) -> tuple[Any, ...]:
    """Every sampler of `loaders` that has a ``set_epoch``, each once."""
    samplers = {id(sampler): sampler for sampler in _samplers(loaders)}
    return tuple(sampler for sampler in samplers.values() if callable(getattr(sampler, "set_epoch", None)))


def _samplers(loaders: Iterable[Any]) -> Iterator[Any]:
    for loader in loaders:
        if isinstance(loader, CombinedLoader):
            yield from _samplers(loader.flattened)
            continue
        batch_sampler = getattr(loader, "batch_sampler", None)
        yield from (getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None))


def _map_combined(combined: CombinedLoader, fn: Callable[[Any], Any]) -> CombinedLoader:
    changed = [fn(loader) for loader in combined.flattened]
    if all(new is old for new, old in zip(changed, combined.flattened, strict=True)):
        return combined
    result = copy.copy(combined)
    result.flattened = changed
    return result


def _find_sampler(loader: Any) -> Any:
    """What decides the order of the samples: with a custom batch sampler, `loader.sampler` is only a default."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    if batch_sampler is not None:
        return getattr(batch_sampler, "sampler", batch_sampler)
    return getattr(loader, "sampler", None)


def replaced(loader: DataLoader[Any], **attributes: Any) -> DataLoader[Any]:
    """A copy of `loader` with other attributes; subclasses keep theirs, whatever their constructors take."""
    result = copy.copy(loader)
    # A DataLoader refuses assignment to these. The workers of a running iteration stay with the original.
    result.__dict__.update(attributes, _iterator=None)
    return result


def _is_data(loader: Any) -> bool:
    """Whether iterating over `loader` would silently give single samples, rows or characters."""
    if isinstance(loader, Dataset):
        return not hasattr(type(loader), "__iter__")  # one with __iter__ may well give batches
    return isinstance(loader, (Tensor, str, bytes)) or hasattr(loader, "__array__")


def _hint(loader: Any) -> str:
    return " Is a `return` missing?" if loader is None else ""


def _is_iterable(loader: Any) -> bool:
    return hasattr(type(loader), "__iter__") or hasattr(type(loader), "__getitem__")


def _described(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}, not an instance"
    return "None" if value is None else f"{' '.join(repr(value).split()):.80} ({type(value).__name__})"


def _rounded_up(fraction: float) -> float:
    return math.ceil(fraction * 1e4) / 1e4
