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
import random
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler

from fulgur.data.loaders import replaced
from fulgur.rank import rank_zero_info
from fulgur.rng import plain_rng, restore_rng, snapshot_rng

_END = object()


class PlacedLoader:
    """A loader whose passes can be resumed.

    Args:
        loader: Any iterable of batches.

    Attributes:
        epoch: Epoch of the next pass; part of its seeds.
        n_drawn: Batches drawn from the running pass.
        n_passes: Passes begun in the epoch: more than one where a shorter loader is cycled.
    """

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self.epoch = 0
        self.n_drawn = 0
        self.n_passes = 0
        self._start: dict[str, Any] = {}
        self._resumed: Iterator[Any] | None = None
        self._mapped = _copied_with_batches(loader) if _is_mapped(loader) else None

    def __len__(self) -> int:
        return len(self.loader)

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next passes belong to; one that was resumed knows."""
        if self._resumed is None:
            self.epoch, self.n_passes = epoch, 0

    def __iter__(self) -> Iterator[Any]:
        if self._resumed is not None:
            iterator, self._resumed = self._resumed, None
        else:
            iterator = self._begin()
        return self._counted(iterator)

    def _begin(self) -> Iterator[Any]:
        self.n_drawn = 0
        self.n_passes += 1
        if self._mapped is None:
            self._note_start(b"")
            return iter(self.loader)
        batches = _batches_of(self._mapped)
        batches.begin(self._pass_key() if batches.is_tagged else b"", skip=0, on_start=self._note_start)
        return iter(self._mapped)

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

    # ----------------------------------------------------------------------------------------------------- state

    @property
    def is_stateful(self) -> bool:
        """Whether the loader keeps its own position."""
        return hasattr(self.loader, "state_dict") and hasattr(self.loader, "load_state_dict")

    def state_dict(self) -> dict[str, Any]:
        """Position in the running pass, and what it takes to begin it again; plain data and tensors."""
        start = self._start | {"rng": plain_rng(self._start["rng"])} if self._start else {}
        state = {"epoch": self.epoch, "n_drawn": self.n_drawn, "n_passes": self.n_passes, "start": start}
        state["generators"] = self._generators()
        if self.is_stateful:
            state["loader"] = self.loader.state_dict()
        return state

    def resume(self, state: dict[str, Any], *, in_pass: bool) -> None:
        """Stand where `state` was taken. The global generators are left anywhere: restore them afterwards.

        Args:
            state: From `state_dict`.
            in_pass: Whether the pass goes on; if not, only generators and the loader's own state are given back.
        """
        self.epoch, self.n_drawn, self.n_passes = state["epoch"], state["n_drawn"], state["n_passes"]
        self._start = start = state["start"]
        if self.is_stateful and "loader" in state:
            self.loader.load_state_dict(state["loader"])
            self._resumed = iter(self.loader) if in_pass else None
        elif not start:
            self._set_generators(state["generators"])
        elif not in_pass:
            self._start_persistent_workers()
            self._set_generators(state["generators"])
        elif self._mapped is None:
            restore_rng(start["rng"])
            self._set_generators(start["generators"])
            self._resumed = self._redrawn(self.n_drawn)
            self._set_generators(state["generators"])
        else:
            restore_rng(start["rng"])
            self._set_generators(start["generators"])
            batches = _batches_of(self._mapped)
            batches.begin(bytes.fromhex(start["key"]), skip=self.n_drawn)
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
        if self._mapped is None:
            self._note_start(b"")
            self._resumed = self._redrawn(n_batches)
            return
        batches = _batches_of(self._mapped)
        key = self._pass_key() if batches.is_tagged else b""
        batches.begin(key, skip=n_batches, on_start=self._note_start)
        self._resumed = iter(self._mapped)

    def _iterator_without_seed(self) -> Any:
        """An iterator whose seed for workers is not drawn from the loader's own generator, which is past it."""
        assert self._mapped is not None
        generator, self._mapped.generator = self._mapped.generator, None
        iterator: Any = iter(self._mapped)
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
        iterator: Iterator[Any] = iter(self.loader)
        deque(islice(iterator, n_batches), maxlen=0)
        return iterator

    # ------------------------------------------------------------------------------------------------- generators

    def _generators(self) -> list[Any]:
        return [_get_generator(generator) for generator in _find_generators(self.loader)]

    def _set_generators(self, states: list[Any]) -> None:
        for generator, state in zip(_find_generators(self.loader), states, strict=False):
            _set_generator(generator, state)


