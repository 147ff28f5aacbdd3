"""A store of their own for the ranks that torchrun has started together."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

_POLL_S = 0.01


def open_round(store: Any, rank: int, world_size: int, *, timeout: timedelta) -> Any:
    """The part of `store` that only these ranks use. All ranks must reach this.

    The agent of torchrun keeps one store for all restarts, in which the addresses of the ranks before would be found
    (github.com/pytorch/pytorch/issues/167288). The number of the restart does not tell one from the other: each agent
    counts its own. So each rank leaves a name that nobody had before; rank 0 answers to it with the name of the round,
    and goes on until all have taken it. What a rank of an earlier round has left is answered too, and nobody hears it.

    Args:
        store: Of the agent.
        rank: Of this process.
        world_size: Number of ranks.
        timeout: How long to wait for the last of them.

    Raises:
        TimeoutError: Some did not come.
        RuntimeError: Rank 0 did not come, or the store is gone.
    """
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]

    meeting = PrefixStore("fulgur/rounds", store)
    name = uuid.uuid4().hex
    if rank == 0:
        _gather(meeting, name, world_size, until=time.monotonic() + timeout.total_seconds())
    else:
        meeting.set(f"here/{rank}", name)
        meeting.wait([f"round of/{name}"], timeout)
        name = meeting.get(f"round of/{name}").decode()
        meeting.set(f"{name}/{rank}", "joined")
    return PrefixStore(name, meeting)


def _gather(meeting: Any, name: str, world_size: int, *, until: float) -> None:
    missing, answered = set(range(1, world_size)), set[str]()
    is_set: Callable[[str], bool] = lambda key: bool(meeting.check([key]))  # noqa: E731
    while missing:
        for rank in sorted(missing):
            if is_set(f"{name}/{rank}"):
                missing.remove(rank)
            elif is_set(f"here/{rank}") and (other := meeting.get(f"here/{rank}").decode()) not in answered:
                answered.add(other)
                meeting.set(f"round of/{other}", name)
        if missing and time.monotonic() > until:
            raise TimeoutError(f"Rank 0 waited for the ranks {sorted(missing)}, and they did not come.")
        time.sleep(_POLL_S)
