"""Where a pass over a loader stands, and how a pass is taken up again there.

A `PlacedLoader` stands between a loop and one loader. It notes the generators' states when a pass begins and counts
batches; that is all it takes to begin the same pass again at any batch, without drawing the samples before it:

* a DataLoader over a map-style dataset: its sampler is run on to the position, its dataset is not touched;
* a loader with ``state_dict``: through that;
* anything else is iterated to the position, and says so.

In worker processes every sample is drawn under a seed made of the pass and the sample's position in it, so that
augmentation does not depend on which worker drew it, how many there are, or where a run was resumed.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from fulgur.data.generators import find_generators, get_generator, set_generator
from fulgur.data.loaders import replaced
from fulgur.data.placed import PlacedBatches, draws_at_once, draws_never
from fulgur.data.shard import Shard, count_own, count_steps
from fulgur.data.workers import begin_pass
from fulgur.rank import rank_zero_info
from fulgur.rng import plain_rng, restore_rng, snapshot_rng

if TYPE_CHECKING:
    from fulgur.data.stream import CommonStream
    from fulgur.data.turns import Turns

_WHOLE = Shard()


class PlacedLoader:
    """A loader whose passes can be resumed, and of which each data rank takes its part.

    Args:
        loader: Any iterable of batches.
        shard: Whose part to take.
        is_split: Whether to take a part at all; if not, every rank reads what the loader gives it.
        is_training: Whether all ranks must get the same number of batches, full steps only with ``drop_last``, and
            samples have seeds of their own.
        is_whole: Whether a rank without a batch in the last step just ends, for an evaluation.

    Attributes:
        epoch: Epoch of the next pass; part of its seeds.
        n_drawn: Batches drawn from the running pass: with several ranks, steps.
        n_passes: Passes begun in the epoch: more than one where a shorter loader is cycled.
        shares: Samples that each rank has of the batch yielded last; empty before and after a pass.
    """

    _common: CommonStream
    _turns: Turns

    def __init__(
        self,
        loader: Any,
        shard: Shard = _WHOLE,
        *,
        is_split: bool = True,
        is_training: bool = True,
        is_whole: bool = False,
    ) -> None:
        self.loader = loader
        self.n_ranks = shard.size
        self.shard = shard if is_split else _WHOLE
        self.epoch = 0
        self.n_drawn = 0
        self.n_passes = 0
        self.shares: tuple[int, ...] = ()
        self._start: dict[str, Any] = {}
        self._resumed: Iterator[Any] | None = None
        self._mapped: DataLoader[Any] | None = None
        self._is_whole, self._drops_last = is_whole, is_training and _drops_last(loader)
        self._has_checked = False
        self._draws_alike = isinstance(loader, Sequence)
        if is_mapped(loader):
            self._mapped = _copied_with_batches(loader, self.shard, is_training=is_training, is_whole=is_whole)
            self._draws_alike = not is_training and draws_never(_batches_of(self._mapped).batches)
        if self.shard.size > 1:
            self._prepare_for_several()

    def _prepare_for_several(self) -> None:
        from fulgur.data.stream import CommonStream
        from fulgur.data.turns import Turns

        self._common = CommonStream(self.shard)
        self._turns = Turns(self.shard, is_whole=self._is_whole, drops_last=self._drops_last)
        if self._mapped is not None and not draws_at_once(_batches_of(self._mapped).batches):
            _batches_of(self._mapped).lend = self._common.drawing

    def __len__(self) -> int:
        if self.shard.size == 1:
            return len(self.loader)
        return self._count(self.shard.rank)

    @property
    def n_steps(self) -> int:
        """Batches of the rank that gets most."""
        return self._count(0) if self.shard.size > 1 else len(self.loader)

    def _count(self, rank: int) -> int:
        if self._mapped is not None:
            batches = _batches_of(self._mapped)
            return batches.n_steps if rank == 0 else len(batches)
        if self._is_whole:
            return count_own(len(self.loader), rank, self.shard.size)
        return count_steps(len(self.loader), self.shard.size, drops_last=self._drops_last)

    @property
    def reads_all(self) -> bool:
        """Whether every rank reads the batches of all and drops those of the others."""
        return self.shard.size > 1 and self._mapped is None and not isinstance(self.loader, Sequence)

    @property
    def batch_size(self) -> int | None:
        """Samples of a full step on all ranks together; None if unknown."""
        found = getattr(getattr(self.loader, "batch_sampler", None), "batch_size", None)
        found = getattr(self.loader, "batch_size", None) if found is None else found
        return found * self.n_ranks if isinstance(found, int) else None

    @property
    def described(self) -> str:
        """For messages: which loader."""
        return _described(self.loader)

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next passes belong to; one that was resumed knows."""
        if self._resumed is None:
            self.epoch, self.n_passes = epoch, 0

    def record(self) -> list[list[Any]] | None:
        """A list of which every batch of the next pass adds its indices; None where they are not known."""
        if self._mapped is None or self._mapped.batch_sampler is None:
            return None
        batches = _batches_of(self._mapped)
        batches.recorded = []
        return batches.recorded

    def __iter__(self) -> Iterator[Any]:
        if self._resumed is not None:
            iterator, self._resumed = self._resumed, None
        elif self.shard.size == 1 or self._draws_alike:
            iterator = self._begin()
        else:
            with self._common.begun(find_generators(self.loader)):  # all ranks must reach this
                iterator = self._begin()
        return self._counted(iterator) if self.shard.size == 1 else self._weighed(iterator)

    def _begin(self) -> Iterator[Any]:
        self.n_drawn = 0
        self.n_passes += 1
        if self._mapped is None:
            self._note_start(b"")
            return self._taken(begin_pass(self.loader))
        batches = _batches_of(self._mapped)
        batches.begin(self._pass_key() if batches.is_tagged else b"", skip=0, on_start=self._note_start)
        iterator = begin_pass(self._mapped)
        if self.shard.size > 1:
            batches.prime()
        return iterator

    def _taken(self, batches: Iterator[Any]) -> Iterator[Any]:
        """This rank's part of `batches`, of which the first step is read now."""
        if self.shard.size == 1:
            return batches
        first = self._turns.read_step(batches)
        if self.reads_all and not self._has_checked:
            self._has_checked = True
            self._turns.check_same(first, _described(self.loader))  # all ranks must reach this
        return self._turns.take(batches, first, self._lend())

    def _lend(self) -> Callable[[], AbstractContextManager[Any]]:
        """What lends the common stream to a loader that draws in this process."""
        draws_here = getattr(self.loader, "num_workers", 0) == 0 and not self._draws_alike
        return self._common.drawing if draws_here and self.shard.size > 1 else nullcontext

    def _note_start(self, key: bytes) -> None:
        """Keep the generators' states as the sampler finds them when it draws its order."""
        self._start = {"rng": snapshot_rng(include_cuda=False), "generators": self._generators(), "key": key.hex()}

    def _pass_key(self) -> bytes:
        """Bytes that tell this pass from every other: drawn from nothing, so that no generator moves."""
        tensor = torch.get_rng_state()
        state = ctypes.string_at(tensor.data_ptr(), tensor.nbytes)  # there may be no numpy to ask for bytes
        return hashlib.blake2b(state + f"{self.epoch}:{self.n_passes}".encode(), digest_size=16).digest()

    def _counted(self, iterator: Iterator[Any]) -> Iterator[Any]:
        for batch in iterator:
            self.n_drawn += 1
            yield batch

    def _weighed(self, iterator: Iterator[Any]) -> Iterator[Any]:
        shares = self._turns.shares if self._mapped is None else _batches_of(self._mapped).shares
        for batch in iterator:
            self.n_drawn += 1
            self.shares = shares.popleft()
            yield batch
        self.shares = ()

    # ----------------------------------------------------------------------------------------------------- state

    @property
    def is_stateful(self) -> bool:
        """Whether the loader keeps its own position."""
        return hasattr(self.loader, "state_dict") and hasattr(self.loader, "load_state_dict")

    def state_dict(self) -> dict[str, Any]:
        """Position in the running pass, and what it takes to begin it again; plain data and tensors."""
        start = self._start | {"rng": plain_rng(self._start["rng"])} if self._start else {}
        state = {"epoch": self.epoch, "n_drawn": self.n_drawn, "n_passes": self.n_passes, "start": start}
        state["batch_size"] = self.batch_size
        state["generators"] = self._generators()
        if self.is_stateful:
            state["loader"] = self.loader.state_dict()
            if self.shard.size > 1:
                state["stream"] = self._common.state_dict()
        return state

    def resume(self, state: dict[str, Any], *, in_pass: bool, is_drawn: bool = False) -> None:
        """Stand where `state` was taken. The global generators are left anywhere: restore them afterwards.

        Args:
            state: From `state_dict`.
            in_pass: Whether the pass goes on; if not, only generators and the loader's own state are given back.
            is_drawn: Whether the pass that goes on had given its last batch and ended.
        """
        self.epoch, self.n_drawn, self.n_passes = state["epoch"], state["n_drawn"], state["n_passes"]
        self._start = start = state["start"]
        if self.is_stateful and "loader" in state:
            self.loader.load_state_dict(state["loader"])
            if self.shard.size > 1:
                self._common.load_state_dict(state.get("stream") or start.get("rng") or {})
            self._resumed = iter(()) if in_pass else None
            if in_pass and not is_drawn:  # a loader whose pass has ended would begin the next one
                batches = begin_pass(self.loader)
                with self._lend()():  # on several ranks a first step is read now
                    self._resumed = self._taken(batches)
        elif not start:
            self._set_generators(state["generators"])
        elif not in_pass:
            self._start_persistent_workers()
            self._set_generators(state["generators"])
        else:
            restore_rng(start["rng"])
            self._set_generators(start["generators"])
            self._resume_pass(bytes.fromhex(start["key"]))
            if self._mapped is None:
                self._set_generators(state["generators"])
            if self.shard.size > 1:
                self._common.note()

    def _resume_pass(self, key: bytes) -> None:
        if self._mapped is None:
            self._resumed = self._redrawn(self.n_drawn)
            return
        batches = _batches_of(self._mapped)
        # A file of one rank without workers has none.
        batches.begin(key or (self._pass_key() if batches.is_tagged else b""), skip=self.n_drawn)
        batches.prime()
        self._resumed = self._iterator_without_seed()

    def begin_at(self, n_batches: int, *, n_passes: int = 0) -> None:
        """Begin a pass now, in the order it has now, without its first `n_batches`.

        For a run whose file counts batches and says nothing else of the data: the generators are what they are.

        Args:
            n_batches: Batches of the pass that count as drawn.
            n_passes: Passes of the epoch that lie before this one.
        """
        self.n_drawn, self.n_passes = n_batches, n_passes + 1
        if self.shard.size == 1:
            self._resumed = self._begun_at(n_batches)
            return
        with self._common.begun(find_generators(self.loader)):  # all ranks must reach this
            self._resumed = self._begun_at(n_batches)
            if self._mapped is not None:
                _batches_of(self._mapped).prime()

    def _begun_at(self, n_batches: int) -> Iterator[Any]:
        if self._mapped is None:
            self._note_start(b"")
            return self._redrawn(n_batches)
        batches = _batches_of(self._mapped)
        key = self._pass_key() if batches.is_tagged else b""
        batches.begin(key, skip=n_batches, on_start=self._note_start)
        return begin_pass(self._mapped)

    def _iterator_without_seed(self) -> Any:
        """An iterator whose seed for workers is not drawn from the loader's own generator, which is past it."""
        assert self._mapped is not None
        generator, self._mapped.generator = self._mapped.generator, None
        iterator: Any = begin_pass(self._mapped)
        self._mapped.generator = generator
        return iterator

    def _start_persistent_workers(self) -> None:
        """Let workers that live for the whole run live already, as they did where the state was taken."""
        if self._mapped is not None and getattr(self._mapped, "persistent_workers", False):
            _batches_of(self._mapped).begin(b"", skip=0, is_empty=True)
            self._iterator_without_seed()

    def _redrawn(self, n_batches: int) -> Iterator[Any]:
        """An iterator over the pass that begins now, with `n_batches` drawn and dropped."""
        if not isinstance(self.loader, Sequence) and n_batches:
            rank_zero_info(
                f"Resuming: {_described(self.loader)} keeps no position, so its first {n_batches} batches are drawn "
                "again and dropped. This takes as long as loading them did; state_dict and load_state_dict avoid it."
            )
        iterator: Iterator[Any] = begin_pass(self.loader)
        if self.shard.size == 1:
            deque(islice(iterator, n_batches), maxlen=0)
            return iterator
        for _ in range(n_batches):
            self._turns.read_step(iterator)
        return self._taken(iterator)

    # ------------------------------------------------------------------------------------------------- generators

    def _generators(self) -> list[Any]:
        return [get_generator(generator) for generator in find_generators(self.loader)]

    def _set_generators(self, states: list[Any]) -> None:
        for generator, state in zip(find_generators(self.loader), states, strict=False):
            set_generator(generator, state)


