"""Resuming with loaders that are no DataLoader over a map-style dataset, and what they say."""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torchmetrics
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import fulgur as fl
from fulgur.callbacks import ModelCheckpoint
from fulgur.loggers import CSVLogger
from fulgur.testing import calls_per_step


class Counted(fl.LightningModule):
    """Notes what it saw."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(1, 1)
        self.seen: list[Any] = []
        self.mean = torchmetrics.MeanMetric()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen.append(batch.flatten().tolist())
        loss = self.layer(batch.reshape(-1, 1)).pow(2).mean()
        self.mean.update(loss.detach())
        self.log("mean", self.mean, on_step=False, on_epoch=True)
        self.log("loss", loss, on_epoch=True, on_step=True)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.5)


class Stream(IterableDataset[Any]):
    """Eleven numbers, without a length."""

    def __iter__(self) -> Iterator[Any]:
        return iter(torch.arange(11.0))


class Remembering:
    """A loader that keeps its own position, as StatefulDataLoader does."""

    def __init__(self) -> None:
        self.position = 0
        self.n_iterated = 0

    def __len__(self) -> int:
        return 6

    def __iter__(self) -> Iterator[Any]:
        start, self.position = self.position, 0
        for index in range(start, 6):
            self.n_iterated += 1
            self.position = index + 1
            yield torch.tensor([float(index)])
        self.position = 0

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]


def fit(train: Any, folder: Path | None = None, *, resume_from: str | None = None, **settings: Any) -> Any:
    module = settings.pop("module", None) or Counted()
    callbacks = []
    if folder is not None:
        callbacks = [
            ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1, auto_insert_metric_name=False)
        ]
    arguments: dict[str, Any] = {"max_epochs": 2, "logger": False} | settings
    trainer = fl.Trainer(
        accelerator="cpu",
        callbacks=callbacks,
        enable_checkpointing=bool(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **arguments,
    )
    trainer.fit(module, train, ckpt_path=resume_from)
    return module, trainer


def files(folder: Path) -> list[str]:
    return [str(path) for path in sorted(folder.glob("*.ckpt"), key=lambda p: int(p.stem))]


def assert_same(resumed: Any, whole: Any) -> None:
    (module, trainer), (of_whole, trainer_of_whole) = resumed, whole
    for name, value in of_whole.layer.state_dict().items():
        assert torch.equal(module.layer.state_dict()[name], value), name
    assert module.seen == of_whole.seen[len(of_whole.seen) - len(module.seen) :]
    assert trainer.callback_metrics == trainer_of_whole.callback_metrics


def test_stream_is_drawn_again_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = fit(DataLoader(Stream(), batch_size=2), tmp_path)
    for step, file in enumerate(files(tmp_path), start=1):
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="fulgur"):
            assert_same(fit(DataLoader(Stream(), batch_size=2), resume_from=file), whole)
        drawn = [record for record in caplog.records if "drawn again" in record.getMessage()]
        assert len(drawn) == 1, step
        assert "Stream" in drawn[0].getMessage()


def test_loader_with_a_state_is_resumed_through_it(tmp_path: Path) -> None:
    whole = fit(Remembering(), tmp_path)
    for step, file in enumerate(files(tmp_path), start=1):
        train = Remembering()
        assert_same(fit(train, resume_from=file), whole)
        assert train.n_iterated == 12 - step


def test_list_of_batches_is_cut(tmp_path: Path) -> None:
    batches = [torch.tensor([float(i)]) for i in range(5)]
    whole = fit(batches, tmp_path)
    for file in files(tmp_path):
        assert_same(fit(batches, resume_from=file), whole)


def test_gradients_that_a_module_accumulates_by_hand_are_kept(tmp_path: Path) -> None:
    class ByHand(Counted):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            self.manual_backward(loss)
            if batch_idx % 3 == 2:
                self.optimizers().step()
                self.optimizers().zero_grad()

    def loader() -> Any:
        return DataLoader(torch.arange(7.0), batch_size=1, shuffle=True)

    torch.manual_seed(0)
    folder = tmp_path / "saved"

    class Saving(fl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            trainer.save_checkpoint(folder / f"{trainer.fit_loop.progress.batches_total}.ckpt")

    trainer = fl.Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        callbacks=[Saving()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = ByHand()
    torch.manual_seed(1)
    trainer.fit(module, loader())
    for file in files(folder):
        assert_same(fit(loader(), resume_from=file, module=ByHand()), (module, trainer))


def test_rows_of_a_resumed_run_are_those_of_the_whole_one(tmp_path: Path) -> None:
    def rows(name: str) -> list[dict[str, str]]:
        with open(tmp_path / name / "version_0" / "metrics.csv", newline="") as file:
            return list(csv.DictReader(file))

    def run(name: str, **more: Any) -> Any:
        torch.manual_seed(0)
        loader = DataLoader(torch.arange(7.0), batch_size=1, shuffle=True)
        return fit(loader, logger=CSVLogger(tmp_path, name), log_every_n_steps=2, **more)

    run("whole", folder=tmp_path / "files")
    for step, file in enumerate(files(tmp_path / "files"), start=1):
        run(f"resumed{step}", resume_from=file)
        expected = [row for row in rows("whole") if int(row["step"]) >= step]
        if step in (7, 14):  # the row of the epoch's end has the axis of the batch before, whose own row came earlier
            expected = [
                row
                for row in rows("whole")
                if int(row["step"]) >= step or (row["mean"] and int(row["step"]) == step - 1)
            ]
        assert [_numbers(row) for row in rows(f"resumed{step}")] == [_numbers(row) for row in expected]


def _numbers(row: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in row.items() if value}


def test_recording_the_position_costs_one_call_a_step() -> None:
    class Line(fl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 1)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.layer(batch[0]).sum()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def train(n_batches: int) -> None:
        loader = DataLoader(TensorDataset(torch.ones(n_batches, 1)), batch_size=1, shuffle=True)
        fit(loader, module=Line(), max_epochs=1)

    count = calls_per_step(train)
    assert sum(n for name, n in count.by_function.items() if "position" in name) == 1, str(count)
    assert count.total <= 12, str(count)


@pytest.mark.parametrize("is_sized", [True, False])
def test_steps_that_draw_their_batches_go_on_with_the_next_one(tmp_path: Path, is_sized: bool) -> None:
    class Drawing(Counted):
        def training_step(self, dataloader_iter: Any) -> Any:  # type: ignore[override]
            batch, batch_idx, _ = next(dataloader_iter)
            self.seen.append((batch_idx, batch.flatten().tolist()))
            return self.layer(batch.reshape(-1, 1)).pow(2).mean()

    def train() -> Any:
        return [torch.tensor([float(i)]) for i in range(5)] if is_sized else DataLoader(Stream(), batch_size=2)

    whole = fit(train(), tmp_path, module=Drawing())
    for file in files(tmp_path):
        assert_same(fit(train(), module=Drawing(), resume_from=file), whole)


class Averaging(Counted):
    """Logs in steps and at an epoch's end, and notes the epochs' values."""

    def __init__(self) -> None:
        super().__init__()
        self.epochs: list[dict[str, float]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.log("average", loss, on_step=False, on_epoch=True)
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("last", float(self.trainer.global_step))

    def on_train_end(self) -> None:
        self.epochs.append({key: float(value) for key, value in self.trainer.callback_metrics.items()})


def batches_of_numbers() -> list[Any]:
    return [torch.tensor([float(i)]) for i in range(5)]


@pytest.mark.parametrize("n_again", [0, 1, 2])
def test_epoch_that_a_limit_cut_short_goes_on_from_a_file_saved_after_fit(tmp_path: Path, n_again: int) -> None:
    """Also where resumed runs with nothing left to do have saved it again."""
    file = str(tmp_path / "0.ckpt")
    whole = fit(batches_of_numbers(), module=Averaging())
    fit(batches_of_numbers(), module=Averaging(), max_steps=7)[1].save_checkpoint(file)
    for index in range(n_again):
        trainer = fit(batches_of_numbers(), module=Averaging(), max_steps=7, resume_from=file)[1]
        assert trainer.global_step == 7
        assert "average" in trainer.callback_metrics
        trainer.save_checkpoint(file := str(tmp_path / f"{index + 1}.ckpt"))

    resumed = fit(batches_of_numbers(), module=Averaging(), resume_from=file)

    assert_same(resumed, whole)
    assert resumed[0].epochs == whole[0].epochs


def test_second_fit_after_a_cut_epoch_is_saved_as_the_epoch_it_begins(tmp_path: Path) -> None:
    class Saving(Averaging):
        def on_train_start(self) -> None:
            self.trainer.save_checkpoint(tmp_path / f"{self.trainer.global_step}.ckpt")

    module, trainer = fit(batches_of_numbers(), module=Saving(), max_steps=3, max_epochs=-1)
    trainer.fit_loop.limits.max_steps = 9
    trainer.fit(module, batches_of_numbers())

    resumed = fit(batches_of_numbers(), resume_from=str(tmp_path / "3.ckpt"), max_steps=9, max_epochs=-1)

    assert resumed[0].seen == module.seen[3:]
    assert resumed[1].fit_loop.progress == trainer.fit_loop.progress
