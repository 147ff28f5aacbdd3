"""What is in a checkpoint file: the keys and types that readers of the format expect."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch

from fulgur import Callback, LightningDataModule
from fulgur.callbacks import EarlyStopping, ModelCheckpoint

FOUR = {"ready", "completed", "started", "processed"}
TWO = {"ready", "completed"}
FIT_LOOP = {
    "state_dict",
    "epoch_loop.state_dict",
    "epoch_loop.batch_progress",
    "epoch_loop.scheduler_progress",
    "epoch_loop.automatic_optimization.state_dict",
    "epoch_loop.automatic_optimization.optim_progress",
    "epoch_loop.manual_optimization.state_dict",
    "epoch_loop.manual_optimization.optim_step_progress",
    "epoch_loop.val_loop.state_dict",
    "epoch_loop.val_loop.batch_progress",
    "epoch_progress",
}


def with_scheduler(self: Any) -> Any:
    optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
    return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


class Data(LightningDataModule):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.seen = 0

    def train_dataloader(self) -> Any:
        self.seen += 1
        return [torch.ones(1, 1)] * self.hparams.size

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}


class Counting(Callback):
    def state_dict(self) -> dict[str, Any]:
        return {"count": 7}

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["by_callback"] = sorted(checkpoint)


class Stateless(Callback): ...


def load(path: Any) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(path, weights_only=True)
    return loaded


@pytest.fixture
def full(tiny: Any, make_trainer: Any, loader: Any, tmp_path: Path) -> tuple[dict[str, Any], ModelCheckpoint]:
    """A checkpoint with everything in it, of the end of the second epoch of four batches."""
    module = tiny(
        1.0,
        configure_optimizers=with_scheduler,
        on_save_checkpoint=lambda self, checkpoint: checkpoint.update(by_module=list(checkpoint)),
    )
    module.save_hyperparameters({"lr": 0.1, "layers": (1, 2)})
    saver = ModelCheckpoint(dirpath=tmp_path / "saved", monitor="score", save_top_k=-1)
    callbacks = [saver, Counting(), Stateless(), EarlyStopping("score")]
    trainer = make_trainer(max_epochs=2, callbacks=callbacks)
    trainer.fit(module, datamodule=type("WithVal", (Data,), {"val_dataloader": Data.train_dataloader})(size=4))
    return load(tmp_path / "saved" / "epoch=1-step=8.ckpt"), saver


def test_keys_and_their_types(full: Any) -> None:
    checkpoint, _ = full
    own = {key: type(value) for key, value in checkpoint.items() if key != "fulgur"}
    assert own == {
        "epoch": int,
        "global_step": int,
        "pytorch-lightning_version": str,
        "state_dict": type(checkpoint["state_dict"]),
        "loops": dict,
        "callbacks": dict,
        "optimizer_states": list,
        "lr_schedulers": list,
        "hparams_name": type(None),
        "hyper_parameters": dict,
        "datamodule_hparams_name": str,
        "datamodule_hyper_parameters": dict,
        "WithVal": dict,
        "by_callback": list,
        "by_module": list,
    }
    assert isinstance(checkpoint["state_dict"], dict)


def test_counters_and_weights(full: Any) -> None:
    checkpoint, _ = full
    assert (checkpoint["epoch"], checkpoint["global_step"]) == (1, 8)
    assert checkpoint["pytorch-lightning_version"].startswith("2.")
    assert list(checkpoint["state_dict"]) == ["layer.weight"]


def test_hyperparameters_and_state_of_the_datamodule(full: Any) -> None:
    checkpoint, _ = full
    assert checkpoint["hyper_parameters"] == {"lr": 0.1, "layers": (1, 2)}
    assert checkpoint["datamodule_hyper_parameters"] == {"size": 4}
    assert checkpoint["datamodule_hparams_name"] == "kwargs"
    assert checkpoint["WithVal"] == {"seen": 2}


def test_states_of_callbacks_that_have_one(full: Any) -> None:
    checkpoint, _ = full
    saver_key = (
        "ModelCheckpoint{'monitor': 'score', 'mode': 'min', 'every_n_train_steps': 0, 'every_n_epochs': 1, "
        "'train_time_interval': None}"
    )
    states = checkpoint["callbacks"]
    assert set(states) == {saver_key, "Counting", "EarlyStopping{'monitor': 'score', 'mode': 'min'}"}
    assert states["Counting"] == {"count": 7}
    assert set(states[saver_key]) == {
        "monitor",
        "best_model_score",
        "best_model_path",
        "current_score",
        "dirpath",
        "best_k_models",
        "kth_best_model_path",
        "kth_value",
        "last_model_path",
    }
    assert set(states["EarlyStopping{'monitor': 'score', 'mode': 'min'}"]) == {
        "wait_count",
        "stopped_epoch",
        "best_score",
        "patience",
        "stopping_reason",
        "stopping_reason_message",
    }


def test_states_of_optimizers_and_schedulers(full: Any) -> None:
    checkpoint, _ = full
    assert [set(state) for state in checkpoint["optimizer_states"]] == [{"state", "param_groups"}]
    assert "momentum_buffer" in checkpoint["optimizer_states"][0]["state"][0]
    assert [state["last_epoch"] for state in checkpoint["lr_schedulers"]] == [2]


def test_callbacks_change_a_checkpoint_before_the_module_does(full: Any) -> None:
    checkpoint, _ = full
    assert "by_module" not in checkpoint["by_callback"]
    assert checkpoint["by_module"][-1] == "by_callback"
    assert {"state_dict", "callbacks", "hyper_parameters", "WithVal"} <= set(checkpoint["by_callback"])


def test_loops_at_the_end_of_the_second_epoch(full: Any) -> None:
    loops = full[0]["loops"]
    assert set(loops) == {"fit_loop", "validate_loop", "test_loop", "predict_loop"}
    fit = loops["fit_loop"]
    assert set(fit) == FIT_LOOP
    assert fit["state_dict"] == {}
    assert fit["epoch_loop.state_dict"] == {"_batches_that_stepped": 8}
    assert fit["epoch_progress"]["current"] == {"ready": 2, "started": 2, "processed": 2, "completed": 1}
    batches = fit["epoch_loop.batch_progress"]
    assert batches["current"] == {"ready": 4, "started": 4, "processed": 4, "completed": 4}
    assert batches["total"] == {"ready": 8, "started": 8, "processed": 8, "completed": 8}
    assert batches["is_last_batch"] is True
    optimizer = fit["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
    assert optimizer["step"]["total"] == {"ready": 8, "completed": 8}
    assert set(optimizer["zero_grad"]["current"]) == {"ready", "completed", "started"}
    assert set(fit["epoch_loop.scheduler_progress"]["total"]) == TWO
    assert set(fit["epoch_loop.manual_optimization.optim_step_progress"]["total"]) == TWO
    assert set(fit["epoch_loop.val_loop.batch_progress"]["total"]) == FOUR


def test_loops_of_evaluations(full: Any) -> None:
    loops = full[0]["loops"]
    for name in ("validate_loop", "test_loop"):
        assert set(loops[name]) == {"state_dict", "batch_progress"}
        assert set(loops[name]["batch_progress"]) == {"total", "current", "is_last_batch"}
    assert set(loops["predict_loop"]["batch_progress"]) == {"total", "current"}


def test_loops_within_the_first_epoch(tiny: Any, make_trainer: Any, loader: Any, tmp_path: Path) -> None:
    saver = ModelCheckpoint(dirpath=tmp_path / "saved", every_n_train_steps=1, save_top_k=-1)
    make_trainer(callbacks=saver).fit(tiny(), loader(4))
    fit = load(tmp_path / "saved" / "epoch=0-step=1.ckpt")["loops"]["fit_loop"]
    assert fit["epoch_progress"]["current"] == {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    batches = fit["epoch_loop.batch_progress"]
    assert {name: batches["current"][name] for name in ("ready", "started", "processed")} == {
        "ready": 1,
        "started": 1,
        "processed": 1,
    }
    assert batches["is_last_batch"] is False


def test_steps_of_manual_optimization_stand_apart(tiny: Any, make_trainer: Any, loader: Any, tmp_path: Path) -> None:
    def training_step(self: Any, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.layer(batch).mean())
        optimizer.step()

    module = tiny(training_step=training_step)
    module.automatic_optimization = False
    make_trainer().fit(module, loader(3))
    fit = load(tmp_path / "checkpoints" / "epoch=0-step=3.ckpt")["loops"]["fit_loop"]
    assert fit["epoch_loop.manual_optimization.optim_step_progress"]["total"]["completed"] == 3
    assert fit["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["total"]["completed"] == 0


def test_bare_checkpoint_has_no_keys_for_what_is_not_there(
    tiny: Any, make_trainer: Any, loader: Any, tmp_path: Path
) -> None:
    trainer = make_trainer(enable_checkpointing=False)
    trainer.fit(tiny(), loader(1))
    trainer.save_checkpoint(tmp_path / "bare.ckpt")
    checkpoint = load(tmp_path / "bare.ckpt")
    assert list(checkpoint) == [
        "epoch",
        "global_step",
        "pytorch-lightning_version",
        "state_dict",
        "loops",
        "callbacks",
        "optimizer_states",
        "lr_schedulers",
        "fulgur",
    ]
    assert checkpoint["callbacks"] == {}


@pytest.mark.parametrize("by", ["trainer", "callback"])
def test_weights_only_file(by: str, tiny: Any, make_trainer: Any, loader: Any, tmp_path: Path) -> None:
    module = tiny(on_save_checkpoint=lambda self, checkpoint: checkpoint.update(by_module=1))
    module.save_hyperparameters({"lr": 0.1})
    saver = ModelCheckpoint(dirpath=tmp_path, filename="callback", save_weights_only=True)
    trainer = make_trainer(callbacks=[saver, Counting()])
    trainer.fit(module, loader(2))
    trainer.save_checkpoint(tmp_path / "trainer.ckpt", weights_only=True)
    checkpoint = load(tmp_path / f"{by}.ckpt")
    assert set(checkpoint) - {"fulgur"} == {
        "epoch",
        "global_step",
        "pytorch-lightning_version",
        "state_dict",
        "loops",
        "hparams_name",
        "hyper_parameters",
        "by_module",
    }
    with pytest.raises(KeyError, match="save_weights_only"):
        trainer.fit(module, loader(2), ckpt_path=tmp_path / f"{by}.ckpt")


@pytest.mark.parametrize(
    "value",
    [Path("data"), argparse.Namespace(a=1), torch.float16, {1, 2}, (1, "a"), None, {"deep": [Path("x")]}],
    ids=repr,
)
def test_hyperparameters_of_any_plain_kind_open_safely_and_come_back(
    value: Any, tiny: Any, make_trainer: Any, loader: Any, tmp_path: Path
) -> None:
    from fulgur import LightningModule

    class Configured(LightningModule):
        def __init__(self, option: Any) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.option = option

        def predict_step(self, batch: Any) -> Any:
            return batch

    trainer = make_trainer()
    trainer.predict(Configured(value), loader(1))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    load(tmp_path / "a.ckpt")
    assert Configured.load_from_checkpoint(tmp_path / "a.ckpt").option == value


def test_saving_before_a_model_is_attached_is_an_error(make_trainer: Any, tmp_path: Path) -> None:
    with pytest.raises(AttributeError, match="before a model was attached"):
        make_trainer().save_checkpoint(tmp_path / "a.ckpt")