class PlacedBatches:
    """The batch sampler of a loader (or its sampler, where it does not batch), with a place for every batch.

    Args:
        batches: What yields lists of indices, or single indices.
        is_batched: Which of the two.
        is_tagged: Whether indices carry their places to the workers.
    """

    def __init__(self, batches: Any, *, is_batched: bool, is_tagged: bool) -> None:
        self.batches, self.is_batched, self.is_tagged = batches, is_batched, is_tagged
        self.key, self.skip, self.is_empty = b"", 0, False
        self.on_start: Callable[[bytes], None] | None = None
        self._head: tuple[Iterator[Any], Any, int] | None = None
        self._is_primed = False

    def begin(
        self, key: bytes, *, skip: int, on_start: Callable[[bytes], None] | None = None, is_empty: bool = False
    ) -> None:
        """Say what the next pass is.

        Args:
            key: Goes into the seeds of its samples.
            skip: Batches to leave out.
            on_start: Called with the key when the sampler is about to draw its order.
            is_empty: Let the pass have no batch at all.
        """
        self.key, self.skip, self.on_start, self.is_empty = key, skip, on_start, is_empty
        self._is_primed = False

    def prime(self) -> None:
        """Run the sampler to the position now, while the generators are as they were when the pass began."""
        if not self._is_primed:
            self._head, self._is_primed = self._advanced(), True

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        # Without tags a batch costs no Python call of ours. Both draw nothing before the first batch is asked for.
        return self._tagged_batches() if self.is_tagged else chain.from_iterable(self._bare_parts())

    def _take_head(self) -> tuple[Iterator[Any], Any, int]:
        self.prime()
        assert self._head is not None
        head, self._head = self._head, None
        return head

    def _bare_parts(self) -> Iterator[Iterable[Any]]:
        iterator, first, _ = self._take_head()
        if first is not _END:
            yield (first,)
            yield iterator

    def _tagged_batches(self) -> Iterator[Any]:
        iterator, indices, place = self._take_head()
        while indices is not _END:
            yield PlacedIndices(indices if self.is_batched else [indices], self.key, place, self.is_batched)
            place += len(indices) if self.is_batched else 1
            indices = next(iterator, _END)

    def _advanced(self) -> tuple[Iterator[Any], Any, int]:
        """The sampler's iterator at the position, its next item, and the place of that."""
        if self.on_start is not None:
            self.on_start(self.key)
        iterator, place = _skip(() if self.is_empty else self.batches, self.skip, is_batched=self.is_batched)
        return iterator, next(iterator, _END), place


class PlacedIndices(list[Any]):
    """Indices of a batch, with the place of the first of them in its pass."""

    def __init__(self, indices: Iterable[Any], key: bytes, place: int, is_batched: bool) -> None:
        super().__init__(indices)
        self.key, self.place, self.is_batched = key, place, is_batched

    def __reduce__(self) -> tuple[Any, ...]:
        return PlacedIndices, (list(self), self.key, self.place, self.is_batched)


class PlacedDataset:
    """A dataset in a worker process: seeds the generators before each sample. Everything else is the dataset's own."""

    def __init__(self, dataset: Any) -> None:
        self.__dict__["_dataset"] = dataset
        self.__dict__["_generators"] = None

    def __getitems__(self, indices: Any) -> Any:
        dataset = self._dataset
        batched = getattr(dataset, "__getitems__", None)
        if batched is not None:
            self._seed(indices.key, indices.place)
            return batched(list(indices))
        samples = []
        for offset, index in enumerate(indices):
            self._seed(indices.key, indices.place + offset)
            samples.append(dataset[index])
        return samples

    def __getitem__(self, index: Any) -> Any:
        if not isinstance(index, PlacedIndices):
            return self._dataset[index]
        self._seed(index.key, index.place)
        return self._dataset[list(index) if index.is_batched else index[0]]

    def __len__(self) -> int:
        return len(self._dataset)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_dataset"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._dataset, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        return PlacedDataset, (self._dataset,)

    def _seed(self, key: bytes, place: int) -> None:
        seed = int.from_bytes(hashlib.blake2b(place.to_bytes(8, "little"), key=key, digest_size=8).digest(), "little")
        # The global function would also note a seed for every CUDA device, each time.
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        numpy = sys.modules.get("numpy")
        if numpy is not None:
            numpy.random.seed(seed & 0xFFFFFFFF)
        if self._generators is None:
            self.__dict__["_generators"] = _held_generators(self._dataset)
        for generator in self._generators:
            _seed_generator(generator, seed)


# ------------------------------------------------------------------------------------------------------- samplers


def _skip(batches: Any, n: int, *, is_batched: bool) -> tuple[Iterator[Any], int]:
    """An iterator over `batches` with `n` of them behind it, and how many samples that were.

    torch's own samplers are not stepped through: their order is one list, which is cut.
    """
    if n == 0:
        return iter(batches), 0
    if is_batched and type(batches) is BatchSampler:
        n_samples = n * batches.batch_size
        cut = _Cut(batches.sampler, n_samples)
        return iter(BatchSampler(cut, batches.batch_size, batches.drop_last)), n_samples
    if not is_batched:
        return iter(_Cut(batches, n)), n
    iterator, n_samples = iter(batches), 0
    for indices in islice(iterator, n):
        n_samples += len(indices)
    return iterator, n_samples


