"""What loggers leave on the disk after real runs, and where."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fulgur import LightningDataModule, Trainer
from fulgur.callbacks import ModelCheckpoint
from fulgur.loggers import CSVLogger, TensorBoardLogger


def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
    self.log("loss", float(batch_idx), on_step=True, on_epoch=True)
    return self.layer(batch).mean()


def validation_step(self: Any, batch: Any, batch_idx: int) -> None:
    self.log("v", batch.mean())


def test_step(self: Any, batch: Any, batch_idx: int) -> None:
    self.log("t", batch.mean())


test_step.__test__ = False  # type: ignore[attr-defined]


def read_csv(path: str) -> list[dict[str, str]]:
    """Rows of a metrics file, without the empty cells."""
    with open(path, newline="") as file:
        return [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]


def read_events(log_dir: str) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(log_dir)
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def files_under(path: Any) -> list[str]:
    return sorted(str(file.relative_to(path)) for file in Path(path).rglob("*") if file.is_file())


def test_csv_file_of_a_fit_and_a_test(tiny: Any, make_trainer: Any, loader: Any, tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path / "logs")
    module = tiny(training_step=training_step, validation_step=validation_step, test_step=test_step)
    trainer = make_trainer(logger=logger, max_epochs=2, log_every_n_steps=2)
    trainer.fit(module, loader(2), loader(3))
    trainer.test(module, loader(2), verbose=False)
    assert logger.log_dir == str(tmp_path / "logs" / "lightning_logs" / "version_0")
    with open(Path(logger.log_dir) / "metrics.csv") as file:
        assert file.readline().strip().split(",") == ["epoch", "loss_epoch", "loss_step", "step", "t", "v"]
    assert read_csv(f"{logger.log_dir}/metrics.csv") == [
        {"epoch": "0", "loss_step": "1.0", "step": "1"},
        {"epoch": "0", "step": "1", "v": "1.0"},
        {"epoch": "0", "loss_epoch": "0.5", "step": "1"},
        {"epoch": "1", "loss_step": "1.0", "step": "3"},
        {"epoch": "1", "step": "3", "v": "1.0"},
        {"epoch": "1", "loss_epoch": "0.5", "step": "3"},
        {"epoch": "2", "step": "3", "t": "0.5"},
    ]
    assert files_under(logger.log_dir) == ["metrics.csv"]


def test_csv_file_is_complete_when_the_run_breaks(tiny: Any, make_trainer: Any, loader: Any, tmp_path: Path) -> None:
    def breaking_step(self: Any, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 2:
            raise RuntimeError("broken")
        return training_step(self, batch, batch_idx)

    logger = CSVLogger(tmp_path)
    with pytest.raises(RuntimeError, match="broken"):
        make_trainer(logger=logger).fit(tiny(training_step=breaking_step), loader(4))
    assert [row["step"] for row in read_csv(f"{logger.log_dir}/metrics.csv")] == ["0", "1"]


def test_tensorboard_events_of_a_fit(tiny: Any, make_trainer: Any, loader: Any, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    logger = TensorBoardLogger(tmp_path)
    module = tiny(training_step=training_step, validation_step=validation_step)
    make_trainer(logger=logger, max_epochs=2).fit(module, loader(2), loader(3))
    assert read_events(logger.log_dir) == {
        "loss_step": [(0, 0.0), (1, 1.0), (2, 0.0), (3, 1.0)],
        "epoch": [(0, 0.0), (1, 0.0), (1, 0.0), (1, 0.0), (2, 1.0), (3, 1.0), (3, 1.0), (3, 1.0)],
        "loss_epoch": [(1, 0.5), (3, 0.5)],
        "v": [(1, 1.0), (3, 1.0)],
    }
    names = files_under(logger.log_dir)
    assert len(names) == 2
    assert names[0].startswith("events.out.tfevents.")
    assert (Path(logger.log_dir) / "hparams.yaml").read_text() == "{}\n"


def test_several_loggers_write_the_same_and_the_first_names_the_directories(
    tiny: Any, make_trainer: Any, loader: Any, tmp_path: Path
) -> None:
    loggers = [CSVLogger(tmp_path, name="both"), TensorBoardLogger(tmp_path, name="both")]
    saver = ModelCheckpoint()
    trainer = make_trainer(logger=loggers, callbacks=saver, enable_checkpointing=True)
    trainer.fit(tiny(training_step=training_step), loader(2))
    assert [logger.version for logger in loggers] == [0, 1]
    assert trainer.log_dir == str(tmp_path / "both" / "version_0")
    assert files_under(tmp_path / "both" / "version_0") == ["checkpoints/epoch=0-step=2.ckpt", "metrics.csv"]
    assert saver.dirpath == os.path.realpath(tmp_path / "both" / "version_0" / "checkpoints")
    rows = read_csv(f"{loggers[0].log_dir}/metrics.csv")
    by_csv = [(int(row["step"]), float(row["loss_step"])) for row in rows if "loss_step" in row]
    assert read_events(loggers[1].log_dir)["loss_step"] == by_csv


def test_without_a_logger_checkpoints_lie_under_the_root(
    tiny: Any, make_trainer: Any, loader: Any, tmp_path: Path
) -> None:
    trainer = make_trainer(logger=False, enable_checkpointing=True, default_root_dir=tmp_path / "root")
    trainer.fit(tiny(), loader(2))
    assert trainer.log_dir == str(tmp_path / "root")
    assert files_under(tmp_path / "root") == ["checkpoints/epoch=0-step=2.ckpt"]


def test_default_logger_writes_below_the_root(tiny: Any, loader: Any, tmp_path: Path) -> None:
    for version in range(2):
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=1,
            default_root_dir=tmp_path,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(tiny(), loader(1))
        assert trainer.log_dir == str(tmp_path / "lightning_logs" / f"version_{version}")
        assert "checkpoints/epoch=0-step=1.ckpt" in files_under(trainer.log_dir)


def test_trainer_that_fits_twice_stays_in_its_version(
    tiny: Any, make_trainer: Any, loader: Any, tmp_path: Path
) -> None:
    logger = CSVLogger(tmp_path)
    trainer, module = make_trainer(logger=logger), tiny(training_step=training_step)
    trainer.fit(module, loader(1))
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, loader(1))
    assert os.listdir(tmp_path / "lightning_logs") == ["version_0"]
    assert [row["step"] for row in read_csv(f"{logger.log_dir}/metrics.csv")] == ["0", "0", "1", "1"]


def test_every_new_logger_has_a_new_version(tiny: Any, make_trainer: Any, loader: Any, tmp_path: Path) -> None:
    (tmp_path / "runs" / "version_7").mkdir(parents=True)
    versions = []
    for _ in range(2):
        logger = CSVLogger(tmp_path, name="runs")
        make_trainer(logger=logger).fit(tiny(training_step=training_step), loader(1))
        versions.append(logger.version)
    assert versions == [8, 9]


class Data(LightningDataModule):
    def __init__(self, path: str = "data", size: int = 2) -> None:
        super().__init__()
        self.save_hyperparameters()

    def train_dataloader(self) -> Any:
        return [torch.ones(1, 1)] * self.hparams.size


def with_hparams(tiny: Any, **hparams: Any) -> Any:
    module = tiny(training_step=training_step)
    module.save_hyperparameters(hparams)
    return module


@pytest.mark.parametrize("kind", [CSVLogger, TensorBoardLogger])
def test_hyperparameters_of_module_and_datamodule_are_written_together(
    kind: Any, tiny: Any, make_trainer: Any, tmp_path: Path
) -> None:
    logger = kind(tmp_path)
    module = with_hparams(tiny, lr=0.1, layers=[1, 2], optimizer={"name": "sgd"})
    make_trainer(logger=logger).fit(module, datamodule=Data())
    with open(Path(logger.log_dir) / "hparams.yaml") as file:
        assert yaml.safe_load(file) == {
            "lr": 0.1,
            "layers": [1, 2],
            "optimizer": {"name": "sgd"},
            "path": "data",
            "size": 2,
        }


def test_hyperparameters_changed_later_are_written_as_they_were(
    tiny: Any, make_trainer: Any, loader: Any, tmp_path: Path
) -> None:
    logger, module = CSVLogger(tmp_path), with_hparams(tiny, lr=0.1)
    module.hparams.lr = 0.5
    make_trainer(logger=logger).fit(module, loader(1))
    assert (Path(logger.log_dir) / "hparams.yaml").read_text() == "lr: 0.1\n"


def test_hyperparameters_saved_without_logging_are_not_written(
    tiny: Any, make_trainer: Any, loader: Any, tmp_path: Path
) -> None:
    logger, module = CSVLogger(tmp_path), tiny(training_step=training_step)
    module.save_hyperparameters({"lr": 0.1}, logger=False)
    make_trainer(logger=logger).fit(module, loader(1))
    assert files_under(logger.log_dir) == ["metrics.csv"]


def test_trainer_told_not_to_log_hyperparameters_does_not(
    tiny: Any, make_trainer: Any, loader: Any, tmp_path: Path
) -> None:
    logger = CSVLogger(tmp_path)
    make_trainer(logger=logger, enable_autolog_hparams=False).fit(with_hparams(tiny, lr=0.1), loader(1))
    assert files_under(logger.log_dir) == ["metrics.csv"]


@pytest.mark.parametrize("value", [3, 2.0, "2", torch.tensor([2, 3])])
def test_same_hyperparameter_with_two_values_is_an_error(value: Any, tiny: Any, make_trainer: Any) -> None:
    with pytest.raises(RuntimeError, match="both save the hyperparameter 'size'"):
        make_trainer().fit(with_hparams(tiny, size=value), datamodule=Data(size=2))


@pytest.mark.parametrize("value", [2, [1, 2], torch.tensor([1.0, 2.0])])
def test_same_hyperparameter_with_the_same_value_is_fine(
    value: Any, tiny: Any, make_trainer: Any, recorder: Any
) -> None:
    import copy

    make_trainer(limit_train_batches=0).fit(with_hparams(tiny, path=value), datamodule=Data(path=copy.deepcopy(value)))
    assert recorder.calls.count("log_hyperparams") == 1


@pytest.mark.parametrize("entry", ["validate", "test", "predict"])
def test_hyperparameters_are_logged_by_every_entry_point(
    entry: str, tiny: Any, make_trainer: Any, loader: Any, recorder: Any
) -> None:
    module = with_hparams(tiny, lr=0.1)
    type(module).predict_step = lambda self, batch: batch
    getattr(make_trainer(), entry)(module, loader(1))
    assert recorder.calls == ["log_hyperparams", "save", "save"]


def test_graph_is_logged_on_request(tiny: Any, make_trainer: Any, loader: Any, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    module = tiny(training_step=training_step, forward=lambda self, x: self.layer(x))
    module.example_input_array = torch.ones(1, 1)
    logger = TensorBoardLogger(tmp_path, log_graph=True)
    make_trainer(logger=logger).fit(module, loader(1))
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    assert events.Tags()["graph"]
