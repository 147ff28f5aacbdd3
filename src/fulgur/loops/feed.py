"""From what the user gave as loaders to what a loop iterates over."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from fulgur.data.combine import CombinedLoader, flatten_loaders, map_loaders
from fulgur.data.fetch import Fetch
from fulgur.data.loaders import (
    check_loaders,
    find_epoch_setters,
    resolve_limit,
    sequential,
    sized_length,
    without_drop_last,
)
from fulgur.data.position import PlacedLoader
from fulgur.data.workers import seed_workers
from fulgur.errors import MisconfigurationException

Transfer = Callable[[Any], Any]


@dataclass(slots=True)
class Feed:
    """Loaders of one stage, ready to iterate.

    Attributes:
        structure: What the user gave, in the same structure, with every loader as it is used.
        loaders: What is iterated over, one after the other.
        n_batches: How many batches to take from each; ``inf`` takes all.
        is_sized: Whether each is known to have that many.
        unpacks: Whether items are ``(batch, batch_idx, dataloader_idx)``, as of a `CombinedLoader`.
        is_exhausted: Whether the loaders are asked for an end after the last batch.
        epoch_setters: The ``set_epoch`` of their samplers.
        placed: The loaders of training, which can be resumed.
    """

    structure: Any
    loaders: list[Any]
    n_batches: list[float]
    is_sized: list[bool]
    unpacks: list[bool]
    is_exhausted: bool = False
    epoch_setters: tuple[Callable[[int], None], ...] = ()
    placed: list[PlacedLoader] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    def fetch(self, index: int, transfer: Transfer | None, at_most: float = math.inf) -> Fetch:
        """Batches of the loader at `index`, `at_most` so many."""
        return Fetch(
            self.loaders[index],
            n_batches=min(self.n_batches[index], at_most),
            is_sized=self.is_sized[index],
            transfer=transfer,
            unpack=itemgetter(0) if self.unpacks[index] else None,
            is_exhausted=self.is_exhausted and at_most >= self.n_batches[index],
        )

    def set_epoch(self, epoch: int) -> None:
        """Tell samplers which epoch it is."""
        for setter in self.epoch_setters:
            setter(epoch)


def build_train_feed(
    source: Any, *, limit: int | float, overfit: int | float, mode: Any, global_rank: int, name: str
) -> Feed:
    """One feed for training; several loaders are combined.

    Args:
        source: A loader, or a collection of them.
        limit: ``limit_train_batches``.
        overfit: ``overfit_batches``; above 0 it is the limit, and samples come in the dataset's order.
        mode: How several loaders are combined.
        global_rank: For the seeds of loader workers.
        name: Where `source` came from, for messages.

    Raises:
        MisconfigurationException: The loader is empty, or the limit leaves nothing of it.
        TypeError: `source` is no iterable.
        ValueError: A `CombinedLoader` is in mode "sequential".
    """
    check_loaders(source, name=name)
    combined = CombinedLoader.of(source, mode)
    if combined.mode == "sequential":
        raise ValueError(
            "A CombinedLoader in mode 'sequential' cannot be trained on, for which epoch its loaders belong to is not "
            "clear. Use 'max_size_cycle', 'min_size' or 'max_size'."
        )
    _prepare(combined, overfit=overfit, global_rank=global_rank)
    structure = combined if combined is source else combined.iterables
    placed = [PlacedLoader(loader) for loader in combined.flattened]
    is_bare = combined is not source and _is_plain(combined)
    iterated = placed[0] if is_bare else _with_loaders(combined, placed)
    length = sized_length(iterated)
    if length == 0 and limit != 0:
        raise MisconfigurationException(_empty(name, combined.flattened, "limit_train_batches"))
    n_batches = (
        resolve_limit(length, overfit, name="overfit_batches")
        if overfit
        else resolve_limit(length, limit, name="limit_train_batches")
    )
    setters = (*find_epoch_setters(combined.flattened), *(loader.set_epoch for loader in placed))
    return Feed(
        structure=structure,
        loaders=[iterated],
        n_batches=[n_batches],
        is_sized=[not math.isinf(length)],
        unpacks=[not is_bare],
        is_exhausted=n_batches == length,
        epoch_setters=setters,
        placed=placed,
    )


def build_eval_feed(
    source: Any,
    *,
    limit: int | float,
    overfit: int | float = 0,
    global_rank: int,
    name: str,
    limit_name: str,
    keeps_all: bool = False,
) -> Feed:
    """A feed for validation, test or prediction: several loaders run one after the other.

    Args:
        keeps_all: Whether a last batch that is not full is kept even where the loader would drop it, and whether a
            loader may be empty (predict).
        source, limit, overfit, global_rank, name: As for `build_train_feed`.
        limit_name: The Trainer argument behind `limit`, for messages.

    Raises:
        MisconfigurationException: A loader is empty, or the limit leaves nothing of it.
        TypeError: `source` is no iterable.
    """
    check_loaders(source, name=name)
    if isinstance(source, CombinedLoader) and source.mode != "sequential":
        if keeps_all:
            raise ValueError(f"predict needs a CombinedLoader in mode 'sequential'; got {source.mode!r}.")
        loaders: list[Any] = [source]
        structure: Any = source
    else:
        structure = source.iterables if isinstance(source, CombinedLoader) else source
        if keeps_all:
            structure = map_loaders(structure, without_drop_last)
        if overfit:
            structure = map_loaders(structure, sequential)
        loaders = flatten_loaders(structure)
    for loader in loaders:
        seed_workers(loader, global_rank=global_rank)
    lengths = [sized_length(loader) for loader in loaders]
    wanted, wanted_name = (overfit, "overfit_batches") if overfit else (limit, limit_name)
    if 0 in lengths and limit != 0 and not keeps_all:
        raise MisconfigurationException(_empty(name, loaders, limit_name))
    return Feed(
        structure=structure,
        loaders=loaders,
        n_batches=[resolve_limit(length, wanted, name=wanted_name) for length in lengths],
        is_sized=[not math.isinf(length) for length in lengths],
        unpacks=[isinstance(loader, CombinedLoader) for loader in loaders],
        epoch_setters=find_epoch_setters(loaders),
        names=_names(structure, len(loaders)),
    )


def _prepare(combined: CombinedLoader, *, overfit: int | float, global_rank: int) -> None:
    if overfit:
        combined.flattened = [sequential(loader) for loader in combined.flattened]
    seed_workers(combined, global_rank=global_rank)


def _with_loaders(combined: CombinedLoader, loaders: list[Any]) -> CombinedLoader:
    """A copy of `combined` over other loaders in the same structure."""
    result = copy(combined)
    result.flattened = loaders
    return result


def _is_plain(combined: CombinedLoader) -> bool:
    """Whether the user gave a bare loader rather than a collection that holds one."""
    return len(combined.flattened) == 1 and combined.flattened[0] is combined.iterables


def _names(structure: Any, n_loaders: int) -> list[str]:
    """Keys of a dict of loaders; indices of anything else."""
    if isinstance(structure, dict) and len(structure) == n_loaders:
        return [str(key) for key in structure]
    return [str(index) for index in range(n_loaders)]


def _empty(name: str, loaders: list[Any], limit_name: str) -> str:
    """Say which loader is empty and, as far as it can be seen, why."""
    index = next((i for i, loader in enumerate(loaders) if sized_length(loader) == 0), 0)
    loader = loaders[index] if loaders else None
    which = f"{name} gave an empty loader" + (f" (number {index})" if len(loaders) > 1 else "")
    size = sized_length(getattr(loader, "dataset", None))
    if size and not math.isinf(size):
        return (
            f"{which}: its dataset has {size} samples, batch_size={getattr(loader, 'batch_size', None)} and drop_last="
            f"{getattr(loader, 'drop_last', None)}. Lower batch_size or set drop_last=False."
        )
    return f"{which}: it has length 0. Look at how its dataset is filled, or skip it on purpose with {limit_name}=0."
