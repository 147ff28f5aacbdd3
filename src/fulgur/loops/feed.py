"""From what the user gave as loaders to what a loop iterates over."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass, field
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from fulgur.data.combine import CombinedLoader, flatten_loaders, map_loaders
from fulgur.data.fetch import Fetch
from fulgur.data.generators import find_generators, get_generator, set_generator
from fulgur.data.loaders import (
    check_loaders,
    find_epoch_setters,
    resolve_limit,
    sequential,
    sized_length,
    without_drop_last,
)
from fulgur.data.position import PlacedLoader
from fulgur.data.shard import Shard, is_sharded
from fulgur.data.workers import seed_workers
from fulgur.errors import MisconfigurationException

if TYPE_CHECKING:
    from fulgur.data.join import JoinedLoader
    from fulgur.loops.weightless import Uncounted
    from fulgur.metrics import MetricLog

Transfer = Callable[[Any], Any]
Weigh = Callable[[], tuple[float, float]]

_WHOLE = Shard()


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
        placed: The loaders of training, which can be resumed; in an evaluation on several ranks, those that are split.
        n_steps: The most batches that any rank takes from each; `n_batches` on one rank.
        weighs: For each, what gives weight and lack of the batch yielded last (see `Fetch`); None where every batch
            counts 1.
        joined: The loaders whose lengths may differ between ranks.
        is_divided: Whether there are several ranks, so that this one may have no batch where others have some.
        looks_ahead: Whether one batch is read ahead although the length is known: a rank that learns too late which
            batch was the last has not reduced its gradients with the others.
        measure: What measures the wait for batches, as `Fetch` takes it.
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
    n_steps: list[float] = field(default_factory=list)
    weighs: list[Weigh | None] = field(default_factory=list)
    joined: list[JoinedLoader] = field(default_factory=list)
    is_divided: bool = False
    looks_ahead: bool = False
    measure: Callable[[Iterator[Any]], Iterator[Any]] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether no rank has anything to do."""
        return not any(self.n_steps or self.n_batches)

    def generators(self) -> list[list[Any]]:
        """States of the generators that each loader draws from besides the global ones."""
        return [[get_generator(generator) for generator in found] for found in self._find_generators()]

    def set_generators(self, states: list[list[Any]]) -> None:
        """Give back what `generators` gave."""
        for found, saved in zip(self._find_generators(), states, strict=False):
            for generator, state in zip(found, saved, strict=False):
                set_generator(generator, state)

    def _find_generators(self) -> list[list[Any]]:
        structure = self.structure
        loaders = structure.flattened if isinstance(structure, CombinedLoader) else flatten_loaders(structure)
        return [find_generators(loader) for loader in loaders]

    def fetch(
        self,
        index: int,
        transfer: Transfer | None,
        at_most: float = math.inf,
    ) -> Fetch:
        """Batches of the loader at `index`, `at_most` so many."""
        return Fetch(
            self.loaders[index],
            n_batches=min(self.n_batches[index], at_most),
            is_sized=self.is_sized[index] and not self.looks_ahead,
            transfer=transfer,
            unpack=itemgetter(0) if self.unpacks[index] else None,
            is_exhausted=self.is_exhausted and at_most >= self.n_batches[index],
            weigh=self.weighs[index] if self.weighs else None,
            measure=self.measure,
        )

    def set_epoch(self, epoch: int) -> None:
        """Tell samplers which epoch it is."""
        for setter in self.epoch_setters:
            setter(epoch)