def _copied_with_batches(
    loader: DataLoader[Any], shard: Shard, *, is_training: bool, is_whole: bool
) -> DataLoader[Any]:
    """A copy of `loader` with `PlacedBatches` in the place of its batch sampler, or of its sampler."""
    # In the main process of a run on one rank samples draw from the run's own generators.
    is_lent = shard.size > 1 and loader.num_workers == 0
    dataset: Any = loader.dataset
    is_tagged = False
    if is_training and (is_lent or loader.num_workers > 0):
        from fulgur.data.seeded import PlacedDataset, draws_nothing

        is_tagged = not (is_lent and draws_nothing(dataset))
        dataset = PlacedDataset(dataset, is_lent) if is_tagged else dataset
    is_batched = loader.batch_sampler is not None
    batches = PlacedBatches(
        loader.batch_sampler if is_batched else loader.sampler,
        is_batched=is_batched,
        is_tagged=is_tagged,
        shard=shard,
        is_whole=is_whole,
        drops_last=is_training and _drops_last(loader),
    )
    if is_batched:
        return replaced(loader, dataset=dataset, batch_sampler=batches)
    return replaced(loader, dataset=dataset, sampler=batches)


def _drops_last(loader: Any) -> bool:
    default = getattr(loader, "drop_last", False)
    return bool(getattr(getattr(loader, "batch_sampler", None), "drop_last", default))


def _batches_of(loader: DataLoader[Any]) -> PlacedBatches:
    found: Any = loader.batch_sampler if loader.batch_sampler is not None else loader.sampler
    assert isinstance(found, PlacedBatches)
    return found


def is_mapped(loader: Any) -> bool:
    """Whether samples of `loader` are chosen by index, in this process."""
    if not isinstance(loader, DataLoader) or hasattr(loader, "state_dict"):
        return False
    return not isinstance(loader.dataset, IterableDataset)


def _described(loader: Any) -> str:
    dataset = getattr(loader, "dataset", None)
    return f"the loader of {type(dataset).__name__}" if dataset is not None else type(loader).__name__