class _Cut:
    """A sampler without its first `n` indices."""

    def __init__(self, sampler: Any, n: int) -> None:
        self.sampler, self.n = sampler, n

    def __iter__(self) -> Iterator[int]:
        sampler, n = self.sampler, self.n
        if type(sampler) is SequentialSampler:
            return iter(range(n, len(sampler)))
        is_permutation = type(sampler) is RandomSampler and not sampler.replacement
        if is_permutation and sampler.num_samples <= len(sampler.data_source):
            return _rest_of_permutation(sampler, n)
        return islice(iter(sampler), n, None)


def _rest_of_permutation(sampler: RandomSampler, n: int) -> Iterator[int]:
    """What a RandomSampler yields after `n` indices, drawing from its generator exactly as it does itself."""
    size, generator = len(sampler.data_source), sampler.generator
    if generator is None:
        generator = torch.Generator()
        generator.manual_seed(int(torch.empty((), dtype=torch.int64).random_().item()))
    yield from torch.randperm(size, generator=generator)[n : sampler.num_samples].tolist()
    if sampler.num_samples == size:  # it draws the next one before it sees that nothing of it is wanted
        torch.randperm(size, generator=generator)


def _copied_with_batches(loader: DataLoader[Any]) -> DataLoader[Any]:
    """A copy of `loader` with `PlacedBatches` in the place of its batch sampler, or of its sampler."""
    is_tagged = loader.num_workers > 0  # in the main process samples draw from the run's own generators
    dataset = PlacedDataset(loader.dataset) if is_tagged else loader.dataset
    if loader.batch_sampler is not None:
        batches = PlacedBatches(loader.batch_sampler, is_batched=True, is_tagged=is_tagged)
        return replaced(loader, dataset=dataset, batch_sampler=batches)
    sampler = PlacedBatches(loader.sampler, is_batched=False, is_tagged=is_tagged)
    return replaced(loader, dataset=dataset, sampler=sampler)


def _batches_of(loader: DataLoader[Any]) -> PlacedBatches:
    found: Any = loader.batch_sampler if loader.batch_sampler is not None else loader.sampler
    assert isinstance(found, PlacedBatches)
    return found


def _is_mapped(loader: Any) -> bool:
    if not isinstance(loader, DataLoader) or hasattr(loader, "state_dict"):
        return False
    return not isinstance(loader.dataset, IterableDataset)


def _described(loader: Any) -> str:
    dataset = getattr(loader, "dataset", None)
    return f"the loader of {type(dataset).__name__}" if dataset is not None else type(loader).__name__


# ----------------------------------------------------------------------------------------------------- generators


def _find_generators(loader: Any) -> list[Any]:
    """Generators that the loader draws from in this process, besides the global ones; each once, in fixed order."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    holders = (loader, getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None))
    found: dict[int, Any] = {}
    for holder in holders:
        for generator in _held_generators(holder):
            found[id(generator)] = generator
    if getattr(loader, "num_workers", 0) == 0:
        for generator in _held_generators(getattr(loader, "dataset", None)):
            found[id(generator)] = generator
    return list(found.values())


def _held_generators(holder: Any) -> list[Any]:
    """Generators among the attributes of an object."""
    numpy = sys.modules.get("numpy")
    kinds: tuple[Any, ...] = (torch.Generator, random.Random)
    if numpy is not None:
        kinds += (numpy.random.Generator, numpy.random.RandomState)
    try:
        values = vars(holder).values()
    except TypeError:
        return []
    return [value for value in values if isinstance(value, kinds)]


def _get_generator(generator: Any) -> Any:
    from fulgur.checkpoint.plain import to_plain

    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return generator.getstate()
    if hasattr(generator, "bit_generator"):
        return to_plain(generator.bit_generator.state, where="state of a generator")
    return to_plain(generator.get_state(legacy=False), where="state of a generator")


def _set_generator(generator: Any, state: Any) -> None:
    from fulgur.checkpoint.plain import from_plain

    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, random.Random):
        version, words, gauss = state
        generator.setstate((version, tuple(words), gauss))
    elif hasattr(generator, "bit_generator"):
        generator.bit_generator.state = from_plain(state)
    else:
        generator.set_state(from_plain(state))


def _seed_generator(generator: Any, seed: int) -> None:
    if isinstance(generator, torch.Generator):
        generator.manual_seed(seed)
    elif hasattr(generator, "bit_generator"):
        generator.bit_generator.state = type(generator.bit_generator)(seed).state
    else:
        generator.seed(seed & 0xFFFFFFFF)
