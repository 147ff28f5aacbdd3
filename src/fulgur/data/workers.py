"""Seeds of loader workers: repeatable, and different for each epoch, worker and rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader

from fulgur.data.combine import CombinedLoader
from fulgur.rng import seed_worker, should_seed_workers


@dataclass(frozen=True, slots=True)
class WorkerSeeder:
    """A ``worker_init_fn`` that seeds every generator of a loader worker, and can be pickled.

    Attributes:
        global_rank: Rank of the process whose workers are seeded.
    """

    global_rank: int = 0

    def __call__(self, worker_id: int) -> None:
        """Seed the generators of this worker process."""
        seed_worker(worker_id, self.global_rank)


def seed_workers(loader: Any, *, global_rank: int = 0) -> None:
    """Give `loader` a `WorkerSeeder`, if ``seed_everything(workers=True)`` was called and it has none of its own.

    Args:
        loader: A DataLoader or CombinedLoader; anything else is left alone.
        global_rank: Rank of this process.
    """
    if not should_seed_workers():
        return
    if isinstance(loader, CombinedLoader):
        for inner in loader.flattened:
            seed_workers(inner, global_rank=global_rank)
    elif isinstance(loader, DataLoader) and loader.worker_init_fn is None:
        loader.worker_init_fn = WorkerSeeder(global_rank)
