"""What programs read and write on a Trainer and its loops answers as it should at each point of a run."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from fulgur import Callback, LightningModule, Trainer
from fulgur.callbacks import EarlyStopping, ModelCheckpoint
from fulgur.errors import MisconfigurationException
from fulgur.testing import BoringModel

HOOKS = [name for name in vars(Callback) if name.startswith("on_") or name in ("setup", "teardown")]
HOOKS = [name for name in HOOKS if name not in ("on_save_checkpoint", "on_load_checkpoint", "on_exception")]

# The attributes of a Trainer that are documented, or that packages read.
TRAINER = [
    "accelerator",
    "accumulate_grad_batches",
    "barebones",
    "callback_metrics",
    "callbacks",
    "check_val_every_n_epoch",
    "checkpoint_callback",
    "checkpoint_callbacks",
    "ckpt_path",
    "current_epoch",
    "datamodule",
    "default_root_dir",
    "device_ids",
    "distributed_sampler_kwargs",
    "early_stopping_callback",
    "early_stopping_callbacks",
    "enable_validation",
    "estimated_stepping_batches",
    "evaluating",
    "fast_dev_run",
    "fit_loop",
    "global_rank",
    "global_step",
    "gradient_clip_algorithm",
    "gradient_clip_val",
    "interrupted",
    "is_global_zero",
    "is_last_batch",
    "lightning_module",
    "limit_predict_batches",
    "limit_test_batches",
    "limit_train_batches",
    "limit_val_batches",
    "local_rank",
    "log_dir",
    "log_every_n_steps",
    "logged_metrics",
    "logger",
    "loggers",
    "lr_scheduler_configs",
    "max_epochs",
    "max_steps",
    "min_epochs",
    "min_steps",
    "model",
    "node_rank",
    "num_devices",
    "num_nodes",
    "num_predict_batches",
    "num_sanity_val_batches",
    "num_sanity_val_steps",
    "num_test_batches",
    "num_training_batches",
    "num_val_batches",
    "optimizers",
    "overfit_batches",
    "precision",
    "precision_plugin",
    "predict_dataloaders",
    "predict_loop",
    "predicting",
    "profiler",
    "progress_bar_callback",
    "progress_bar_metrics",
    "received_sigterm",
    "reload_dataloaders_every_n_epochs",
    "sanity_checking",
    "scaler",
    "should_stop",
    "state",
    "strategy",
    "test_dataloaders",
    "test_loop",
    "testing",
    "train_dataloader",
    "training",
    "val_check_batch",
    "val_check_interval",
    "val_dataloaders",
    "validate_loop",
    "validating",
    "world_size",
    "_accelerator_connector.is_distributed",
    "_callback_connector._reorder_callbacks",
    "_checkpoint_connector.dump_checkpoint",
    "_checkpoint_connector._loaded_checkpoint",
    "_evaluation_loop.verbose",
    "_model",
    "_results.DATALOADER_SUFFIX",
    "_results.result_metrics",
    "fit_loop.epoch_loop.batch_progress.current.ready",
    "fit_loop.epoch_loop.batch_progress.total.ready",
    "fit_loop.epoch_loop.batch_progress.is_last_batch",
    "fit_loop.epoch_loop._batches_that_stepped",
    "fit_loop.epoch_loop.batch_idx",
    "fit_loop.epoch_loop.global_step",
    "fit_loop.epoch_loop.max_steps",
    "fit_loop.epoch_loop.total_batch_idx",
    "fit_loop.epoch_loop.val_loop",
    "fit_loop.epoch_progress.current.completed",
    "fit_loop.epoch_progress.current.processed",
    "fit_loop.max_epochs",
    "fit_loop.min_epochs",
    "predict_loop.predictions",
    "predict_loop.epoch_batch_indices",
    "predict_loop.current_batch_indices",
    "predict_loop.num_dataloaders",
    "predict_loop.max_batches",
    "state.fn",
    "state.stage",
    "state.status",
    "strategy.root_device",
    "strategy.model",
    "strategy.lightning_module",
    "strategy.optimizers",
    "strategy.lr_scheduler_configs",
    "strategy.local_rank",
    "strategy.checkpoint_io.load_checkpoint",
    "strategy.checkpoint_io.save_checkpoint",
    "strategy.broadcast",
    "strategy.barrier",
    "strategy.save_checkpoint",
    "precision_plugin.scaler",
    "lr_schedulers",
    "progress_bar_dict",
    "gpus",
    "num_gpus",
    "root_gpu",
    "use_amp",
    "weights_save_path",
    "tuning",
    "running_sanity_check",
    "fitting",
    "train_loop",
    "batch_idx",
    "total_batch_idx",
    "distributed_backend",
    "accelerator_backend",
    "prediction_writer_callbacks",
    "fit_loop.epoch_loop.batch_progress.current.completed",
    "strategy.world_size",
    "strategy.global_rank",
    "strategy.accelerator",
    "strategy.load_optimizer_state_dict",
    "strategy.connect",
    "_evaluation_loop._print_results",
    "strategy.precision_plugin",
]

MODULE = [
    "automatic_optimization",
    "current_epoch",
    "device",
    "dtype",
    "example_input_array",
    "fabric",
    "global_rank",
    "global_step",
    "hparams",
    "hparams_initial",
    "local_rank",
    "logger",
    "loggers",
    "on_gpu",
    "strict_loading",
    "trainer",
    "prepare_data_per_node",
    "allow_zero_length_dataloader_with_multiple_devices",
]


def at_every_hook(do: Any) -> Callback:
    """A callback that calls ``do(hook, trainer, module)`` in each hook."""

    def make(name: str) -> Any:
        return lambda self, trainer, module, *args, **kwargs: do(name, trainer, module)

    kind: Any = type("AtEveryHook", (Callback,), {name: make(name) for name in HOOKS})
    built: Callback = kind()
    return built


def quiet(*callbacks: Callback, **arguments: Any) -> Trainer:
    off = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return Trainer(accelerator="cpu", callbacks=list(callbacks), **{**off, **arguments})


class Batches(BoringModel):
    """Three batches for everything."""

    def train_dataloader(self) -> Any:
        return DataLoader(torch.ones(3, 32))

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


@pytest.mark.parametrize("entry", ["fit", "validate", "test", "predict"])
def test_every_attribute_answers_in_every_hook(entry: str) -> None:
    failed: set[tuple[str, str, str]] = set()
    hooks: set[str] = set()

    def read(hook: str, trainer: Any, module: Any) -> None:
        hooks.add(hook)
        for owner, paths in ((trainer, TRAINER), (module, MODULE)):
            for path in paths:
                value = owner
                try:
                    for name in path.split("."):
                        value = getattr(value, name)
                except Exception as error:
                    failed.add((hook, path, repr(error)))

    trainer = quiet(at_every_hook(read), EarlyStopping("x", strict=False), max_epochs=1)
    model = Batches()
    read("before", trainer, BoringModel())
    failed = {found for found in failed if found[1] not in ("trainer", "model", "log_dir")}
    getattr(trainer, entry)(model)
    read("after", trainer, model)
    assert failed == set()
    assert len(hooks) > 6


def test_counters_of_the_loops_in_an_epoch_of_three_batches_in_windows_of_two() -> None:
    notes: list[tuple[Any, ...]] = []

    def note(hook: str, trainer: Any, module: Any) -> None:
        loop = trainer.fit_loop.epoch_loop
        current = loop.batch_progress.current
        counts = (current.ready, current.processed, current.completed)
        epochs = (trainer.fit_loop.epoch_progress.current.ready, trainer.fit_loop.epoch_progress.current.completed)
        notes.append((hook, counts, loop.batch_idx, loop._batches_that_stepped, epochs))

    wanted = ("on_train_start", "on_train_batch_start", "on_before_optimizer_step", "on_train_batch_end")
    callback = at_every_hook(lambda h, t, m: note(h, t, m) if h in (*wanted, "on_train_epoch_end", "on_fit_end") else 0)
    quiet(callback, max_epochs=1, accumulate_grad_batches=2, limit_val_batches=0).fit(Batches())
    assert notes == [
        ("on_train_start", (0, 0, 0), -1, 0, (0, 0)),
        ("on_train_batch_start", (1, 0, 0), 0, 0, (0, 0)),
        ("on_train_batch_end", (1, 1, 0), 0, 0, (1, 0)),
        ("on_train_batch_start", (2, 1, 1), 1, 0, (1, 0)),
        ("on_before_optimizer_step", (2, 1, 1), 1, 0, (1, 0)),
        ("on_train_batch_end", (2, 2, 1), 1, 0, (1, 0)),
        ("on_train_batch_start", (3, 2, 2), 2, 1, (1, 0)),
        ("on_before_optimizer_step", (3, 2, 2), 2, 1, (1, 0)),
        ("on_train_batch_end", (3, 3, 2), 2, 1, (1, 0)),
        ("on_train_epoch_end", (3, 3, 3), 2, 1, (1, 0)),
        ("on_fit_end", (0, 0, 0), -1, 1, (1, 1)),
    ]


def at(hook: str, do: Any) -> Callback:
    return at_every_hook(lambda name, trainer, module: do(trainer) if name == hook else None)


def test_should_stop_ends_the_epoch() -> None:
    trainer = quiet(at("on_train_batch_end", lambda t: setattr(t, "should_stop", True)), max_epochs=5)
    trainer.fit(Batches())
    assert (trainer.current_epoch, trainer.global_step) == (1, 1)


def test_max_epochs_of_the_loop_takes_effect_in_the_run_and_after_it() -> None:
    trainer = quiet(at("on_train_epoch_start", lambda t: setattr(t.fit_loop, "max_epochs", 2)), max_epochs=5)
    trainer.fit(Batches())
    assert trainer.current_epoch == trainer.max_epochs == 2
    trainer = quiet(max_epochs=1)
    trainer.fit(Batches())
    trainer.fit_loop.max_epochs = 3
    trainer.fit(Batches())
    assert trainer.current_epoch == 3


def test_max_epochs_of_the_loop_must_be_a_number() -> None:
    with pytest.raises(ValueError, match="max_epochs=-3"):
        quiet().fit_loop.max_epochs = -3


def test_max_steps_of_the_epoch_loop_takes_effect() -> None:
    trainer = quiet(at("on_fit_start", lambda t: setattr(t.fit_loop.epoch_loop, "max_steps", 4)), max_epochs=5)
    trainer.fit(Batches())
    assert (trainer.global_step, trainer.max_steps) == (4, 4)


def test_epochs_that_are_set_count_as_done() -> None:
    trainer = quiet(max_epochs=3)
    trainer.fit_loop.epoch_progress.current.completed = 2
    trainer.fit(Batches())
    assert (trainer.current_epoch, trainer.global_step) == (3, 3)


def test_callbacks_assigned_in_a_run_take_effect() -> None:
    heard: list[str] = []
    late = at_every_hook(lambda name, trainer, module: heard.append(name))

    def swap(trainer: Any) -> None:
        if late not in trainer.callbacks:
            trainer.callbacks = [*trainer.callbacks, late]

    quiet(at("on_fit_start", swap), max_epochs=1, limit_train_batches=1, limit_val_batches=0).fit(Batches())
    assert heard[:3] == ["on_train_start", "on_train_epoch_start", "on_train_batch_start"]
    assert heard[-3:] == ["on_train_end", "on_fit_end", "teardown"]


@pytest.mark.parametrize(
    ("name", "value", "steps"),
    [("limit_train_batches", 2, 2), ("overfit_batches", 1, 1), ("limit_train_batches", 1.0, 3)],
)
def test_limits_assigned_between_calls_take_effect(name: str, value: Any, steps: int) -> None:
    trainer = quiet(max_epochs=1)
    setattr(trainer, name, value)
    trainer.fit(Batches())
    assert trainer.global_step == steps


def test_intervals_assigned_before_fit_take_effect() -> None:
    validated: list[int] = []
    trainer = quiet(at("on_validation_start", lambda t: validated.append(t.global_step)), max_epochs=2)
    trainer.num_sanity_val_steps = 0
    trainer.val_check_interval = 1
    trainer.check_val_every_n_epoch = 2
    trainer.fit(Batches())
    assert validated == [4, 5, 6]


def test_a_checkpoint_restored_piece_by_piece() -> None:
    trainer = quiet(max_epochs=1)
    model = Batches()
    trainer.fit(model)
    trainer.save_checkpoint("file.ckpt")
    other = Batches()
    trainer = quiet(max_epochs=1)
    trainer.validate(other, verbose=False)
    trainer._checkpoint_connector.resume_start("file.ckpt")
    trainer._checkpoint_connector.restore_model()
    trainer._checkpoint_connector.restore_datamodule()
    trainer._checkpoint_connector.resume_end()
    assert torch.equal(other.layer.weight, model.layer.weight)
    assert trainer._checkpoint_connector._loaded_checkpoint == {}
    assert trainer._checkpoint_connector.dump_checkpoint()["state_dict"].keys() == model.state_dict().keys()


def test_order_of_callbacks() -> None:
    saves, stops = ModelCheckpoint(), EarlyStopping("x")
    assert quiet()._callback_connector._reorder_callbacks([saves, stops]) == [stops, saves]


# ------------------------------------------------------------------------------------------------------ 1.x only


def test_options_of_a_command_line_make_a_trainer() -> None:
    parser = Trainer.add_argparse_args(ArgumentParser())
    words = ["--max_epochs", "7", "--gpus", "0", "--precision", "bf16-mixed", "--barebones", "--logger", "false"]
    trainer = Trainer.from_argparse_args(parser.parse_args(words), min_epochs=2)
    assert (trainer.max_epochs, trainer.min_epochs, trainer.precision) == (7, 2, "bf16-mixed")
    assert trainer.barebones is True
    assert trainer.loggers == []


def test_options_leave_devices_and_times_as_text() -> None:
    parsed = Trainer.add_argparse_args(ArgumentParser()).parse_args(["--devices", "0,1", "--max_time", "00:01:00:00"])
    assert (parsed.devices, parsed.max_time) == ("0,1", "00:01:00:00")


def test_options_that_were_not_given_do_not_override_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_TRAINER_MAX_EPOCHS", "9")
    parsed = Trainer.add_argparse_args(ArgumentParser()).parse_args([])
    assert Trainer.from_argparse_args(parsed, accelerator="cpu", logger=False).max_epochs == 9
    assert vars(Trainer.match_env_arguments()) == {"max_epochs": 9}


class Returning(Batches):
    """Returns what is to be logged, as in 1.0."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.step(batch)
        shown = {"shown": torch.tensor(2.0), "both": torch.tensor(3.0)}
        return {"loss": loss, "log": {"logged": torch.tensor(1.0), "both": torch.tensor(3.0)}, "progress_bar": shown}

    def training_epoch_end(self, outputs: Any) -> Any:
        return {"n_outputs": len(outputs), "log": {"epoch_logged": 4.0}}

    def validation_epoch_end(self, outputs: Any) -> Any:
        return {"val_loss": torch.tensor(0.5), "names": ["x"], "log": {"val_logged": 5.0}, "progress_bar": {"val": 6.0}}