def build_train_feed(
    source: Any,
    *,
    limit: int | float,
    overfit: int | float,
    mode: Any,
    name: str,
    shard: Shard = _WHOLE,
    is_split: bool = True,
    uneven: Any = "join",
) -> Feed:
    """One feed for training; several loaders are combined.

    With several ranks all of them must call it.

    Args:
        source: A loader, or a collection of them.
        limit: ``limit_train_batches``.
        overfit: ``overfit_batches``; above 0 it is the limit, and samples come in the dataset's order.
        mode: How several loaders are combined.
        name: Where `source` came from, for messages.
        shard: The place of this process among those that see different data.
        is_split: Whether each of them takes its part of the loaders; if not, loaders give each its own by themselves.
        uneven: "join" or "error": what is done where such loaders have different lengths.

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
    if overfit:
        combined.flattened = [sequential(loader) for loader in combined.flattened]
    structure = combined if combined is source else combined.iterables
    placed = [_placed(loader, shard, is_split) for loader in combined.flattened]
    is_bare = combined is not source and _is_plain(combined)
    iterated: Any = placed[0] if is_bare else _with_loaders(combined, placed)
    length = sized_length(iterated)
    wanted, wanted_name = (overfit, "overfit_batches") if overfit else (limit, "limit_train_batches")
    setters = (*find_epoch_setters(combined.flattened), *(loader.set_epoch for loader in placed))
    feed = Feed(
        structure=structure,
        loaders=[iterated],
        n_batches=[],
        is_sized=[not math.isinf(length)],
        unpacks=[not is_bare],
        epoch_setters=setters,
        placed=placed,
    )
    if shard.size > 1:
        from fulgur.loops.several import join_training

        feed.is_divided = True
        length = join_training(feed, shard, limit=(wanted, wanted_name), uneven=uneven)
    if length == 0 and limit != 0:
        raise MisconfigurationException(_empty(name, combined.flattened, "limit_train_batches"))
    if not feed.n_batches:
        feed.n_batches = [resolve_limit(length, wanted, name=wanted_name)]
        feed.is_exhausted = feed.n_batches[0] == length
    return feed


def build_eval_feed(
    source: Any,
    *,
    limit: int | float,
    overfit: int | float = 0,
    name: str,
    limit_name: str,
    keeps_all: bool = False,
    shard: Shard = _WHOLE,
    is_split: bool = True,
    is_collective: bool = False,
) -> Feed:
    """A feed for validation, test or prediction: several loaders run one after the other.

    With several ranks all of them must call it.

    Args:
        keeps_all: Whether a last batch that is not full is kept even where the loader would drop it, and whether a
            loader may be empty (predict).
        is_collective: Whether a batch needs all ranks, so that all must have as many.
        source, limit, overfit, name, shard, is_split: As for `build_train_feed`.
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
    wanted, wanted_name = (overfit, "overfit_batches") if overfit else (limit, limit_name)
    feed = Feed(
        structure=structure,
        loaders=loaders,
        n_batches=[],
        is_sized=[],
        unpacks=[isinstance(loader, CombinedLoader) for loader in loaders],
        epoch_setters=find_epoch_setters(loaders),
        names=_names(structure, len(loaders)),
    )
    if shard.size > 1:
        from fulgur.loops.several import split_evaluation

        feed.is_divided = True
        lengths, of_longest = split_evaluation(
            feed, shard, is_split=is_split, is_collective=is_collective, keeps_all=keeps_all
        )
    else:
        for loader in loaders:
            seed_workers(loader)
        lengths = of_longest = [sized_length(loader) for loader in loaders]
    if 0 in of_longest and limit != 0 and not keeps_all:
        raise MisconfigurationException(_empty(name, loaders, limit_name))
    feed.n_steps = [resolve_limit(length, wanted, name=wanted_name) for length in of_longest]
    feed.n_batches = [min(own, most) for own, most in zip(lengths, feed.n_steps, strict=True)]
    feed.is_sized = [not math.isinf(length) for length in lengths]
    return feed


def uncounted(metrics: MetricLog, stage: str) -> Uncounted:
    """What keeps batches of weight 0 out of the numbers of `stage`."""
    from fulgur.loops.weightless import Uncounted

    return Uncounted(metrics, stage)


def _placed(loader: Any, shard: Shard, is_split: bool) -> PlacedLoader:
    """`loader`, of which ranks take their parts, unless it gives each its own."""
    is_parted = is_split and not is_sharded(loader, shard.size)
    # Ranks that read the same need the same seeds.
    seed_workers(loader, global_rank=0 if is_parted else shard.rank)
    return PlacedLoader(loader, shard, is_split=is_parted)


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
