"""What is called when a run is saved, and when it goes on from a file."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fulgur
from fulgur.callbacks import ModelCheckpoint


def load_events(who: str = "M") -> list[str]:
    return [
        f"{who}.on_load_checkpoint",
        f"{who}.load_state_dict",
        "D.load_state_dict",
        "C.on_load_checkpoint",
        "C.load_state_dict",
    ]


def saved(build: Any, kit: Any, tape: Any, checkpoint: ModelCheckpoint, **arguments: Any) -> str:
    """Fit with `checkpoint`, and return the path of what it saved first."""
    n_train = arguments.pop("n_train", 2)
    run = build(callbacks=[kit.Callback(tape), checkpoint], logger=False, **arguments)
    run.trainer.fit(kit.ModuleBesideData(tape), datamodule=kit.Data(tape, n_train=n_train))
    tape.clear()
    return next(iter(sorted(str(path) for path in checkpoint_files(checkpoint))))


def checkpoint_files(checkpoint: ModelCheckpoint) -> list[Any]:
    from pathlib import Path

    return list(Path(str(checkpoint.dirpath)).glob("*.ckpt"))


def resumed(build: Any, kit: Any, tape: Any, path: str, **arguments: Any) -> Any:
    n_train = arguments.pop("n_train", 2)
    run = build(logger=False, num_sanity_val_steps=1, **arguments)
    run.trainer.fit(kit.ModuleBesideData(tape), datamodule=kit.Data(tape, n_train=n_train), ckpt_path=path)
    return run.trainer


# ------------------------------------------------------------------------------------------------------- saving


def test_order_of_saving(build: Any, tape: Any, kit: Any) -> None:
    class Optimizer(torch.optim.SGD):
        def state_dict(self) -> Any:
            tape.add("optimizer.state_dict")
            return super().state_dict()

    class Module(kit.ModuleBesideData):
        def configure_optimizers(self) -> Any:
            return Optimizer(self.parameters(), lr=0.01)

    run = build()
    run.trainer.fit(Module(tape), datamodule=kit.Data(tape))
    tape.clear()
    run.trainer.save_checkpoint("all.ckpt")
    assert tape.events == [
        "M.state_dict",
        "C.state_dict",
        "optimizer.state_dict",
        "D.state_dict",
        "C.on_save_checkpoint",
        "M.on_save_checkpoint",
    ]


def test_saving_weights_only_leaves_the_callbacks_and_optimizers_out(build: Any, tape: Any, kit: Any) -> None:
    run = build()
    run.trainer.fit(kit.ModuleBesideData(tape), datamodule=kit.Data(tape))
    tape.clear()
    run.trainer.save_checkpoint("weights.ckpt", weights_only=True)
    assert tape.events == ["M.state_dict", "D.state_dict", "M.on_save_checkpoint"]


def test_save_hooks_see_the_filled_checkpoint_and_may_change_it(build: Any, tape: Any, kit: Any) -> None:
    class Callback(kit.Callback):
        def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
            checkpoint["mine"] = sorted(checkpoint["callbacks"].values(), key=str)

    class Module(kit.Module):
        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["mine"].append("module")

    run = build(callbacks=[Callback(tape)])
    run.fit(Module(tape))
    run.trainer.save_checkpoint("changed.ckpt")
    assert torch.load("changed.ckpt", weights_only=True)["mine"] == [{"seen": 1}, "module"]


def test_what_saves_and_monitors_runs_after_the_module_and_the_loggers(build: Any, tape: Any, kit: Any) -> None:
    build(callbacks=[ModelCheckpoint(every_n_train_steps=1), kit.Callback(tape)]).fit(kit.Module(tape), n_train=1)
    order = ["C.on_train_batch_end", "M.on_train_batch_end", "L.log_metrics(0)", "M.on_save_checkpoint"]
    assert tape.only(*order)[:4] == order


def test_loggers_hear_of_each_file_that_is_saved(build: Any, tape: Any, kit: Any) -> None:
    run = build(callbacks=[ModelCheckpoint(save_last=True)])
    run.fit(kit.Module(tape))
    assert (
        tape.only("M.on_save_checkpoint", "L.after_save_checkpoint")
        == [
            "M.on_save_checkpoint",
            "L.after_save_checkpoint",
        ]
        * 2
    )


# ------------------------------------------------------------------------------------------------------ loading


def test_order_of_loading_in_fit(build: Any, tape: Any, kit: Any) -> None:
    path = saved(build, kit, tape, ModelCheckpoint())
    resumed(build, kit, tape, path, max_epochs=2)
    assert tape.between("M.configure_model", "C.on_fit_start") == [
        "M.configure_model",
        *load_events(),
        "M.configure_optimizers",
        "C.on_fit_start",
    ]


def test_order_of_loading_in_test(build: Any, tape: Any, kit: Any) -> None:
    path = saved(build, kit, tape, ModelCheckpoint())
    run = build()
    run.trainer.test(kit.ModuleBesideData(tape), datamodule=kit.Data(tape), ckpt_path=path, verbose=False)
    assert tape.between("M.configure_model", "D.test_dataloader") == [
        "M.configure_model",
        *load_events(),
        "L.log_graph",
        "L.save",
        "D.test_dataloader",
    ]


class ReturningState(fulgur.Callback):
    """A 1.x callback: its state is what on_save_checkpoint returns."""

    def __init__(self) -> None:
        self.loaded: list[Any] = []


class Of10(ReturningState):
    def on_save_checkpoint(self, trainer: Any, pl_module: Any) -> Any:  # type: ignore[override]
        return {"best": 1}

    def on_load_checkpoint(self, checkpointed_state: Any) -> None:  # type: ignore[override]
        self.loaded.append(checkpointed_state)


class Of15(ReturningState):
    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: Any) -> Any:
        return {"best": 2}

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, callback_state: Any) -> None:
        self.loaded.append(callback_state)


def test_callbacks_of_1x_return_their_state_and_get_it_back(build: Any, tape: Any, kit: Any) -> None:
    run = build(callbacks=[Of10(), Of15()])
    run.fit(kit.Plain(tape))
    run.trainer.save_checkpoint("state.ckpt")
    callbacks = [Of10(), Of15()]
    build(callbacks=callbacks, max_epochs=2).fit(kit.Plain(tape), ckpt_path="state.ckpt")
    assert [callback.loaded for callback in callbacks] == [[{"best": 1}], [{"best": 2}]]


# ---------------------------------------------------------------------------------------------------- going on

TURNS = [
    "C.on_sanity_check_start",
    "C.on_train_start",
    "C.on_train_epoch_start",
    "M.training_step",
    "M.validation_step",
    "M.on_train_epoch_end",
    "C.on_train_end",
    "C.on_fit_end",
]
EPOCH = ["C.on_train_epoch_start", "M.training_step", "M.training_step", "M.validation_step", "M.on_train_epoch_end"]


def batch_indices(tape: Any) -> list[int]:
    return [args[-1] for event, args, _ in tape.calls if event == "M.training_step"]


def test_from_the_end_of_an_epoch(build: Any, tape: Any, kit: Any) -> None:
    path = saved(build, kit, tape, ModelCheckpoint())
    trainer = resumed(build, kit, tape, path, max_epochs=2)
    assert tape.only(*TURNS) == [
        "C.on_sanity_check_start",
        "M.validation_step",
        "C.on_train_start",
        *EPOCH,
        "C.on_train_end",
        "C.on_fit_end",
    ]
    assert (trainer.current_epoch, trainer.global_step) == (2, 4)


def test_from_the_middle_of_an_epoch(build: Any, tape: Any, kit: Any) -> None:
    path = saved(build, kit, tape, ModelCheckpoint(every_n_train_steps=2, save_top_k=-1), n_train=3)
    assert "step=2" in path
    trainer = resumed(build, kit, tape, path, max_epochs=2, n_train=3)
    assert tape.only(*TURNS) == [
        "C.on_train_start",
        "M.training_step",
        "M.validation_step",
        "M.on_train_epoch_end",
        "C.on_train_epoch_start",
        *["M.training_step"] * 3,
        "M.validation_step",
        "M.on_train_epoch_end",
        "C.on_train_end",
        "C.on_fit_end",
    ]
    assert batch_indices(tape) == [2, 0, 1, 2]
    assert (trainer.current_epoch, trainer.global_step) == (2, 6)


def test_from_the_last_batch_validates_before_the_epoch_ends(build: Any, tape: Any, kit: Any) -> None:
    """Saved in on_train_batch_end of the last batch: the validation of the epoch is still to come."""
    path = saved(build, kit, tape, ModelCheckpoint(every_n_train_steps=2, save_top_k=-1), n_train=2)
    resumed(build, kit, tape, path, max_epochs=2)
    assert tape.only(*TURNS) == [
        "C.on_train_start",
        "M.validation_step",
        "M.on_train_epoch_end",
        *EPOCH,
        "C.on_train_end",
        "C.on_fit_end",
    ]


def test_from_the_validation_after_the_last_batch(build: Any, tape: Any, kit: Any) -> None:
    path = saved(build, kit, tape, ModelCheckpoint(save_on_train_epoch_end=False))
    trainer = resumed(build, kit, tape, path, max_epochs=2)
    assert tape.only(*TURNS) == [
        "C.on_train_start",
        "M.on_train_epoch_end",
        *EPOCH,
        "C.on_train_end",
        "C.on_fit_end",
    ]
    assert (trainer.current_epoch, trainer.global_step) == (2, 4)


def test_from_a_validation_in_the_middle_of_an_epoch(build: Any, tape: Any, kit: Any) -> None:
    checkpoint = ModelCheckpoint(save_on_train_epoch_end=False, save_top_k=-1)
    path = saved(build, kit, tape, checkpoint, n_train=4, val_check_interval=2)
    assert "step=2" in path
    resumed(build, kit, tape, path, n_train=4, val_check_interval=2)
    assert tape.only(*TURNS) == [
        "C.on_train_start",
        "M.training_step",
        "M.training_step",
        "M.validation_step",
        "M.on_train_epoch_end",
        "C.on_train_end",
        "C.on_fit_end",
    ]
    assert batch_indices(tape) == [2, 3]


def test_from_the_final_epoch_returns_without_training(build: Any, tape: Any, kit: Any) -> None:
    path = saved(build, kit, tape, ModelCheckpoint())
    trainer = resumed(build, kit, tape, path, max_epochs=1)
    assert tape.only(*TURNS) == ["C.on_sanity_check_start", "M.validation_step", "C.on_fit_end"]
    assert trainer.current_epoch == 1


def test_beyond_max_epochs_is_an_error_with_both_numbers(build: Any, tape: Any, kit: Any) -> None:
    path = saved(build, kit, tape, ModelCheckpoint(save_top_k=1), max_epochs=2)
    with pytest.raises(Exception, match=r"after 2 epochs.*max_epochs=1"):
        resumed(build, kit, tape, path, max_epochs=1)


def test_second_fit_of_a_trainer_goes_on_without_a_file(build: Any, tape: Any, kit: Any) -> None:
    run = build()
    module = kit.Module(tape)
    run.fit(module)
    run.trainer.fit_loop.max_epochs = 2
    tape.clear()
    run.fit(module)
    assert tape.only(*TURNS) == ["C.on_train_start", *EPOCH, "C.on_train_end", "C.on_fit_end"]
    assert (run.trainer.current_epoch, run.trainer.global_step) == (2, 4)
