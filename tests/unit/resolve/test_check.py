"""What each argument may be, and what arguments do to each other."""

from __future__ import annotations

import math
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from fulgur.callbacks import ModelCheckpoint, ProgressBar
from fulgur.errors import MisconfigurationException
from fulgur.hooks import Callback
from fulgur.loggers import CSVLogger
from fulgur.resolve import Arguments, Settings, check_arguments


def check(**given: Any) -> Settings:
    return check_arguments(Arguments(**given))


def test_defaults_are_filled_in() -> None:
    settings = check()
    assert settings.callbacks == []
    assert settings.min_epochs == 0
    assert settings.limit_train_batches == 1.0
    assert type(settings.limit_train_batches) is float
    assert settings.val_check_interval == 1.0
    assert type(settings.val_check_interval) is float
    assert settings.num_sanity_val_steps == 2
    assert settings.log_every_n_steps == 50
    assert settings.enable_checkpointing is True
    assert settings.enable_progress_bar is True
    assert settings.enable_model_summary is True
    assert settings.max_epochs is None
    assert settings.gradient_clip_algorithm is None
    assert settings.default_root_dir == os.getcwd()


@pytest.mark.parametrize(
    ("name", "given", "settled"),
    [
        ("fast_dev_run", 1, True),
        ("fast_dev_run", 0, False),
        ("max_epochs", -1, -1),
        ("max_epochs", 0, 0),
        ("limit_val_batches", 2.0, 2),
        ("limit_val_batches", 1, 1),
        ("limit_val_batches", 0, 0),
        ("limit_test_batches", 0.25, 0.25),
        ("val_check_interval", 1, 1),
        ("val_check_interval", 2.0, 2),
        ("val_check_interval", 0.5, 0.5),
        ("val_check_interval", "00:01:00:00", timedelta(hours=1)),
        ("val_check_interval", {"minutes": 5}, timedelta(minutes=5)),
        ("val_check_interval", timedelta(seconds=3), timedelta(seconds=3)),
        ("max_time", "01:00:00:00", timedelta(days=1)),
        ("check_val_every_n_epoch", None, None),
        ("num_sanity_val_steps", -1, math.inf),
        ("num_sanity_val_steps", 0, 0),
        ("log_every_n_steps", 0, 0),
        ("gradient_clip_val", 0.5, 0.5),
        ("gradient_clip_val", 0, 0),
        ("gradient_clip_algorithm", "Value", "value"),
        ("deterministic", "warn", "warn"),
        ("enable_checkpointing", False, False),
        ("model_registry", "name:version", "name"),
        ("default_root_dir", "s3://bucket/a/../b", "s3://bucket/a/../b"),
        ("default_root_dir", Path("a") / ".." / "b", "b"),
        ("default_root_dir", "~", os.path.expanduser("~")),
    ],
)
def test_values_are_brought_into_one_form(name: str, given: Any, settled: Any) -> None:
    value = getattr(check(**{name: given}), name)
    assert value == settled
    assert type(value) is type(settled)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fast_dev_run", -1),
        ("fast_dev_run", 1.5),
        ("fast_dev_run", "2"),
        ("max_epochs", -2),
        ("max_epochs", 1.5),
        ("max_epochs", True),
        ("min_epochs", -1),
        ("max_steps", -2),
        ("max_steps", 1e3),
        ("min_steps", -1),
        ("max_time", "1 hour"),
        ("limit_train_batches", -1),
        ("limit_train_batches", 1.5),
        ("limit_val_batches", math.nan),
        ("limit_test_batches", math.inf),
        ("limit_predict_batches", "all"),
        ("overfit_batches", -0.1),
        ("val_check_interval", 1.5),
        ("val_check_interval", -1),
        ("val_check_interval", 0),
        ("val_check_interval", 0.0),
        ("val_check_interval", math.nan),
        ("val_check_interval", "often"),
        ("check_val_every_n_epoch", 0),
        ("check_val_every_n_epoch", 0.5),
        ("num_sanity_val_steps", -2),
        ("num_sanity_val_steps", 1.5),
        ("log_every_n_steps", -1),
        ("log_every_n_steps", 0.5),
        ("accumulate_grad_batches", 0),
        ("accumulate_grad_batches", 1.5),
        ("accumulate_grad_batches", None),
        ("gradient_clip_val", math.nan),
        ("gradient_clip_algorithm", "l1"),
        ("deterministic", "yes"),
        ("benchmark", "yes"),
        ("inference_mode", "no"),
        ("reload_dataloaders_every_n_epochs", -1),
        ("reload_dataloaders_every_n_epochs", 0.5),
        ("callbacks", "EarlyStopping"),
        ("enable_progress_bar", "rich"),
    ],
)
def test_bad_value_is_an_error_that_names_argument_and_value(name: str, value: Any) -> None:
    with pytest.raises(MisconfigurationException) as error:
        check(**{name: value})
    assert f"{name}={value!r}" in str(error.value)


