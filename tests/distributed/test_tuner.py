"""The tuner on two ranks: the same results on both, and nothing of a search left on either."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fulgur import LightningModule, Trainer, seed_everything
from fulgur.callbacks import BatchSizeFinder, LearningRateFinder
from fulgur.errors import MisconfigurationException
from fulgur.testing import run_ranks
from fulgur.tuner import Tuner

QUIET = {
    "accelerator": "cpu",
    "devices": 2,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "max_epochs": 2,
}


class Net(LightningModule):
    def __init__(self, *, skips: bool = False, most: tuple[int, int] = (1000, 1000)) -> None:
        super().__init__()
        self.lr, self.batch_size, self.skips, self.most = 0.1, 2, skips, most
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 1))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        rank = int(os.environ["RANK"])
        if len(batch[0]) > self.most[rank]:
            raise RuntimeError("CUDA out of memory. Tried to allocate 1.00 GiB")
        if self.skips and batch_idx % 3 == 1 and rank == 1:
            return None
        return nn.functional.mse_loss(self.layers(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)

    def train_dataloader(self) -> Any:
        x = torch.randn(64, 4, generator=torch.Generator().manual_seed(1))
        return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=self.batch_size, shuffle=True)


class AtSecond(LearningRateFinder):
    def on_fit_start(self, *args: Any) -> None:
        return

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 1:
            self.lr_find(trainer, pl_module)


def whole(model: Any) -> list[Any]:
    return [getattr(value, "full_tensor", lambda v=value: v)().tolist() for value in model.state_dict().values()]


def find_and_fit(strategy: str, find: str, skips: bool) -> Any:
    seed_everything(3, verbose=False)
    model = Net(skips=skips)
    callbacks = {
        "callback": [LearningRateFinder(num_training_steps=20, update_attr=False)],
        "epoch": [AtSecond(num_training_steps=20, update_attr=False)],
    }.get(find, [])
    trainer = Trainer(**QUIET, strategy=strategy, callbacks=callbacks)
    results: Any = None
    if find == "tuner":
        results = Tuner(trainer).lr_find(model, num_training=20, update_attr=False).results
    trainer.fit(model)
    if callbacks:
        results = callbacks[0].optimal_lr.results
    return results, whole(model), trainer.global_step


@pytest.mark.parametrize(("strategy", "skips"), [("ddp", False), ("ddp", True), ("fsdp", True)])
def test_both_ranks_find_the_same_and_train_on_as_if_they_had_not(strategy: str, skips: bool) -> None:
    finds = ("nothing", "tuner", "callback", "epoch")
    by_rank = run_ranks(_find_all, 2, strategy, finds, skips, timeout_s=90.0)
    first, second = by_rank
    for find in finds:
        results, bits, steps = first[find]
        assert second[find][0] == results
        assert (bits, steps) == first["nothing"][1:]
        assert second[find][1:] == second["nothing"][1:]
        assert results is None or len(results["lr"]) == 20
    assert first["tuner"][0] == first["callback"][0]


def _find_all(strategy: str, finds: tuple[str, ...], skips: bool) -> dict[str, Any]:
    return {find: find_and_fit(strategy, find, skips) for find in finds}


def scale(most: tuple[int, int], mode: str) -> tuple[Any, ...]:
    seed_everything(3, verbose=False)
    model = Net(most=most)
    trainer = Trainer(**QUIET, strategy="ddp")
    size = Tuner(trainer).scale_batch_size(model, mode=mode, margin=0.0)
    finder = BatchSizeFinder(mode, margin=0.0)
    other = Net(most=most)
    with_callback = Trainer(**QUIET, strategy="ddp", callbacks=[finder])
    with_callback.fit(other)
    return size, model.batch_size, finder.optimal_batch_size, with_callback.train_dataloader.batch_size


@pytest.mark.parametrize(
    ("most", "mode", "size"),
    [((1000, 9), "power", 8), ((9, 1000), "binsearch", 9), ((1000, 1000), "power", 32)],
)
def test_what_is_too_much_for_one_rank_is_too_much_for_all(most: Any, mode: str, size: int) -> None:
    assert run_ranks(scale, 2, most, mode) == [(size,) * 4] * 2


def refuse(options: dict[str, Any]) -> tuple[str, str]:
    with pytest.raises(ValueError, match="The batch size finder lets each rank find out by itself") as by_tuner:
        Tuner(Trainer(**QUIET, **options)).scale_batch_size(Net())
    trainer = Trainer(**QUIET, **options, callbacks=[BatchSizeFinder()])
    with pytest.raises(MisconfigurationException) as by_callback:
        trainer.fit(Net())
    return str(by_tuner.value), str(by_callback.value)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"strategy": "fsdp"}, "under FSDPStrategy a rank holds a part of the model only"),
        ({"strategy": "ddp", "sync_batchnorm": True}, "with sync_batchnorm=True a forward pass waits for the other"),
    ],
)
def test_ranks_that_cannot_try_by_themselves_are_refused(options: Any, reason: str) -> None:
    for texts in run_ranks(refuse, 2, options):
        assert all(reason in text for text in texts)
