"""A program that is right hears nothing: no warning, no line of a log, nothing on a terminal."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.errors.conftest import Manual, Net, Stream, loader, net, quiet
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader

from fulgur import LightningDataModule, seed_everything
from fulgur.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint, Timer
from fulgur.loggers import CSVLogger, TensorBoardLogger


@pytest.fixture(autouse=True)
def _nothing_is_said(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with warnings.catch_warnings(), caplog.at_level(logging.INFO):
        warnings.simplefilter("error")
        yield
    assert [record.getMessage() for record in caplog.records] == []
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")


def run_all(trainer: Any, module: Any) -> None:
    trainer.fit(module, loader(), loader())
    trainer.validate(module, loader(), verbose=False)
    trainer.test(module, loader(), verbose=False)
    trainer.predict(module, loader())


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"max_epochs": 3},
        {"max_epochs": -1, "max_steps": 5},
        {"max_steps": 5},
        {"max_epochs": 2, "min_epochs": 1, "min_steps": 3},
        {"max_time": "00:00:01:00"},
        {"accumulate_grad_batches": 3, "gradient_clip_val": 0.5},
        {"gradient_clip_val": 0.5, "gradient_clip_algorithm": "value"},
        {"fast_dev_run": True},
        {"fast_dev_run": 2},
        {"barebones": True, "enable_checkpointing": None, "logger": None, "enable_progress_bar": None}
        | {"enable_model_summary": None},
        {"overfit_batches": 2},
        {"limit_train_batches": 0.5, "limit_val_batches": 1, "limit_test_batches": 0.5},
        {"limit_val_batches": 0},
        {"val_check_interval": 0.5},
        {"val_check_interval": 3, "check_val_every_n_epoch": None, "max_epochs": 2},
        {"check_val_every_n_epoch": 2, "max_epochs": 3},
        {"num_sanity_val_steps": 0},
        {"num_sanity_val_steps": -1},
        {"log_every_n_steps": 0},
        {"log_every_n_steps": 1},
        {"precision": "bf16-mixed"},
        {"precision": "bf16-true"},
        {"precision": "64-true"},
        {"precision": 32},
        {"deterministic": True, "benchmark": False},
        {"inference_mode": False},
        {"reload_dataloaders_every_n_epochs": 1, "max_epochs": 2},
        {"enable_checkpointing": True},
        {"accelerator": "auto", "devices": "auto", "strategy": "auto"},
        {"devices": 1, "num_nodes": 1},
    ],
    ids=str,
)
def test_with_these_arguments(arguments: dict[str, Any]) -> None:
    run_all(quiet(**arguments), Net())


class Data(LightningDataModule):
    def train_dataloader(self) -> Any:
        return loader(9, shuffle=True)

    def val_dataloader(self) -> Any:
        return loader(3)

    test_dataloader = predict_dataloader = val_dataloader


def test_with_a_datamodule() -> None:
    trainer, data = quiet(), Data()
    for run in (trainer.fit, trainer.validate, trainer.test):
        run(Net(), datamodule=data, **({} if run == trainer.fit else {"verbose": False}))
    assert len(trainer.predict(Net(), datamodule=data) or []) == 2


def test_with_loaders_of_other_kinds() -> None:
    batches = [[torch.ones(2, 3)]] * 3
    for source in (batches, DataLoader(Stream(5), 2), loader(num_workers=1)):
        module = net(training_step=lambda self, batch, batch_idx: self.layer.weight.sum())
        module.validation_step = lambda batch, batch_idx: None
        quiet().fit(module, source, source)


def test_with_loggers_and_callbacks(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    callbacks = [
        ModelCheckpoint(dirpath=tmp_path / "saved", monitor="val_loss", save_last=True, save_top_k=2),
        EarlyStopping("val_loss", patience=5),
        LearningRateMonitor(),
        Timer("00:00:10:00"),
    ]
    loggers = [CSVLogger(tmp_path / "csv"), TensorBoardLogger(tmp_path / "board")]
    trainer = quiet(max_epochs=3, enable_checkpointing=True, logger=loggers, callbacks=callbacks, log_every_n_steps=1)
    trainer.fit(Net(), loader(), loader())
    trainer.test(dataloaders=loader(), ckpt_path="best", verbose=False)
    again = quiet(max_epochs=4)
    again.fit(Net(), loader(), loader(), ckpt_path=tmp_path / "saved" / "last.ckpt")
    assert again.global_step == 16


@pytest.mark.parametrize(
    "build",
    [
        lambda optimizer: [[optimizer], [StepLR(optimizer, 1)]],
        lambda optimizer: {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": StepLR(optimizer, 1), "interval": "step"},
        },
        lambda optimizer: {"optimizer": optimizer, "lr_scheduler": ReduceLROnPlateau(optimizer), "monitor": "val_loss"},
    ],
)
def test_with_schedulers(build: Any) -> None:
    def configure_optimizers(self: Any) -> Any:
        return build(torch.optim.Adam(self.parameters()))

    quiet(max_epochs=3).fit(net(configure_optimizers=configure_optimizers), loader(), loader())


def test_with_manual_optimization() -> None:
    run_all(quiet(max_epochs=2), Manual())


def test_with_seeds_and_workers() -> None:
    seed_everything(1, workers=True, verbose=False)
    quiet().fit(Net(), loader(num_workers=1, shuffle=True), loader(num_workers=1))


def test_with_hyperparameters_and_load_from_checkpoint(tmp_path: Path) -> None:
    class Sized(Net):
        def __init__(self, width: int = 2, rates: tuple[float, ...] = (0.1,)) -> None:
            super().__init__()
            self.save_hyperparameters()

    trainer = quiet(enable_checkpointing=True)
    trainer.fit(Sized(3), loader())
    loaded = Sized.load_from_checkpoint(trainer.checkpoint_callback.best_model_path)
    assert loaded.hparams.width == 3


def test_with_logging_of_every_kind() -> None:
    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(batch)
        self.log("loss", loss, prog_bar=True, on_step=True, on_epoch=True)
        self.log_dict({"a": loss, "b": 1, "c": 0.5, "d": True, "e": loss.detach().double()}, batch_size=2)
        self.log("f", loss.int())
        self.log("g", loss.reshape(1))
        return {"loss": loss, "more": batch_idx}

    module = net(training_step=training_step, on_train_epoch_end=lambda self: self.log("end", 1.0))
    quiet(max_epochs=2).fit(module, loader(), loader())


def test_with_two_fits_and_another_model() -> None:
    trainer = quiet()
    trainer.fit(Net(), loader())
    trainer.fit_loop.max_epochs = 2
    trainer.fit(Net(), loader())
    trainer.test(Net(), loader(), verbose=False)
    assert trainer.current_epoch == 2
