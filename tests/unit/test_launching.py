"""Data are prepared once, on each machine or in all, and the others wait for it."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any

import pytest
from torch.distributed import HashStore  # type: ignore[attr-defined]

from fulgur.launching import prepare_once


@dataclass
class _Rank:
    """What `prepare_once` asks a strategy."""

    global_rank: int
    store: Any
    num_nodes: int = 2
    is_distributed: bool = True
    events: list[str] = field(default_factory=list)

    @property
    def local_rank(self) -> int:
        return self.global_rank % 2

    @property
    def node_rank(self) -> int:
        return self.global_rank // 2

    def open_store(self, name: str) -> Any:
        return self.store


def _prepare_on_four(*, on_each_node: bool, fails: bool = False) -> tuple[list[int], list[str]]:
    """Run on two machines with two ranks each. Returns who prepared, and the errors."""
    store, prepared, errors, early = HashStore(), [], [], []

    def run(rank: _Rank) -> None:
        def prepare() -> None:
            time.sleep(0.1)
            prepared.append(rank.global_rank)
            if fails:
                raise OSError("no space left")

        n_expected = 2 if on_each_node else 1
        try:
            prepare_once(rank, prepare, on_each_node=on_each_node)  # type: ignore[arg-type]
        except (OSError, RuntimeError) as error:
            errors.append(str(error))
        if not fails and len(prepared) < n_expected:
            early.append(rank.global_rank)

    threads = [threading.Thread(target=run, args=(_Rank(rank, store),)) for rank in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert not early
    return sorted(prepared), errors


@pytest.mark.parametrize(("on_each_node", "who"), [(True, [0, 2]), (False, [0])])
def test_first_rank_of_each_machine_or_of_all_prepares_and_all_wait(on_each_node: bool, who: list[int]) -> None:
    assert _prepare_on_four(on_each_node=on_each_node) == (who, [])


def test_failure_reaches_all_ranks() -> None:
    prepared, errors = _prepare_on_four(on_each_node=False, fails=True)
    assert prepared == [0]
    assert len(errors) == 4
    assert errors.count("no space left") == 1
    assert sum("rank 0 raised OSError('no space left')" in error for error in errors) == 3


def test_one_process_prepares_by_itself() -> None:
    calls: list[str] = []
    prepare_once(_Rank(0, None, is_distributed=False), lambda: calls.append("x"), on_each_node=True)  # type: ignore[arg-type]
    assert calls == ["x"]
