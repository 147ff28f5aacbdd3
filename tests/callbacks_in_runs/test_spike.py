"""Spikes of the loss: what is one, what is written, state, two ranks."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
import torch

from fulgur import LightningModule, Trainer
from fulgur.callbacks import ModelCheckpoint, SpikeDetection
from fulgur.callbacks.spike import TrainingSpikeException
from fulgur.errors import MisconfigurationException
from fulgur.testing import run_ranks


class Losses(LightningModule):
    def __init__(self, losses: Any) -> None:
        super().__init__()
        self.weight, self.losses = torch.nn.Parameter(torch.zeros(())), losses

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.losses[batch_idx]
        return None if loss is None else self.weight * 0 + loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(losses: Any, *callbacks: Any, n: int | None = None, ckpt_path: Any = None, **arguments: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    saves = any(isinstance(c, ModelCheckpoint) for c in callbacks)
    trainer = Trainer(**quiet, callbacks=list(callbacks), max_epochs=1, enable_checkpointing=saves, **arguments)  # type: ignore[arg-type]
    trainer.fit(Losses(losses), torch.utils.data.DataLoader(range(n or len(losses))), ckpt_path=ckpt_path)  # type: ignore[arg-type]
    return trainer


@pytest.mark.parametrize(("arguments", "losses", "at"), [
    ({}, [1.0, 1.0, 3.5, 1.0], 2),
    ({}, [1.0, 1.0, 2.5, 1.0], None),
    ({}, [1.0, 9.0], 1),
    ({"warmup": 2}, [1.0, 9.0, 1.0], None),
    ({"atol": 3.0}, [1.0, 1.0, 3.5, 1.0], None),
    ({"atol": 2.0, "rtol": None}, [1.0, 1.0, 3.0], 2),
    ({"mode": "max", "rtol": 0.5}, [4.0, 9.0, 1.0], 2),
    ({}, [1.0, float("nan")], 1),
    ({"finite_only": False}, [1.0, float("nan")], None),
    ({}, [1.0, None, 1.0, 4.0], 3),
    ({"window": 1}, [1.0, 2.0, 4.0, 8.0], None),
])  # fmt: skip
def test_loss_far_from_the_mean_of_those_before_ends_the_training(arguments: Any, losses: Any, at: int | None) -> None:
    if at is None:
        train(losses, SpikeDetection(**arguments))
        return
    with pytest.raises(TrainingSpikeException) as raised:
        train(losses, SpikeDetection(**arguments))
    assert raised.value.batch_idx == at
    with open("skip_batches.json") as file:
        assert json.load(file) == [at - 1, at]


def test_file_may_be_elsewhere(tmp_path: Any) -> None:
    path = tmp_path / "sub" / "bad.json"
    with pytest.raises(TrainingSpikeException, match=r"bad\.json"):
        train([1.0, 9.0], SpikeDetection(exclude_batches_path=path))
    assert json.loads(path.read_text()) == [0, 1]


def test_resumed_run_knows_the_losses_before(tmp_path: Any) -> None:
    saver = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1, auto_insert_metric_name=False)
    train([1.0, 2.0, 3.0], SpikeDetection(), saver)
    resumed = SpikeDetection()
    train([1.0, 2.0, 3.0], resumed, ckpt_path=tmp_path / "2.ckpt")
    assert resumed.state_dict()["running"] == [1.0, 2.0, 3.0]
    assert resumed.state_dict()["mean"] == 2.0


@pytest.mark.parametrize("arguments", [{"mode": "low"}, {"window": 0}, {"warmup": -1}, {"rtol": None}])
def test_arguments_that_cannot_work_are_refused(arguments: Any) -> None:
    with pytest.raises(MisconfigurationException, match=f"{next(iter(arguments))}="):
        SpikeDetection(**arguments)


def spike_on_one_rank() -> int:
    losses = [1.0, 1.0, 1.0 + 9 * int(os.environ["RANK"]), 1.0]
    try:
        train(losses, SpikeDetection(), strategy="ddp", devices=2, n=8)
    except TrainingSpikeException as error:
        return error.batch_idx
    return -1


def test_all_ranks_end_at_the_same_batch() -> None:
    assert run_ranks(spike_on_one_rank, 2) == [2, 2]
