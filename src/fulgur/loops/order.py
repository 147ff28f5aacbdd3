"""Predictions of all ranks in the order of the dataset."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise, zip_longest
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fulgur.errors import MisconfigurationException

if TYPE_CHECKING:
    from fulgur.data.shard import Shard
    from fulgur.loops.predict import PredictLoop

_NOTHING = object()


def predictions_in_order(loop: PredictLoop, shard: Shard) -> list[Any]:
    """What all ranks have predicted, in the order of the dataset; all ranks must reach this.

    Args:
        loop: After its run, with predictions and indices kept.
        shard: Brings the ranks together.

    Returns:
        A prediction for each batch, of as many samples as the loader's; with several loaders a list of such lists.

    Raises:
        MisconfigurationException: Batches hold samples out of order, and a prediction cannot be cut into samples.
    """
    kept = zip(loop.epoch_batch_indices, loop.predictions_by_loader, strict=True)
    own = [list(zip(*of_loader, strict=True)) for of_loader in kept]
    by_rank = shard.gather(own)  # all ranks must reach this
    ordered = []
    for index, loader in enumerate(loop.feed.loaders):
        # Batch by batch over the ranks: that is the order in which they were dealt out.
        dealt = zip_longest(*(of_rank[index] for of_rank in by_rank), fillvalue=_NOTHING)
        batches = [batch for step in dealt for batch in step if batch is not _NOTHING]
        ordered.append(in_order(batches, _batch_size(loader)))
    return ordered[0] if len(ordered) == 1 else ordered


def in_order(batches: list[tuple[list[int], Any]], batch_size: int | None) -> list[Any]:
    """Predictions in the order of their samples' indices, each sample once.

    Args:
        batches: Indices of each batch, and the prediction for it. Where indices are not known, the order stays.
        batch_size: Samples of each prediction returned; None takes that of the first batch.
    """
    indices = [index for own, _ in batches for index in own]
    size = batch_size or max((len(own) for own, _ in batches), default=0)
    is_known = all(own and all(isinstance(index, int) for index in own) for own, _ in batches)
    is_stacked = all(len(own) == size for own, _ in batches[:-1])
    if not is_known or (is_stacked and all(a < b for a, b in pairwise(indices))):
        return [prediction for _, prediction in batches]
    samples: dict[int, Any] = {}
    for own, prediction in batches:
        samples.update(zip(own, _samples_of(prediction, len(own)), strict=True))
    parts = [samples[index] for index in sorted(samples)]
    return [_stacked(parts[start : start + size]) for start in range(0, len(parts), size)]


def _batch_size(loader: Any) -> int | None:
    """Samples in a batch of a loader on one rank."""
    while (inner := getattr(loader, "loader", None)) is not None:
        loader = inner
    found = getattr(getattr(loader, "batch_sampler", None), "batch_size", None)
    return found if isinstance(found, int) else None


def _samples_of(prediction: Any, n: int) -> list[Any]:
    """A prediction cut into those of its `n` samples, each in the form of the whole."""
    if isinstance(prediction, Tensor) and prediction.dim() and prediction.size(0) == n:
        return list(prediction.split(1))
    if isinstance(prediction, Mapping):
        columns = [_samples_of(value, n) for value in prediction.values()]
        return [dict(zip(prediction, row, strict=True)) for row in zip(*columns, strict=True)]
    if isinstance(prediction, (list, tuple)):
        if all(_has_samples(part, n) for part in prediction):
            columns = [_samples_of(part, n) for part in prediction]
            return [_like(prediction, row) for row in zip(*columns, strict=True)]
        if len(prediction) == n:
            return [_Listed([part]) for part in prediction]
    raise MisconfigurationException(
        f"predict_step returned {type(prediction).__name__} for a batch of {n} samples, which cannot be cut into the "
        "predictions of single samples, so they cannot be put into the dataset's order. Return tensors whose first "
        "dimension is the batch, dicts or tuples of such, or a list with one item for each sample; or leave out "
        "return_predictions='ordered'."
    )


class _Listed(list[Any]):
    """One item of a list with an item for each sample."""


def _has_samples(part: Any, n: int) -> bool:
    """Whether `part` is one output for all `n` samples, as opposed to the outputs for one of them."""
    if isinstance(part, Tensor):
        return part.dim() > 0 and part.size(0) == n
    if isinstance(part, Mapping):
        return all(_has_samples(value, n) for value in part.values())
    return isinstance(part, (list, tuple)) and (len(part) == n or all(_has_samples(item, n) for item in part))


def _stacked(parts: list[Any]) -> Any:
    """One prediction of several samples."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(parts)
    if isinstance(first, _Listed):
        return [item for part in parts for item in part]
    if isinstance(first, Mapping):
        return {key: _stacked([part[key] for part in parts]) for key in first}
    columns: Iterable[list[Any]] = ([part[i] for part in parts] for i in range(len(first)))
    return _like(first, map(_stacked, columns))


def _like(container: Any, items: Iterable[Any]) -> Any:
    return type(container)(*items) if hasattr(container, "_fields") else type(container)(items)
