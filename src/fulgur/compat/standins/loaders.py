"""Questions about loaders and batches."""

from __future__ import annotations

import os
from typing import Any

from torch.utils.data import IterableDataset

from fulgur.data.loaders import sized_length
from fulgur.data.transfer import find_batch_size
from fulgur.errors import MisconfigurationException


def sized_len(dataloader: object) -> int | None:
    """Length of a loader, or None where it has none."""
    length = sized_length(dataloader)
    return int(length) if length != float("inf") else None


def has_len(dataloader: object) -> bool:
    """Whether a loader has a length."""
    return sized_len(dataloader) is not None


def has_len_all_ranks(
    dataloader: object, strategy: Any, allow_zero_length_dataloader_with_multiple_devices: bool = False
) -> bool:
    """Whether a loader has a length on every rank. All ranks must call it.

    Raises:
        RuntimeError: It is empty on this rank and not on others, which is not allowed.
    """
    length = sized_len(dataloader)
    if length is None:
        return False
    import torch

    total = int(strategy.reduce(torch.tensor(length, device=strategy.root_device), reduce_op="sum"))
    if total > 0 and length == 0 and not allow_zero_length_dataloader_with_multiple_devices:
        raise RuntimeError("The loader of this rank is empty, and those of others are not. Split the samples evenly.")
    return True


def has_iterable_dataset(dataloader: object) -> bool:
    """Whether a loader's dataset is an `IterableDataset`."""
    return isinstance(getattr(dataloader, "dataset", None), IterableDataset)


def extract_batch_size(batch: Any) -> int:
    """Samples in a batch: the first dimension of its first tensor.

    Raises:
        MisconfigurationException: There is none.
    """
    size = find_batch_size(batch)
    if size is None:
        raise MisconfigurationException(
            f"No batch size is to be seen in a {type(batch).__name__}. Pass batch_size to self.log."
        )
    return size


def suggested_max_num_workers(local_world_size: int, num_cpus: int | None = None) -> int:
    """Workers that each process's loader may have, for all of them to share the cores.

    Raises:
        ValueError: `local_world_size` is below 1.
    """
    if local_world_size < 1:
        raise ValueError(f"local_world_size={local_world_size} must be at least 1.")
    if num_cpus is None:
        num_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, num_cpus // local_world_size - 1)
