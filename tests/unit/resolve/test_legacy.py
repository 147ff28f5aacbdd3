"""Arguments of the 1.x Trainer mean what they meant."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from fulgur.callbacks import EarlyStopping, GradientAccumulationScheduler, ModelCheckpoint, ModelSummary, ProgressBar
from fulgur.errors import MisconfigurationException, UnknownArgumentError
from fulgur.resolve import LegacySettings, build_arguments, check_arguments, translate_legacy
from fulgur.resolve.arguments import ARGUMENT_NAMES
from fulgur.resolve.legacy import _RETIRED, LEGACY_NAMES


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def today(**given: Any) -> dict[str, Any]:
    return translate_legacy(given)[0]


def kept(**given: Any) -> LegacySettings:
    return translate_legacy(given)[1]


def test_call_of_todays_form_is_left_alone() -> None:
    given = {"accelerator": "cpu", "max_epochs": 3, "unheard_of": 1}
    assert translate_legacy(given) == (given, LegacySettings())


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("gpus", ["0", 1, [0], -1, "0,1"])
def test_gpus_without_cuda_is_an_error_that_says_how_to_train_on_the_cpu(gpus: Any) -> None:
    with pytest.raises(MisconfigurationException) as error:
        today(gpus=gpus)
    assert f"gpus={gpus!r} asks for a CUDA device" in str(error.value)
    assert "To train on the CPU use accelerator='cpu', or gpus=None." in str(error.value)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(("gpus", "devices"), [("0", [0]), (2, 2), ("1", "1"), ("0,1", "0,1"), ([1], [1]), (-1, -1)])
def test_gpus_become_cuda_devices(gpus: Any, devices: Any) -> None:
    assert today(gpus=gpus) == {"accelerator": "cuda", "devices": devices}


@pytest.mark.parametrize("gpus", [None, 0, [], ""])
def test_no_gpus_means_the_cpu(gpus: Any) -> None:
    assert today(gpus=gpus) == {"accelerator": "cpu"}


def test_no_gpus_leaves_an_accelerator_that_was_named() -> None:
    assert today(gpus=None, accelerator="mps") == {"accelerator": "mps"}


@pytest.mark.usefixtures("two_gpus")
def test_gpus_keep_the_name_gpu() -> None:
    assert today(gpus=2, accelerator="gpu") == {"accelerator": "gpu", "devices": 2}


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("other", [{"accelerator": "cpu"}, {"devices": 2}])
def test_gpus_that_contradict_another_argument_are_an_error(other: dict[str, Any]) -> None:
    with pytest.raises(MisconfigurationException, match=r"is given too\. Leave out gpus"):
        today(gpus=1, **other)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("name", ["accelerator", "distributed_backend"])
def test_backend_becomes_the_strategy(name: str) -> None:
    assert today(gpus=2, **{name: "ddp"}) == {"accelerator": "cuda", "devices": 2, "strategy": "ddp"}


def test_ddp_cpu_spawns_processes_on_the_cpu() -> None:
    assert today(accelerator="ddp_cpu", num_processes=2) == {
        "accelerator": "cpu",
        "devices": 2,
        "strategy": "ddp_spawn",
    }


@pytest.mark.parametrize("value", ["dp", "ddp2", "horovod", "ddp_sharded", "ddp_sharded_spawn"])
@pytest.mark.parametrize("name", ["accelerator", "distributed_backend"])
def test_strategies_that_are_gone_are_errors_with_a_way_out(name: str, value: str) -> None:
    with pytest.raises(MisconfigurationException, match=f"{name}='{value}' is no longer there. Use strategy="):
        today(**{name: value})


def test_num_processes_run_on_the_cpu() -> None:
    assert today(num_processes=2) == {"accelerator": "cpu", "devices": 2}


@pytest.mark.usefixtures("two_gpus")
def test_num_processes_beside_gpus_has_no_effect() -> None:
    assert today(gpus=2, num_processes=1) == {"accelerator": "cuda", "devices": 2}


@pytest.mark.parametrize("name", ["tpu_cores", "ipus", "truncated_bptt_steps"])
def test_what_is_gone_is_an_error_unless_off(name: str) -> None:
    assert today(**{name: None}) == {}
    with pytest.raises(MisconfigurationException, match=f"{name}=8 is no longer there"):
        today(**{name: 8})


def test_apex_is_an_error_and_native_is_not() -> None:
    assert today(amp_backend="native", amp_level="O2") == {}
    with pytest.raises(MisconfigurationException, match=r"amp_backend='apex'.*precision='16-mixed'"):
        today(amp_backend="apex")


@pytest.mark.parametrize("value", [True, False])
def test_checkpoint_callback_switches_checkpointing(value: bool) -> None:
    assert today(checkpoint_callback=value) == {"enable_checkpointing": value}


def test_checkpoint_callback_may_be_the_callback_itself() -> None:
    callback = ModelCheckpoint()
    given, settings = translate_legacy({"checkpoint_callback": callback})
    assert given == {"enable_checkpointing": True}
    assert settings.callbacks == [callback]


def test_early_stop_callback_joins_the_callbacks() -> None:
    callback = EarlyStopping(monitor="val_loss")
    assert kept(early_stop_callback=callback).callbacks == [callback]
    assert kept(early_stop_callback=False).callbacks == []
    with pytest.raises(MisconfigurationException, match="early_stop_callback=True does not say what to watch"):
        kept(early_stop_callback=True)


def test_refresh_rate_zero_switches_the_bar_off() -> None:
    assert today(progress_bar_refresh_rate=0) == {"enable_progress_bar": False}
    assert today(progress_bar_refresh_rate=20) == {}


def test_refresh_rate_zero_leaves_a_bar_that_was_given() -> None:
    bar = ProgressBar()
    assert today(progress_bar_refresh_rate=0, callbacks=[bar]) == {"callbacks": [bar]}


def test_weights_summary_chooses_the_summary() -> None:
    assert today(weights_summary=None) == {"enable_model_summary": False}
    assert today(weights_summary="top") == {"enable_model_summary": True}
    (summary,) = kept(weights_summary="full").callbacks
    assert isinstance(summary, ModelSummary)
    with pytest.raises(MisconfigurationException, match="weights_summary='all' is unknown"):
        today(weights_summary="all")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("resume_from_checkpoint", "a.ckpt", "a.ckpt"),
        ("auto_lr_find", True, True),
        ("auto_lr_find", "rate", "rate"),
        ("auto_scale_batch_size", True, "power"),
        ("auto_scale_batch_size", "binsearch", "binsearch"),
        ("auto_scale_batch_size", False, False),
        ("terminate_on_nan", True, True),
        ("track_grad_norm", -1, None),
        ("track_grad_norm", 2, 2.0),
        ("track_grad_norm", "inf", math.inf),
        ("prepare_data_per_node", False, False),
        ("automatic_optimization", False, False),
        ("multiple_trainloader_mode", "min_size", "min_size"),
        ("weights_save_path", "weights", "weights"),
        ("flush_logs_every_n_steps", 10, 10),
        ("progress_bar_refresh_rate", 5, 5),
    ],
)
def test_what_has_no_argument_today_is_kept(name: str, value: Any, expected: Any) -> None:
    assert getattr(kept(**{name: value}), name) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("auto_scale_batch_size", "random"),
        ("track_grad_norm", "big"),
        ("track_grad_norm", 0),
        ("multiple_trainloader_mode", "longest"),
    ],
)
def test_unknown_value_is_an_error(name: str, value: Any) -> None:
    with pytest.raises(MisconfigurationException, match=f"{name}={value!r}"):
        kept(**{name: value})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"reload_dataloaders_every_epoch": True}, {"reload_dataloaders_every_n_epochs": 1}),
        ({"reload_dataloaders_every_epoch": False}, {}),
        ({"replace_sampler_ddp": False}, {"use_distributed_sampler": False}),
        ({"default_save_path": "runs"}, {"default_root_dir": "runs"}),
        ({"max_steps": None}, {"max_steps": -1}),
        ({"profiler": True}, {"profiler": "simple"}),
        ({"profiler": False}, {"profiler": None}),
        ({"process_position": 2}, {}),
        ({"move_metrics_to_cpu": True}, {}),
        ({"log_gpu_memory": None}, {}),
        ({"stochastic_weight_avg": False}, {}),
    ],
)
def test_other_arguments_become_todays(given: dict[str, Any], expected: dict[str, Any]) -> None:
    assert today(**given) == expected


def test_accumulation_by_epoch_becomes_a_scheduler() -> None:
    given, settings = translate_legacy({"accumulate_grad_batches": {4: 2}})
    assert given == {"accumulate_grad_batches": 1}
    (scheduler,) = settings.callbacks
    assert isinstance(scheduler, GradientAccumulationScheduler)
    assert scheduler.get_accumulate_grad_batches(4) == 2


def test_weight_averaging_needs_a_learning_rate() -> None:
    with pytest.raises(MisconfigurationException, match="swa_lrs"):
        today(stochastic_weight_avg=True)


@pytest.mark.parametrize(
    ("name", "named"), [("val_percent_check", "limit_val_batches=0.5"), ("max_nb_epochs", "max_epochs=0.5")]
)
def test_names_older_than_1_0_are_errors_that_name_todays(name: str, named: str) -> None:
    with pytest.raises(UnknownArgumentError, match=f"Use {named}"):
        today(**{name: 0.5})


@pytest.mark.parametrize("name", sorted(_RETIRED))
def test_each_name_older_than_1_0_is_an_error_that_names_an_argument_of_today(name: str) -> None:
    with pytest.raises(UnknownArgumentError, match="it was renamed") as error:
        today(**{name: 1})
    named = str(error.value).partition("Use ")[2].partition("=")[0]
    assert named == _RETIRED[name]
    assert named in {*ARGUMENT_NAMES, *LEGACY_NAMES}


def test_full_call_with_the_defaults_of_1_x_is_accepted() -> None:
    given = {
        "accelerator": None,
        "accumulate_grad_batches": 1,
        "amp_backend": "native",
        "amp_level": "O2",
        "auto_lr_find": False,
        "auto_scale_batch_size": False,
        "auto_select_gpus": False,
        "automatic_optimization": None,
        "benchmark": False,
        "check_val_every_n_epoch": 1,
        "checkpoint_callback": True,
        "callbacks": None,
        "default_root_dir": None,
        "deterministic": False,
        "distributed_backend": None,
        "fast_dev_run": False,
        "flush_logs_every_n_steps": 100,
        "gpus": None,
        "gradient_clip_val": 0,
        "limit_train_batches": 1.0,
        "log_gpu_memory": None,
        "log_every_n_steps": 50,
        "logger": True,
        "max_epochs": 1000,
        "max_steps": None,
        "min_epochs": 1,
        "min_steps": None,
        "move_metrics_to_cpu": False,
        "multiple_trainloader_mode": "max_size_cycle",
        "num_nodes": 1,
        "num_processes": 1,
        "num_sanity_val_steps": 2,
        "overfit_batches": 0.0,
        "plugins": None,
        "precision": 32,
        "prepare_data_per_node": True,
        "process_position": 0,
        "profiler": None,
        "progress_bar_refresh_rate": 1,
        "reload_dataloaders_every_epoch": False,
        "replace_sampler_ddp": True,
        "resume_from_checkpoint": None,
        "stochastic_weight_avg": False,
        "sync_batchnorm": False,
        "terminate_on_nan": False,
        "tpu_cores": None,
        "track_grad_norm": -1,
        "truncated_bptt_steps": None,
        "val_check_interval": 1.0,
        "weights_save_path": None,
        "weights_summary": "top",
    }
    translated, settings = translate_legacy(given)
    checked = check_arguments(build_arguments(translated))
    assert (checked.accelerator, checked.devices, checked.max_epochs) == ("cpu", 1, 1000)
    assert settings.callbacks == []


def test_every_older_name_is_suggested_when_misspelt() -> None:
    with pytest.raises(UnknownArgumentError, match="Did you mean 'truncated_bptt_steps'"):
        build_arguments({"truncated_bptt_step": 1}, LEGACY_NAMES)