@pytest.mark.parametrize("value", [0, 1.5, "2"])
def test_bad_num_nodes_is_a_value_error(value: Any) -> None:
    with pytest.raises(ValueError, match="num_nodes="):
        check(num_nodes=value)


@pytest.mark.parametrize("value", ["1.0", [1.0], True])
def test_gradient_clip_val_of_another_type_is_a_type_error(value: Any) -> None:
    with pytest.raises(TypeError, match="gradient_clip_val="):
        check(gradient_clip_val=value)


def test_max_time_of_another_type_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="max_time=5"):
        check(max_time=5)


@pytest.mark.parametrize("item", ["ModelCheckpoint", ModelCheckpoint, None])
def test_callback_list_holds_callbacks_only(item: Any) -> None:
    with pytest.raises(MisconfigurationException, match="which is not a Callback"):
        check(callbacks=[item])


def test_class_instead_of_a_callback_is_told_to_call_it() -> None:
    with pytest.raises(MisconfigurationException, match="Did you forget to call it"):
        check(callbacks=[ModelCheckpoint])


def test_single_callback_becomes_a_list() -> None:
    callback = Callback()
    assert check(callbacks=callback).callbacks == [callback]


def test_list_of_callbacks_is_copied() -> None:
    given: list[Callback] = [Callback()]
    assert check(callbacks=given).callbacks is not given


def test_min_steps_asks_for_one_epoch() -> None:
    assert check(min_steps=3).min_epochs == 1
    assert check(min_steps=3, min_epochs=4).min_epochs == 4


@pytest.mark.parametrize("interval", [0.5, 1.0])
def test_fraction_of_an_epoch_needs_epochs_to_count(interval: float) -> None:
    with pytest.raises(MisconfigurationException, match="check_val_every_n_epoch=None counts"):
        check(check_val_every_n_epoch=None, val_check_interval=interval)


@pytest.mark.parametrize("interval", [None, 5, "00:00:10:00"])
def test_counting_across_epochs_takes_counts_and_durations(interval: Any) -> None:
    assert check(check_val_every_n_epoch=None, val_check_interval=interval).check_val_every_n_epoch is None


def test_overfitting_limits_training_and_validation() -> None:
    settings = check(overfit_batches=3, limit_train_batches=0.5, limit_test_batches=7)
    assert (settings.limit_train_batches, settings.limit_val_batches, settings.limit_test_batches) == (3, 3, 7)


def test_fast_dev_run_shortens_everything() -> None:
    settings = check(fast_dev_run=3, max_epochs=9, max_steps=99, val_check_interval=7, check_val_every_n_epoch=2)
    assert settings.fast_dev_run == 3
    assert settings.limit_train_batches == settings.limit_val_batches == 3
    assert settings.limit_test_batches == settings.limit_predict_batches == 3
    assert (settings.max_epochs, settings.max_steps, settings.num_sanity_val_steps) == (1, 3, 0)
    assert (settings.val_check_interval, settings.check_val_every_n_epoch) == (1.0, 1)
    assert settings.enable_checkpointing is False


def test_fast_dev_run_allows_checkpoint_callbacks() -> None:
    callback = ModelCheckpoint()
    assert check(fast_dev_run=True, callbacks=[callback]).callbacks == [callback]


def test_barebones_switches_everything_off() -> None:
    settings = check(barebones=True)
    assert settings.logger is False
    assert settings.enable_checkpointing is False
    assert settings.enable_progress_bar is False
    assert settings.enable_model_summary is False
    assert settings.log_every_n_steps == settings.num_sanity_val_steps == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("enable_checkpointing", True),
        ("logger", True),
        ("logger", CSVLogger(".")),
        ("enable_progress_bar", True),
        ("enable_model_summary", True),
        ("log_every_n_steps", 1),
        ("num_sanity_val_steps", 1),
        ("fast_dev_run", True),
        ("detect_anomaly", True),
        ("profiler", "simple"),
    ],
)
def test_barebones_refuses_what_it_switches_off(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"barebones=True and {name}="):
        check(barebones=True, **{name: value})


def test_barebones_allows_what_is_off_already() -> None:
    check(barebones=True, logger=False, enable_checkpointing=False, log_every_n_steps=0, profiler=None)


def test_checkpoint_callback_needs_checkpointing() -> None:
    with pytest.raises(MisconfigurationException, match="enable_checkpointing=False and the callback ModelCheckpoint"):
        check(enable_checkpointing=False, callbacks=[ModelCheckpoint()])


def test_bar_needs_the_progress_bar() -> None:
    with pytest.raises(MisconfigurationException, match="enable_progress_bar=False and the callback ProgressBar"):
        check(enable_progress_bar=False, callbacks=[ProgressBar()])


def test_two_bars_are_an_error() -> None:
    with pytest.raises(MisconfigurationException, match="callbacks holds 2 progress bars"):
        check(callbacks=[ProgressBar(), ProgressBar()])
