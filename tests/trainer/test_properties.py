"""What can be read from a Trainer: before a run, in its hooks, and after it."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.trainer.conftest import Bare, Net, numbers, quiet

from fulgur import Callback, Trainer
from fulgur.accelerators import Accelerator
from fulgur.callbacks import EarlyStopping, ModelCheckpoint, RichProgressBar
from fulgur.errors import PossibleUserWarning
from fulgur.loggers import CSVLogger
from fulgur.strategies import SingleDeviceStrategy

STAGES = ("training", "validating", "testing", "predicting", "sanity_checking", "evaluating")


_HOOKS = [
    *("setup", "teardown"),
    *(name for name in vars(Callback) if name.startswith("on_") and "checkpoint" not in name),
]


class Watch(Callback):
    """Notes what `look` sees in every hook."""

    def __init__(self, look: Any) -> None:
        self.look = look
        self.seen: dict[str, list[Any]] = {}
        for hook in _HOOKS:
            setattr(self, hook, partial(self.note, hook))

    def note(self, hook: str, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        self.seen.setdefault(hook, []).append(self.look(trainer))


def watched(look: Any, model: Any = None, **kwargs: Any) -> dict[str, list[Any]]:
    watch = Watch(look)
    arguments = {"max_epochs": 1, "num_sanity_val_steps": 1, **kwargs}
    quiet(callbacks=[watch], **arguments).fit(model or Net(), numbers(3), numbers(1))
    return watch.seen


# ------------------------------------------------------------------------------------------------------ before any run


def test_everything_can_be_read_before_a_run() -> None:
    trainer = quiet()
    assert (trainer.global_step, trainer.current_epoch, trainer.max_epochs, trainer.max_steps) == (0, 0, None, -1)
    assert (trainer.min_epochs, trainer.min_steps, trainer.should_stop) == (0, None, False)
    assert (trainer.num_training_batches, trainer.num_val_batches) == (math.inf, [])
    assert (trainer.num_test_batches, trainer.num_predict_batches, trainer.num_sanity_val_batches) == ([], [], [])
    loaders = (trainer.train_dataloader, trainer.val_dataloaders, trainer.test_dataloaders, trainer.predict_dataloaders)
    assert loaders == (None, None, None, None)
    assert (trainer.callback_metrics, trainer.logged_metrics, trainer.progress_bar_metrics) == ({}, {}, {})
    assert (trainer.optimizers, trainer.lr_scheduler_configs) == ([], [])
    assert (trainer.state.fn, trainer.state.stage, trainer.state.status) == (None, None, "initializing")
    assert not any(getattr(trainer, stage) for stage in STAGES)
    assert not trainer.interrupted
    assert not trainer.received_sigterm
    assert (trainer.ckpt_path, trainer.datamodule, trainer.model, trainer.lightning_module) == (None,) * 4
    assert (trainer.is_last_batch, trainer.enable_validation) == (False, False)
    assert trainer.estimated_stepping_batches == -1


def test_arguments_can_be_read_back() -> None:
    arguments: dict[str, Any] = {
        "max_epochs": 3,
        "min_epochs": 2,
        "max_steps": 50,
        "min_steps": 5,
        "overfit_batches": 0.5,
        "limit_train_batches": 0.5,
        "limit_test_batches": 3,
        "limit_predict_batches": 0,
        "val_check_interval": 2,
        "check_val_every_n_epoch": 3,
        "num_sanity_val_steps": 4,
        "log_every_n_steps": 7,
        "accumulate_grad_batches": 6,
        "gradient_clip_val": 0.5,
        "gradient_clip_algorithm": "value",
        "reload_dataloaders_every_n_epochs": 8,
    }
    trainer = quiet(**arguments)
    assert {name: getattr(trainer, name) for name in arguments} == arguments
    assert (trainer.limit_val_batches, trainer.fast_dev_run, trainer.barebones) == (0.5, False, False)


def test_parts_and_processes() -> None:
    trainer = quiet(precision="bf16-mixed")
    assert isinstance(trainer.accelerator, Accelerator)
    assert isinstance(trainer.strategy, SingleDeviceStrategy)
    assert (trainer.precision, trainer.precision_plugin.name, trainer.scaler) == ("bf16-mixed", "bf16-mixed", None)
    assert (trainer.global_rank, trainer.local_rank, trainer.node_rank, trainer.world_size) == (0, 0, 0, 1)
    assert (trainer.num_nodes, trainer.num_devices, trainer.device_ids, trainer.is_global_zero) == (1, 1, [0], True)
    assert trainer.distributed_sampler_kwargs is None


def test_callbacks_by_their_kind() -> None:
    first, second = ModelCheckpoint(monitor="a"), ModelCheckpoint(monitor="b")
    stopping, bar = EarlyStopping("a"), RichProgressBar()
    trainer = Trainer(accelerator="cpu", logger=False, callbacks=[first, stopping, second, bar])
    assert (trainer.checkpoint_callback, trainer.checkpoint_callbacks) == (first, [first, second])
    assert (trainer.early_stopping_callback, trainer.early_stopping_callbacks) == (stopping, [stopping])
    assert trainer.progress_bar_callback is bar
    bare = quiet()
    assert (bare.checkpoint_callback, bare.early_stopping_callback, bare.progress_bar_callback) == (None, None, None)


def test_loggers_and_their_directory(tmp_path: Path) -> None:
    first, second = CSVLogger(tmp_path, name="a"), CSVLogger(tmp_path, name="b")
    trainer = quiet(logger=[first, second])
    assert (trainer.logger, trainer.loggers) == (first, [first, second])
    assert trainer.log_dir == first.log_dir
    trainer.logger = second
    assert trainer.loggers == [second]
    trainer.logger = None
    assert (trainer.logger, trainer.loggers) == (None, [])
    assert trainer.log_dir == trainer.default_root_dir == str(tmp_path)


def test_default_root_dir_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert quiet(default_root_dir="~/a/../runs").default_root_dir == str(tmp_path / "runs")
    assert quiet(default_root_dir="s3://bucket/runs").default_root_dir == "s3://bucket/runs"


# -------------------------------------------------------------------------------------------------------- during a run


def test_counters_in_the_hooks_of_an_epoch() -> None:
    seen = watched(lambda t: (t.global_step, t.current_epoch, t.is_last_batch), accumulate_grad_batches=2)
    assert seen["setup"] == seen["on_fit_start"] == seen["on_train_start"] == [(0, 0, False)]
    assert seen["on_train_batch_start"] == [(0, 0, False), (0, 0, False), (1, 0, True)]
    assert seen["on_before_optimizer_step"] == [(0, 0, False), (1, 0, True)]
    assert seen["on_train_batch_end"] == [(0, 0, False), (1, 0, False), (2, 0, True)]
    assert seen["on_validation_start"] == [(0, 0, False), (2, 0, True)]
    assert seen["on_train_epoch_end"] == [(2, 0, True)]
    assert seen["on_train_end"] == seen["on_fit_end"] == seen["teardown"] == [(2, 1, True)]


def test_stage_in_the_hooks_of_fit() -> None:
    seen = watched(lambda t: (str(t.state.fn), str(t.state.stage), str(t.state.status)))
    train, check = ("fit", "train", "running"), ("fit", "sanity_check", "running")
    validate = ("fit", "validate", "running")
    for hook in ("setup", "on_fit_start", "on_train_start", "on_train_epoch_end", "on_train_end", "teardown"):
        assert seen[hook] == [train], hook
    assert seen["on_sanity_check_start"] == seen["on_sanity_check_end"] == [check]
    assert seen["on_validation_batch_end"] == seen["on_validation_end"] == [check, validate]


@pytest.mark.parametrize(
    ("entry", "stage", "flags"),
    [
        ("validate", "validate", {"validating", "evaluating"}),
        ("test", "test", {"testing", "evaluating"}),
        ("predict", "predict", {"predicting"}),
    ],
)
def test_stage_in_evaluations(entry: str, stage: str, flags: set[str]) -> None:
    watch = Watch(lambda t: (str(t.state.fn), str(t.state.stage), {name for name in STAGES if getattr(t, name)}))
    trainer = quiet(callbacks=[watch])
    getattr(trainer, entry)(Net(), numbers(1))
    assert watch.seen["setup"] == watch.seen["teardown"] == [(stage, stage, flags)]
    assert (trainer.state.stage, trainer.state.finished) == (None, True)


def test_flags_of_the_stage_in_fit() -> None:
    seen = watched(lambda t: {name for name in STAGES if getattr(t, name)})
    assert seen["on_train_batch_end"] == [{"training"}] * 3
    assert seen["on_validation_end"] == [{"sanity_checking", "evaluating"}, {"validating", "evaluating"}]


def test_module_reads_the_same_counters() -> None:
    class Reads(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            assert (self.global_step, self.current_epoch) == (self.trainer.global_step, self.trainer.current_epoch)
            self.seen["train"].append((self.global_step, self.current_epoch, self.global_rank, self.local_rank))
            return self(batch).mean()

    model = Reads()
    quiet(max_epochs=2).fit(model, numbers(1))
    assert model.seen["train"] == [(0, 0, 0, 0), (1, 1, 0, 0)]


def test_number_of_batches_is_known_once_loaders_are_there() -> None:
    seen = watched(lambda t: (t.num_training_batches, t.num_val_batches, t.num_sanity_val_batches))
    assert seen["on_fit_start"] == [(math.inf, [], [])]
    assert seen["on_validation_start"][0] == (math.inf, [1], [1])
    assert seen["on_train_start"] == [(3, [1], [1])]


def test_enable_validation_tells_whether_fit_validates() -> None:
    look = lambda t: t.enable_validation  # noqa: E731
    assert watched(look)["setup"] == [True]
    assert watched(look, limit_val_batches=0)["setup"] == [False]
    with pytest.warns(PossibleUserWarning, match="Bare has no validation_step"):
        assert watched(look, Bare())["setup"] == [False]


def test_optimizers_and_schedulers_are_there_from_on_fit_start() -> None:
    class Scheduled(Net):
        def configure_optimizers(self) -> Any:
            self.optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            return [self.optimizer], [torch.optim.lr_scheduler.StepLR(self.optimizer, 1)]

    model = Scheduled()
    seen = watched(lambda t: (t.optimizers, [c.interval for c in t.lr_scheduler_configs]), model)
    assert seen["on_fit_start"] == [([model.optimizer], ["epoch"])]


# ---------------------------------------------------------------------------------------------------------- afterwards


def test_metrics_are_reset_by_the_next_run_and_on_the_host_after_it() -> None:
    model, trainer = Net(), quiet(max_epochs=1)
    trainer.fit(model, numbers(1), numbers(3))
    assert trainer.callback_metrics == {"val": torch.tensor(1.0)}
    assert trainer.logged_metrics == {"val": torch.tensor(1.0)}
    trainer.test(model, numbers(1), verbose=False)
    assert set(trainer.callback_metrics) == {"test"}


def test_state_after_runs_that_end_and_fail() -> None:
    class Fails(Bare):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise RuntimeError("stop")

    trainer = quiet(max_epochs=1)
    trainer.fit(Bare(), numbers(1))
    assert (trainer.state.status, trainer.state.stage, trainer.interrupted) == ("finished", None, False)
    trainer.fit_loop.max_epochs = 2
    with pytest.raises(RuntimeError, match="stop"):
        trainer.fit(Fails(), numbers(1))
    assert (trainer.state.status, trainer.state.stage, trainer.interrupted) == ("interrupted", None, True)
    assert trainer.state.stopped


def test_model_and_module_are_the_latest_one() -> None:
    first, second = Net(), Net()
    trainer = quiet(max_epochs=1)
    trainer.fit(first, numbers(1))
    assert (trainer.lightning_module, trainer.model) == (first, first)
    trainer.test(second, numbers(1), verbose=False)
    assert (trainer.lightning_module, trainer.model) == (second, second)


def test_predict_loop_keeps_predictions() -> None:
    class Echo(Net):
        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            return int(batch[0, 0])

    trainer = quiet()
    assert trainer.predict(Echo(), numbers(2)) == trainer.predict_loop.predictions == [0, 1]


def test_print_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    class Prints(Bare):
        def on_train_start(self) -> None:
            self.print("from the module", end="!")

    trainer = quiet(max_epochs=1)
    trainer.fit(Prints(), numbers(1))
    trainer.print("from", "the trainer")
    assert capsys.readouterr().out == "from the module!from the trainer\n"


def test_save_checkpoint_before_a_model_is_attached_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AttributeError, match="before a model was attached"):
        quiet().save_checkpoint(tmp_path / "a.ckpt")
