"""``ckpt_path="auto"``: what it goes on from, what it passes over, and that the logs go on too."""

from __future__ import annotations

import csv
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import fulgur as fl
from fulgur.callbacks import ModelCheckpoint
from fulgur.loggers import CSVLogger


class Broken(Exception):
    """Ends a run in the place of a kill."""


class Net(fl.LightningModule):
    def __init__(self, breaks_at: int = -1) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.breaks_at = breaks_at
        self.first_step: int | None = None

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.first_step is None:
            self.first_step = self.global_step
        if self.global_step == self.breaks_at:
            raise Broken
        loss = self.layer(batch).square().mean()
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.layer(batch).square().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Runs:
    """Makes runs of six steps an epoch that save after every second step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fit(self, *, breaks_at: int = -1, **arguments: Any) -> tuple[Net, fl.Trainer]:
        torch.manual_seed(0)
        module, trainer = Net(breaks_at), self.trainer(**arguments)
        data = torch.arange(1.0, 7).unsqueeze(1) / 6
        loaders = DataLoader(data, 1, shuffle=True), DataLoader(data, 3)
        if breaks_at < 0:
            trainer.fit(module, *loaders, ckpt_path="auto")
        else:
            with pytest.raises(Broken):
                trainer.fit(module, *loaders, ckpt_path="auto")
        return module, trainer

    def trainer(self, **arguments: Any) -> fl.Trainer:
        defaults: dict[str, Any] = {
            "logger": CSVLogger(self.folder),
            "callbacks": [ModelCheckpoint(every_n_train_steps=2, save_top_k=-1)],
            "max_epochs": 2,
            "val_check_interval": 3,
        }
        return fl.Trainer(
            accelerator="cpu",
            default_root_dir=self.folder,
            log_every_n_steps=1,
            enable_progress_bar=False,
            enable_model_summary=False,
            **(defaults | arguments),
        )

    def checkpoints(self, version: int = 0) -> list[Path]:
        """Files of a version, by step."""
        found = (self.folder / f"lightning_logs/version_{version}/checkpoints").glob("*.ckpt")
        return sorted(found, key=lambda path: int(path.stem.split("step=")[-1]))

    def rows(self, version: int = 0) -> list[dict[str, str]]:
        with open(self.folder / f"lightning_logs/version_{version}/metrics.csv", newline="") as file:
            return list(csv.DictReader(file))


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


@pytest.fixture
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Net, list[dict[str, str]]]:
    undisturbed = Runs(tmp_path_factory.mktemp("whole"))
    return undisturbed.fit()[0], undisturbed.rows()


def test_without_a_checkpoint_the_run_begins_anew(runs: Runs) -> None:
    module, trainer = runs.fit()
    assert module.first_step == 0
    assert trainer.global_step == 12
    assert trainer.ckpt_path is None


@pytest.mark.parametrize("breaks_at", [3, 4, 6, 7, 11])
def test_run_goes_on_in_the_same_version_with_every_row_once(runs: Runs, whole: Any, breaks_at: int) -> None:
    runs.fit(breaks_at=breaks_at)
    module, trainer = runs.fit()
    assert module.first_step == breaks_at - breaks_at % 2
    assert trainer.loggers[0].version == 0
    assert sorted(os.listdir(runs.folder / "lightning_logs")) == ["version_0"]
    assert torch.equal(module.layer.weight, whole[0].layer.weight)
    assert runs.rows() == whole[1]


def test_run_that_is_complete_has_nothing_left_to_do(runs: Runs) -> None:
    runs.fit()
    before = runs.rows()
    module, trainer = runs.fit()
    assert module.first_step is None
    assert trainer.global_step == 12
    assert runs.rows() == before


def test_latest_version_with_a_checkpoint_is_the_one(runs: Runs) -> None:
    runs.fit(breaks_at=9)
    (runs.folder / "lightning_logs/version_1/checkpoints").mkdir(parents=True)  # broke before its first save
    module, trainer = runs.fit()
    assert module.first_step == 8
    assert trainer.loggers[0].version == 0


def test_version_that_was_chosen_is_looked_at_alone(runs: Runs) -> None:
    runs.fit(breaks_at=9)
    module, _ = runs.fit(logger=CSVLogger(runs.folder, version=7))
    assert module.first_step == 0
    module, _ = runs.fit(logger=CSVLogger(runs.folder, version=0))
    assert module.first_step == 8


def test_second_logger_goes_on_with_its_own_version(runs: Runs, whole: Any) -> None:
    def loggers() -> list[Any]:
        return [CSVLogger(runs.folder), CSVLogger(runs.folder)]

    runs.fit(breaks_at=5, logger=loggers())
    _, trainer = runs.fit(logger=loggers())
    assert [logger.version for logger in trainer.loggers] == [0, 1]
    assert runs.rows(0) == runs.rows(1) == whole[1]


def test_directory_of_the_callback_is_looked_at(runs: Runs) -> None:
    def arguments() -> dict[str, Any]:
        return {"callbacks": [ModelCheckpoint(runs.folder / "own", every_n_train_steps=2)], "logger": False}

    runs.fit(breaks_at=7, **arguments())
    module, _ = runs.fit(**arguments())
    assert module.first_step == 6


def test_directory_without_a_logger(runs: Runs) -> None:
    runs.fit(breaks_at=7, logger=False)
    module, _ = runs.fit(logger=False)
    assert module.first_step == 6


def test_without_checkpointing_the_run_begins_anew(runs: Runs) -> None:
    module, _ = runs.fit(callbacks=[], enable_checkpointing=False)
    assert module.first_step == 0


def test_tensorboard_goes_on_in_the_same_version(runs: Runs) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from fulgur.loggers import TensorBoardLogger

    runs.fit(breaks_at=5, logger=TensorBoardLogger(runs.folder))
    _, trainer = runs.fit(logger=TensorBoardLogger(runs.folder))
    assert trainer.loggers[0].version == 0
    events = EventAccumulator(str(trainer.log_dir)).Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(12))
    assert [event.step for event in events.Scalars("val_loss")] == [2, 5, 8, 11]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def replace(path: Path) -> None:
    path.write_text("not ours")


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, empty, replace])
def test_damaged_file_is_passed_over_with_a_line(runs: Runs, whole: Any, damage: Any, caplog: Any) -> None:
    runs.fit(breaks_at=9)
    newest = runs.checkpoints()[-1]
    damage(newest)
    with caplog.at_level(logging.INFO, "fulgur"):
        module, _ = runs.fit()
    assert module.first_step == 6
    lines = [record.message for record in caplog.records if str(newest) in record.message]
    assert len(lines) == 1
    assert "is passed over" in lines[0]
    assert torch.equal(module.layer.weight, whole[0].layer.weight)
    assert runs.rows() == whole[1]


def test_nothing_but_damaged_files_is_a_fresh_start(runs: Runs) -> None:
    runs.fit(breaks_at=3)
    for path in runs.checkpoints():
        truncate(path)
    module, _ = runs.fit()
    assert module.first_step == 0


def test_file_that_was_resumed_from_is_kept(runs: Runs) -> None:
    def callbacks() -> list[Any]:
        return [ModelCheckpoint(every_n_train_steps=2)]  # keeps the newest

    runs.fit(breaks_at=7, callbacks=callbacks())
    [resumed_from] = runs.checkpoints()
    runs.fit(callbacks=callbacks())
    kept, newest = runs.checkpoints()
    assert kept == resumed_from
    assert newest.stem.endswith("step=12")


def test_auto_is_for_fit_alone(runs: Runs) -> None:
    with pytest.raises(ValueError, match="ckpt_path='auto'"):
        runs.trainer().validate(Net(), DataLoader(torch.ones(2, 1)), ckpt_path="auto")


def test_run_that_early_stopping_ended_stays_ended(tmp_path: Path) -> None:
    def run() -> tuple[int, int]:
        stopping = fl.callbacks.EarlyStopping("loss", patience=1, min_delta=10.0, check_on_train_epoch_end=True)
        saving = fl.callbacks.ModelCheckpoint(tmp_path, "{epoch}")
        trainer = fl.Trainer(
            accelerator="cpu",
            max_epochs=9,
            logger=False,
            callbacks=[stopping, saving],
            enable_progress_bar=False,
            enable_model_summary=False,
        )

        class Line(fl.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.layer = torch.nn.Linear(1, 1)

            def training_step(self, batch: Any, batch_idx: int) -> Any:
                loss = self.layer(batch).pow(2).mean()
                self.log("loss", loss, on_epoch=True)
                return loss

            def configure_optimizers(self) -> Any:
                return torch.optim.SGD(self.parameters(), lr=0.01)

        trainer.fit(Line(), torch.utils.data.DataLoader(torch.ones(4, 1), batch_size=2), ckpt_path="auto")
        return trainer.current_epoch, trainer.global_step

    first = run()
    assert first == (2, 4)
    assert run() == first
    assert run() == first
