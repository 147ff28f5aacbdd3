"""An epoch's values over all ranks, in one collective for all keys together.

Each rank gives one float64 tensor: a hash of its keys, their number, and total and weight of each. Equal hashes, the
usual case: done. Otherwise the names are exchanged too. A rank that logged nothing, for it had no batch, takes the
names of the others; anything else is an error, which names the keys of each rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fulgur.errors import MisconfigurationException
from fulgur.logged import Entry, Key
from fulgur.strategies.strategy import Strategy

if TYPE_CHECKING:
    from fulgur.metrics import MetricLog

_CAPACITY = 126
"""Keys that fit into the first exchange. More need a second one."""


class SharedSums:
    """Makes an epoch's totals and weights those of all ranks.

    Args:
        strategy: Through which ranks talk.
        metrics: Whose entries are shared.
    """

    def __init__(self, strategy: Strategy, metrics: MetricLog) -> None:
        self._strategy, self._metrics = strategy, metrics

    def share(self, stage: str, ready: list[Entry]) -> list[Entry]:
        """Replace totals and weights by those of all ranks. All ranks must reach this.

        Args:
            stage: "train", "validate" or "test".
            ready: Entries with a value on this rank.

        Returns:
            The entries with a value on any rank, in the same order on all; those that stay local come first.

        Raises:
            MisconfigurationException: Ranks logged different keys.
        """
        local = [entry for entry in ready if entry.is_local]
        known = {id(entry): key for key, entry in self._metrics.keyed_entries(stage)}
        shared = sorted((e for e in ready if not e.is_local), key=lambda entry: known[id(entry)][:4])
        keys = [known[id(entry)] for entry in shared]
        rows = self._exchange(keys, shared)
        n_keys = [int(row[1]) for row in rows]
        if len({tuple(row[:2].tolist()) for row in rows}) > 1:
            keys = self._settle_names(keys, stage)
            shared = shared or [self._metrics.adopt(key) for key in keys]
            for entry, key in zip(shared, keys, strict=True):
                _fill_lists(entry.metric, key)
        if max(n_keys) > _CAPACITY:
            rows = self._strategy.all_gather(_row(keys, shared, len(keys))).cpu()  # all ranks must reach this
        leaders = self._strategy.data_leaders  # the others have logged the same once more
        filled = torch.stack([rows[rank] for rank in leaders if n_keys[rank]] or [rows[0]])
        _assign(shared, filled[:, 2:])
        return local + shared

    def _exchange(self, keys: Sequence[Key], entries: Sequence[Entry]) -> Tensor:
        row = _row(keys, entries if len(entries) <= _CAPACITY else (), _CAPACITY)
        return self._strategy.all_gather(row).cpu()  # all ranks must reach this; waits for the device

    def _settle_names(self, keys: list[Key], stage: str) -> list[Key]:
        by_rank: list[list[Key]] = self._strategy.all_gather_object(keys)  # all ranks must reach this
        filled = [names for names in by_rank if names]
        if any([k[:4] for k in names] != [k[:4] for k in filled[0]] for names in filled):
            everywhere = set.intersection(*({k.shown for k in names} for names in filled))
            shown = [sorted({k.shown for k in names} - everywhere) for names in by_rank]
            listed = "; ".join(f"rank {rank}: {', '.join(n) or 'none of them'}" for rank, n in enumerate(shown))
            raise MisconfigurationException(
                f"The ranks logged different keys in this {_PASSES[stage]}, so that their means cannot be told. Beyond "
                f"what all of them logged: {listed}. Log the same keys on all ranks, or pass sync_dist=False to "
                "self.log for values that belong to one rank."
            )
        lists = [
            dict(item for key in alike for item in key.lists if item[1] is not None)
            for alike in zip(*filled, strict=True)
        ]
        return [key._replace(lists=tuple(content.items())) for key, content in zip(filled[0], lists, strict=True)]


def mean_over_ranks(strategy: Strategy, entries: Sequence[Entry], numbers: Sequence[float]) -> list[float]:
    """Values of one step reduced over the ranks that have them. All ranks must reach this."""
    own = {entry.step_key: number for entry, number in zip(entries, numbers, strict=True)}
    gathered = strategy.all_gather_object(own)  # all ranks must reach this
    of_all = [gathered[rank] for rank in strategy.data_leaders]
    result = []
    for entry in entries:
        values = [values[entry.step_key] for values in of_all if entry.step_key in values]
        total = {"min": min, "max": max}.get(entry.reduce, sum)(values)
        result.append(total / len(values) if entry.reduce == "mean" else total)
    return result


_PASSES = {"train": "training epoch", "validate": "validation", "test": "test"}


def _row(keys: Sequence[Key], entries: Sequence[Entry], capacity: int) -> Tensor:
    row = torch.zeros(2 + 2 * capacity, dtype=torch.float64)
    names = "\n".join(repr((key[:4], key.is_filled)) for key in keys)
    row[0] = int.from_bytes(blake2b(names.encode(), digest_size=6).digest(), "big")  # exact in float64
    row[1] = len(keys)
    if entries:
        totals = [entry.raw_total() for entry in entries]
        on_device = [total for total in totals if isinstance(total, Tensor)]
        numbers = iter(torch.stack([t.detach().to(torch.float64) for t in on_device]).cpu() if on_device else ())
        row[2 : 2 + len(entries)] = torch.tensor(
            [next(numbers).item() if isinstance(total, Tensor) else total for total in totals], dtype=torch.float64
        )
        row[2 + capacity : 2 + capacity + len(entries)] = torch.tensor([e.weight for e in entries], dtype=torch.float64)
    return row


def _fill_lists(metric: Any, key: Key) -> None:
    """Give the empty lists of a torchmetrics metric no samples of the others' kind: it gathers lists item by item."""
    for name, (shape, dtype) in ((name, content) for name, content in key.lists if content is not None):
        if not getattr(metric, name):
            setattr(metric, name, [torch.empty(0, *shape, dtype=dtype, device=metric.device)])


def _assign(entries: Sequence[Entry], rows: Tensor) -> None:
    """Give each entry the total and the weight that the rows of all ranks make."""
    totals, weights = rows.chunk(2, dim=1)
    for index, entry in enumerate(entries):
        if entry.metric is not None:
            continue
        column = totals[:, index]
        total = column.amin() if entry.reduce == "min" else column.amax() if entry.reduce == "max" else column.sum()
        entry.weight = float(weights[:, index].sum())
        if entry.total is None:
            entry.host_total = float(total)
        else:
            entry.total, entry.host_total = total.to(entry.total), None
