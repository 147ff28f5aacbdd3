"""Trainer arguments that cannot be: each row with an error in the table of arguments."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tests.errors.conftest import QUIET

from fulgur import Trainer
from fulgur.callbacks import EarlyStopping, ModelCheckpoint, RichProgressBar
from fulgur.errors import MisconfigurationException, UnknownArgumentError

MC = MisconfigurationException
WITHOUT_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="about a machine without CUDA")


def refuse(error: type[BaseException], words: tuple[str, ...], **arguments: Any) -> None:
    given = {name: value for name, value in QUIET.items() if name not in arguments}
    with pytest.raises(error) as caught:
        Trainer(**given, **arguments)
    assert type(caught.value) is error
    for word in words:
        assert word in str(caught.value), f"{word!r} is not in: {caught.value}"


COUNT = "Use an int of at least 0 for a number of batches, or a float from 0.0 to 1.0 for a fraction"
NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("name", "value", "error", "words"),
    [
        ("accelerator", "CPU", ValueError, ("'CPU' is unknown", "Did you mean 'cpu'?")),
        ("accelerator", "hpu", ValueError, ("'hpu' is unknown", "'auto'", "'cpu'")),
        ("accelerator", None, ValueError, ("None is unknown",)),
        ("accelerator", "tpu", ModuleNotFoundError, ("torch_xla", "'cpu'")),
        ("strategy", "dpp", ValueError, ("'dpp' is unknown", "Did you mean 'ddp'?", "'auto'")),
        ("strategy", "dp", ValueError, ("'dp' is no longer there", "strategy='ddp'")),
        ("strategy", None, ValueError, ("None is unknown",)),
        ("devices", 0, MC, ("devices=0 leaves no device", "devices='auto'")),
        ("devices", "0", MC, ("devices='0' leaves no device",)),
        ("devices", [], MC, ("devices=[] leaves no device",)),
        ("devices", -1, TypeError, ("devices=-1", "number of processes", "devices=1")),
        ("devices", [0], TypeError, ("devices=[0]", "number of processes")),
        ("devices", 1.5, TypeError, ("devices=1.5",)),
        ("devices", None, TypeError, ("devices=None",)),
        ("num_nodes", 0, ValueError, ("num_nodes=0", "at least 1")),
        ("num_nodes", "2", ValueError, ("num_nodes='2'",)),
        ("precision", 17, ValueError, ("precision=17", "'bf16-mixed'")),
        ("precision", "32-mixed", ValueError, ("precision='32-mixed'", "Did you mean")),
        ("logger", "csv", MC, ("logger='csv' is not a Logger", "True or False")),
        ("logger", [3], MC, ("logger=3 is not a Logger",)),
        ("callbacks", "early", MC, ("callbacks='early'", "Use a list")),
        ("callbacks", ["early"], MC, ("holds 'early'", "not a Callback")),
        ("callbacks", EarlyStopping, MC, ("EarlyStopping", "Did you forget to call it?")),
        ("callbacks", [EarlyStopping], MC, ("EarlyStopping", "Did you forget to call it?")),
        ("fast_dev_run", -1, MC, ("fast_dev_run=-1", "True for 1")),
        ("fast_dev_run", 1.5, MC, ("fast_dev_run=1.5",)),
        ("max_epochs", -2, MC, ("max_epochs=-2", "-1 for no limit")),
        ("max_epochs", 1.5, MC, ("max_epochs=1.5", "whole number")),
        ("min_epochs", -1, MC, ("min_epochs=-1",)),
        ("max_steps", -2, MC, ("max_steps=-2", "-1 for no limit")),
        ("min_steps", -1, MC, ("min_steps=-1",)),
        ("max_time", "1 hour", MC, ("max_time='1 hour'", "'DD:HH:MM:SS'")),
        ("max_time", 5, TypeError, ("max_time=5 is of type int", "{'hours': 2}")),
        ("max_time", {"hour": 1}, UnknownArgumentError, ("'hour'", "Did you mean 'hours'?")),
        *[
            (f"limit_{n}_batches", -1, MC, (f"limit_{n}_batches=-1", COUNT))
            for n in ("train", "val", "test", "predict")
        ],
        *[(f"limit_{n}_batches", NAN, MC, ("=nan is not finite", COUNT)) for n in ("train", "val", "test", "predict")],
        ("limit_train_batches", 1.5, MC, ("limit_train_batches=1.5 is out of range", COUNT)),
        ("limit_train_batches", INF, MC, ("limit_train_batches=inf is not finite", COUNT)),
        ("limit_train_batches", "all", MC, ("limit_train_batches='all'", COUNT)),
        ("overfit_batches", 1.5, MC, ("overfit_batches=1.5", COUNT)),
        ("overfit_batches", NAN, MC, ("overfit_batches=nan", COUNT)),
        ("val_check_interval", 1.5, MC, ("val_check_interval=1.5",)),
        ("val_check_interval", -1, MC, ("val_check_interval=-1",)),
        ("val_check_interval", 0, MC, ("val_check_interval=0", "limit_val_batches=0 to skip")),
        ("val_check_interval", "1h", MC, ("val_check_interval='1h'", "'DD:HH:MM:SS'")),
        ("val_check_interval", NAN, MC, ("val_check_interval=nan",)),
        ("check_val_every_n_epoch", 0, MC, ("check_val_every_n_epoch=0", "None to count batches")),
        ("check_val_every_n_epoch", 1.5, MC, ("check_val_every_n_epoch=1.5",)),
        ("num_sanity_val_steps", -2, MC, ("num_sanity_val_steps=-2", "-1 for all")),
        ("log_every_n_steps", -1, MC, ("log_every_n_steps=-1", "0 to log no steps")),
        ("accumulate_grad_batches", 0, MC, ("accumulate_grad_batches=0", "at least 1")),
        ("accumulate_grad_batches", 1.5, MC, ("accumulate_grad_batches=1.5",)),
        ("accumulate_grad_batches", {0: 0}, MC, ("0 batches for epoch 0", "at least 1")),
        ("gradient_clip_val", "1", TypeError, ("gradient_clip_val='1'", "None not to clip")),
        ("gradient_clip_val", NAN, MC, ("gradient_clip_val=nan",)),
        ("gradient_clip_algorithm", "l2", MC, ("gradient_clip_algorithm='l2'", "'norm' or 'value'")),
        ("deterministic", "yes", MC, ("deterministic='yes'", "True, False or 'warn'")),
        ("profiler", "fast", MC, ("profiler='fast'", "'simple'")),
        ("plugins", "amp", MC, ("'amp'", "Precision")),
        ("reload_dataloaders_every_n_epochs", -1, MC, ("reload_dataloaders_every_n_epochs=-1",)),
        ("enable_progress_bar", "no", MC, ("enable_progress_bar='no'", "neither True nor False")),
        ("default_root_dir", 3, TypeError, ("default_root_dir=3", "a str or a Path")),
    ],
)
def test_value_that_cannot_be(name: str, value: Any, error: type[BaseException], words: tuple[str, ...]) -> None:
    refuse(error, words, **{name: value})


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (
            {"check_val_every_n_epoch": None, "val_check_interval": 0.5},
            MC,
            ("val_check_interval=0.5", "check_val_every_n_epoch=None", "an int or a duration"),
        ),
        (
            {"enable_checkpointing": False, "callbacks": [ModelCheckpoint()]},
            MC,
            ("enable_checkpointing=False", "ModelCheckpoint", "Leave out one"),
        ),
        (
            {"enable_progress_bar": False, "callbacks": [RichProgressBar()]},
            MC,
            ("enable_progress_bar=False", "RichProgressBar", "Leave out one"),
        ),
        (
            {"callbacks": [RichProgressBar(), RichProgressBar()], "enable_progress_bar": True},
            MC,
            ("2 progress bars", "RichProgressBar, RichProgressBar", "Keep one"),
        ),
        (
            {"callbacks": [EarlyStopping("a"), EarlyStopping("a")]},
            RuntimeError,
            ("EarlyStopping", "state_key", "keep one"),
        ),
    ],
)
def test_combination_that_cannot_be(arguments: Any, error: type[BaseException], words: tuple[str, ...]) -> None:
    refuse(error, words, **arguments)


@pytest.mark.parametrize(
    "other",
    [
        {"enable_checkpointing": True},
        {"logger": True},
        {"enable_progress_bar": True},
        {"enable_model_summary": True},
        {"log_every_n_steps": 10},
        {"num_sanity_val_steps": 1},
        {"fast_dev_run": True},
        {"detect_anomaly": True},
        {"profiler": "simple"},
    ],
)
def test_barebones_and_what_it_switches_off(other: dict[str, Any]) -> None:
    (name,) = other
    with pytest.raises(ValueError, match=rf"barebones=True and {name}=.* contradict each other.*Leave out one"):
        Trainer(accelerator="cpu", barebones=True, **other)


@pytest.mark.parametrize(
    ("slip", "meant"),
    [
        ("max_epoch", "max_epochs"),
        ("acumulate_grad_batches", "accumulate_grad_batches"),
        ("callback", "callbacks"),
        ("gpu", "gpus"),
        ("limit_train_batch", "limit_train_batches"),
        ("enable_progressbar", "enable_progress_bar"),
    ],
)
def test_misspelt_argument_names_the_nearest(slip: str, meant: str) -> None:
    with pytest.raises(UnknownArgumentError, match=rf"Trainer has no argument '{slip}'. Did you mean '{meant}'\?"):
        Trainer(**{slip: 1})
    assert issubclass(UnknownArgumentError, TypeError)


def test_argument_near_to_none_tells_where_they_are_listed() -> None:
    with pytest.raises(UnknownArgumentError, match=r"no argument 'learning_rate'. help\(fulgur.Trainer\) lists"):
        Trainer(learning_rate=0.1)


@WITHOUT_CUDA
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"gpus": "0"}, ("gpus='0'", "CUDA", "accelerator='cpu'", "gpus=None")),
        ({"gpus": 1, "precision": 32}, ("gpus=1", "accelerator='cpu'")),
        ({"accelerator": "gpu"}, ("accelerator='gpu' needs a GPU", "accelerator='cpu'")),
        ({"accelerator": "cuda"}, ("accelerator='cuda' is not available", "accelerator='cpu'")),
        ({"precision": "16-mixed"}, ("precision='16-mixed' needs CUDA", "cpu", "'bf16-mixed'")),
        ({"precision": 16}, ("precision='16-mixed' needs CUDA", "'bf16-mixed'")),
    ],
)
def test_cuda_asked_for_without_cuda(arguments: Any, words: tuple[str, ...]) -> None:
    given = {name: value for name, value in QUIET.items() if name != "accelerator" or "precision" in arguments}
    given = {name: value for name, value in given.items() if "gpus" not in arguments or name != "accelerator"}
    with pytest.raises(MisconfigurationException) as caught:
        Trainer(**{**given, **arguments})
    assert all(word in str(caught.value) for word in words), str(caught.value)
