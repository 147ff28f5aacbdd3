"""Ranks that a store which others have used before brings together."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch.distributed import HashStore  # type: ignore[attr-defined]

from fulgur.launch.rounds import open_round

MOMENT = timedelta(seconds=20)


def _meet(store: HashStore, world_size: int, values: list[str]) -> list[str]:
    """Each rank leaves its value for the next one. Returns what each rank has found."""

    def find_next(rank: int) -> str:
        own = open_round(store, rank, world_size, timeout=MOMENT)
        own.set(f"address/{rank}", values[rank])
        return str(own.get(f"address/{(rank + 1) % world_size}").decode())

    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(find_next, range(world_size)))


def test_ranks_of_a_restart_do_not_find_what_those_before_them_left() -> None:
    store = HashStore()
    assert _meet(store, 3, ["a", "b", "c"]) == ["b", "c", "a"]
    assert _meet(store, 3, ["d", "e", "f"]) == ["e", "f", "d"]


def test_ranks_meet_though_earlier_ones_had_come_and_were_not_answered() -> None:
    store = HashStore()
    store.set("fulgur/rounds/here/1", "of a rank that was killed while it waited")
    assert _meet(store, 2, ["a", "b"]) == ["b", "a"]


def test_fewer_ranks_meet_where_more_have_been() -> None:
    store = HashStore()
    assert _meet(store, 3, ["a", "b", "c"]) == ["b", "c", "a"]
    assert _meet(store, 2, ["d", "e"]) == ["e", "d"]


def test_rank_that_does_not_come_is_named() -> None:
    with pytest.raises(TimeoutError, match=re.escape("Rank 0 waited for the ranks [1, 2], and they did not come.")):
        open_round(HashStore(), 0, 3, timeout=timedelta(seconds=0.05))
