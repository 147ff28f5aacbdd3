from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from fulgur.data.combine import CombinedLoader
from fulgur.data.workers import WorkerSeeder, seed_workers


class Draws(Dataset[float]):
    """Random numbers drawn in the worker process."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, idx: int) -> float:
        return float(torch.rand(()))


def drawn(rank: int, epochs: int = 1) -> list[Any]:
    loader = DataLoader(Draws(), num_workers=1, worker_init_fn=WorkerSeeder(rank))
    torch.manual_seed(1)
    return [[float(x) for x in loader] for _ in range(epochs)]


@pytest.fixture
def _seeding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_SEED_WORKERS", "1")


# Python 3.12 and newer warn of a fork in a process with threads, which torch has.
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_workers_repeat_from_run_to_run_and_differ_between_epochs_and_ranks() -> None:
    first, second = drawn(rank=0, epochs=2)
    assert drawn(rank=0, epochs=2) == [first, second]
    assert first != second
    assert drawn(rank=1) != [first]


def test_the_seeder_can_be_pickled() -> None:
    assert pickle.loads(pickle.dumps(WorkerSeeder(3))) == WorkerSeeder(3)


@pytest.mark.usefixtures("_seeding")
def test_loaders_get_a_seeder_with_the_rank() -> None:
    loader = DataLoader(Draws())
    seed_workers(CombinedLoader([loader, [1, 2]]), global_rank=2)
    assert loader.worker_init_fn == WorkerSeeder(2)


@pytest.mark.usefixtures("_seeding")
def test_a_worker_init_fn_of_the_user_stays() -> None:
    loader = DataLoader(Draws(), worker_init_fn=print)
    seed_workers(loader)
    assert loader.worker_init_fn is print


def test_without_seed_everything_loaders_stay_as_they_are() -> None:
    loader = DataLoader(Draws())
    seed_workers(loader)
    assert loader.worker_init_fn is None