def test_returned_dicts_are_logged() -> None:
    trainer = quiet(max_epochs=1, log_every_n_steps=1)
    trainer.fit(Returning())
    assert {name: value.item() for name, value in trainer.callback_metrics.items()} == {
        "logged": 1.0,
        "shown": 2.0,
        "both": 3.0,
        "n_outputs": 3.0,
        "epoch_logged": 4.0,
        "val_loss": 0.5,
        "val_logged": 5.0,
        "val": 6.0,
    }
    assert set(trainer.logged_metrics) == {"logged", "both", "epoch_logged", "val_logged"}
    assert trainer.progress_bar_metrics == {"shown": 2.0, "both": 3.0, "val": 6.0}


def test_returned_dicts_are_logged_under_manual_optimization() -> None:
    class Manual(Returning):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

    trainer = quiet(max_epochs=1, log_every_n_steps=1, limit_val_batches=0)
    trainer.fit(Manual())
    assert trainer.callback_metrics["logged"].item() == 1.0


def test_tune_without_anything_to_tune_does_nothing() -> None:
    assert quiet().tune(Batches()) == {}


def test_names_of_0_9_can_be_imported_and_say_what_to_write() -> None:
    from fulgur.compat.standins.gone import EvalResult, TrainResult

    for kind in (TrainResult, EvalResult):
        with pytest.raises(MisconfigurationException, match=r"self\.log\(name, value\)"):
            kind(torch.ones(1))


def test_a_trainer_is_one_of_its_subclasses_made_from_options() -> None:
    class Mine(Trainer):
        pass

    parsed = Mine.add_argparse_args(ArgumentParser()).parse_args([])
    assert type(Mine.from_argparse_args(parsed, accelerator="cpu", logger=False)) is Mine


def test_a_module_made_of_hook_classes_overrides_nothing() -> None:
    from fulgur.compat.standins.hook_bases import ModelHooks
    from fulgur.hooks import overrides

    class Made(LightningModule, ModelHooks):
        pass

    assert not any(overrides(Made(), name, LightningModule) for name in dir(ModelHooks) if name.startswith("on_"))
