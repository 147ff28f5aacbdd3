"""Stop after every step, resume, compare: the bits of the run that was never stopped."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler, WeightedRandomSampler

import fulgur as fl
from fulgur.callbacks import ModelCheckpoint
from fulgur.data.position import PlacedLoader
from fulgur.rng import restore_rng

N_SAMPLES = 23
BATCH_SIZE = 4


class Noisy(Dataset[Any]):
    """Samples that are augmented by draws from every generator there is."""

    def __init__(self, n: int = N_SAMPLES) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Any:
        x = torch.full((3,), float(index)) / self.n + 0.1 * torch.randn(3)
        return index, x + 0.1 * random.random() + 0.1 * float(np.random.rand()), torch.tensor([float(index % 3)])


class PairedBatches(Sampler[list[int]]):
    """A batch sampler of a user's own: pairs, in an order drawn when a pass begins."""

    def __len__(self) -> int:
        return N_SAMPLES // 2

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(N_SAMPLES).tolist()
        for start in range(0, N_SAMPLES - 1, 2):
            yield order[start : start + 2]


class Net(fl.LightningModule):
    """Dropout, Adam, a scheduler of each kind, values of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 6), nn.Dropout(0.3), nn.Linear(6, 1))
        self.seen: list[Any] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = torch.zeros(())
        for name, (ids, x, y) in sorted(batch.items()) if isinstance(batch, dict) else [("", batch)]:
            self.seen.append((name, ids.tolist()))
            loss = loss + nn.functional.mse_loss(self.net(x), y)
        self.log("loss", loss, on_step=True, on_epoch=True, batch_size=BATCH_SIZE)
        self.log("largest", loss, on_step=False, on_epoch=True, reduce_fx="max")
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        _, x, y = batch
        self.log("val_loss", nn.functional.mse_loss(self.net(x), y))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.05)
        schedulers = torch.optim.lr_scheduler
        return [optimizer], [
            {"scheduler": schedulers.StepLR(optimizer, 3, gamma=0.9), "interval": "step"},
            {"scheduler": schedulers.StepLR(optimizer, 1, gamma=0.9)},
            {"scheduler": schedulers.ReduceLROnPlateau(optimizer, patience=0), "monitor": "val_loss"},
        ]


def loader(kind: str, num_workers: int = 0) -> Any:
    """A training loader of one of several kinds, made anew."""
    if kind == "shuffled":
        return DataLoader(Noisy(), BATCH_SIZE, shuffle=True, num_workers=num_workers)
    if kind == "sequential":
        return DataLoader(Noisy(), BATCH_SIZE, num_workers=num_workers, drop_last=True)
    if kind == "weighted":
        weights = torch.arange(1.0, N_SAMPLES + 1)
        return DataLoader(Noisy(), BATCH_SIZE, sampler=WeightedRandomSampler(weights, 20), num_workers=num_workers)
    if kind == "own generator":
        generator = torch.Generator().manual_seed(3)
        return DataLoader(Noisy(), BATCH_SIZE, shuffle=True, generator=generator, num_workers=num_workers)
    if kind == "batch sampler":
        return DataLoader(Noisy(), batch_sampler=PairedBatches(), num_workers=num_workers)
    if kind == "combined":
        short = DataLoader(Noisy(9), BATCH_SIZE, shuffle=True, num_workers=num_workers)
        return {"long": loader("shuffled", num_workers), "short": short}
    assert kind == "persistent"
    return DataLoader(Noisy(), BATCH_SIZE, shuffle=True, num_workers=2, persistent_workers=True)


@dataclass
class Outcome:
    """Everything that must be equal."""

    state: dict[str, Any]
    optimizer: dict[str, Any]
    schedulers: list[Any]
    metrics: dict[str, Any]
    counters: tuple[int, int]
    seen: list[Any] = field(default_factory=list)


class Runs:
    """Makes runs that save after every step into `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(
        self,
        train: Callable[[], Any],
        *,
        resume_from: str | None = None,
        saves_to: str | None = None,
        seed: int = 0,
        model: Callable[[], Any] = Net,
        **settings: Any,
    ) -> Outcome:
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        callbacks = []
        if saves_to is not None:
            callbacks.append(
                ModelCheckpoint(
                    self.folder / saves_to,
                    "{step}",
                    save_top_k=-1,
                    every_n_train_steps=1,
                    auto_insert_metric_name=False,
                )
            )
        arguments: dict[str, Any] = {"max_epochs": 2, "val_check_interval": 0.5} | settings
        trainer = fl.Trainer(
            accelerator="cpu",
            logger=False,
            callbacks=callbacks,
            enable_checkpointing=bool(callbacks),
            enable_progress_bar=False,
            enable_model_summary=False,
            **arguments,
        )
        module = model()
        trainer.fit(module, train(), DataLoader(Noisy(8), 4), ckpt_path=resume_from)
        return Outcome(
            state=module.state_dict(),
            optimizer=trainer.optimizers[0].state_dict(),
            schedulers=[config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
            metrics=dict(trainer.callback_metrics),
            counters=(trainer.global_step, trainer.current_epoch),
            seen=module.seen,
        )

    def files(self, name: str) -> list[str]:
        """Checkpoints of a run, in the order of their steps."""
        return [str(path) for path in sorted((self.folder / name).glob("*.ckpt"), key=lambda p: int(p.stem))]


def plain(value: Any) -> Any:
    """Nested data with tensors as their exact values."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.tolist()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def assert_same(resumed: Outcome, whole: Outcome) -> None:
    """Bits, not closeness."""
    assert resumed.counters == whole.counters
    n_seen = len(resumed.seen)
    assert resumed.seen == (whole.seen[-n_seen:] if n_seen else [])
    for part in ("state", "optimizer", "schedulers", "metrics"):
        assert plain(getattr(resumed, part)) == plain(getattr(whole, part)), part


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


@pytest.mark.parametrize("kind", ["shuffled", "sequential", "weighted", "own generator", "batch sampler", "combined"])
def test_resume_after_every_step(runs: Runs, kind: str) -> None:
    whole = runs(partial(loader, kind), saves_to="whole")
    files = runs.files("whole")
    assert len(files) == whole.counters[0]
    for file in files:
        assert_same(runs(partial(loader, kind), resume_from=file, seed=99), whole)


@pytest.mark.parametrize("kind", ["shuffled", "own generator", "batch sampler", "combined", "persistent"])
def test_resume_with_workers(runs: Runs, kind: str) -> None:
    train = partial(loader, kind, num_workers=2)
    whole = runs(train, saves_to="whole")
    for file in runs.files("whole")[1::4]:
        assert_same(runs(train, resume_from=file, seed=99), whole)


def test_augmentation_in_workers_does_not_depend_on_their_number(runs: Runs) -> None:
    two = runs(partial(loader, "shuffled", num_workers=2), saves_to="two")
    assert_same(runs(partial(loader, "shuffled", num_workers=1)), two)
    assert_same(runs(partial(loader, "shuffled", num_workers=1), resume_from=runs.files("two")[2], seed=99), two)


@pytest.mark.parametrize(
    "settings", [{"accumulate_grad_batches": 4}, {"val_check_interval": 1.0}, {"limit_train_batches": 4}]
)
def test_resume_under_settings(runs: Runs, settings: dict[str, Any]) -> None:
    train = partial(loader, "shuffled")
    whole = runs(train, saves_to="whole", **settings)
    for file in runs.files("whole"):
        assert_same(runs(train, resume_from=file, seed=99, **settings), whole)


def test_resumed_run_can_be_stopped_and_resumed_again(runs: Runs) -> None:
    train = partial(loader, "shuffled")
    whole = runs(train, saves_to="whole")
    runs(train, resume_from=runs.files("whole")[2], saves_to="second", seed=1)
    second = runs.files("second")
    for file in second[::3]:
        assert_same(runs(train, resume_from=file, seed=2), whole)


@pytest.mark.parametrize("k", [1, 3, 5, 6, 7, 11])
def test_run_that_max_steps_cut_goes_on_where_it_stopped(runs: Runs, k: int, tmp_path: Path) -> None:
    train = partial(loader, "sequential")
    settings = {"val_check_interval": 1.0}

    class Plain(Net):
        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=0.05)

    whole = runs(train, model=Plain, **settings)
    runs(train, model=Plain, saves_to="cut", max_steps=k, **settings)
    resumed = runs(train, model=Plain, resume_from=runs.files("cut")[-1], seed=99, **settings)
    torch.testing.assert_close(resumed.state, whole.state, rtol=0, atol=0)
    assert resumed.counters == whole.counters


def test_position_of_a_large_index_is_found_without_the_dataset(tmp_path: Path) -> None:
    class Huge(torch.utils.data.Dataset[int]):
        touched = 0

        def __len__(self) -> int:
            return 4_000_000

        def __getitem__(self, index: int) -> int:
            Huge.touched += 1
            return index

    torch.manual_seed(0)
    first = PlacedLoader(torch.utils.data.DataLoader(Huge(), batch_size=2, shuffle=True))
    iterator = iter(first)
    next(iterator)
    state = first.state_dict() | {"n_drawn": 1_000_000}
    expected_order = _order(first)
    Huge.touched = 0
    second = PlacedLoader(torch.utils.data.DataLoader(Huge(), batch_size=2, shuffle=True))
    second.resume(state, in_pass=True)
    assert next(iter(second)).tolist() == expected_order[2_000_000:2_000_002]
    assert Huge.touched == 2


def _order(placed: Any) -> list[int]:
    restore_rng(placed.state_dict()["start"]["rng"])
    return list(placed.loader.sampler)
