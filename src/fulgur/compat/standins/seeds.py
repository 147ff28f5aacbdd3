"""Seeds of loader workers."""

from __future__ import annotations

from fulgur.rank import rank_zero_only
from fulgur.rng import seed_worker


def pl_worker_init_function(worker_id: int, rank: int | None = None) -> None:
    """Seed the generators of a loader worker, differently for each worker and rank."""
    seed_worker(worker_id, rank_zero_only.rank if rank is None else rank)
