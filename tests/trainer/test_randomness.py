"""Seeds: what a run draws, in this process and in those of loader workers."""

from __future__ import annotations

import random
from typing import Any

import torch
from tests.trainer.conftest import Bare, Numbers, quiet
from torch.utils.data import DataLoader

from fulgur import seed_everything


class Noise(Numbers):
    """Draws in the process that loads: two numbers of different generators."""

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([torch.rand(1).item(), random.random()])


class Keeps(Bare):
    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[Any] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.drawn.append(batch.tolist())
        return self.layer.weight.sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.drawn.append(batch.tolist())


def drawn(*, workers: bool, seed: int = 7, epochs: int = 2) -> list[Any]:
    seed_everything(seed, workers=workers, verbose=False)
    model = Keeps()
    loader = DataLoader(Noise(4), batch_size=1, num_workers=2)
    quiet(max_epochs=epochs).fit(model, loader)
    return model.drawn


def test_seeded_workers_draw_the_same_in_every_run_and_differ_from_each_other() -> None:
    first, second = drawn(workers=True), drawn(workers=True)
    assert first == second
    numbers = [number for batch in first for sample in batch for number in sample]
    assert len(set(numbers)) == len(numbers) == 16  # no worker, epoch or generator repeats another
    assert drawn(workers=True, seed=8) != first


def test_worker_seeds_leave_a_worker_init_fn_of_the_user_alone() -> None:
    def own(worker_id: int) -> None: ...

    seed_everything(1, workers=True, verbose=False)
    loader = DataLoader(Numbers(1), worker_init_fn=own)
    quiet(max_epochs=1).fit(Keeps(), loader)
    assert loader.worker_init_fn is own


def test_without_workers_loaders_get_no_worker_init_fn() -> None:
    seed_everything(1, verbose=False)
    loader: DataLoader[Any] = DataLoader(Numbers(1))
    quiet(max_epochs=1).fit(Keeps(), loader)
    assert loader.worker_init_fn is None


def test_seed_makes_runs_repeat_themselves() -> None:
    def run() -> list[Any]:
        seed_everything(3, verbose=False)
        model = Keeps()
        quiet(max_epochs=2, num_sanity_val_steps=1).fit(model, DataLoader(Noise(3), shuffle=True), DataLoader(Noise(2)))
        return [model.drawn, model.layer.weight.tolist()]

    assert run() == run()
