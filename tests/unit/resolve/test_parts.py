"""From arguments to precision, loggers and profiler."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

import fulgur.loggers.tensorboard
from fulgur.errors import MisconfigurationException
from fulgur.loggers import CSVLogger, DummyLogger, TensorBoardLogger
from fulgur.precision import DoublePrecision, MixedPrecision
from fulgur.profilers import SimpleProfiler
from fulgur.resolve import (
    apply_determinism,
    resolve_loggers,
    resolve_precision,
    resolve_profiler,
)


@pytest.fixture(autouse=True)
def _no_batch_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_NTASKS", raising=False)


def test_precision_comes_from_its_argument() -> None:
    assert isinstance(resolve_precision("64", None, "cpu"), DoublePrecision)


def test_precision_may_be_a_plugin() -> None:
    plugin = MixedPrecision("bf16-mixed", "cpu")
    assert resolve_precision(None, plugin, "cpu") is plugin
    assert resolve_precision(None, [plugin], "cpu") is plugin


def test_precision_and_plugin_together_are_an_error() -> None:
    with pytest.raises(ValueError, match="precision=32 and the plugin DoublePrecision both set the precision"):
        resolve_precision(32, DoublePrecision(), "cpu")


def test_two_precision_plugins_are_an_error() -> None:
    with pytest.raises(MisconfigurationException, match="plugins holds 2 precisions"):
        resolve_precision(None, [DoublePrecision(), DoublePrecision()], "cpu")


def test_unknown_plugin_is_an_error() -> None:
    with pytest.raises(MisconfigurationException, match="plugins holds 'ddp_sharded'"):
        resolve_precision(None, "ddp_sharded", "cpu")


@pytest.mark.parametrize("logger", [None, True])
def test_default_logger_is_tensorboard_where_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logger: Any
) -> None:
    monkeypatch.setattr(fulgur.loggers.tensorboard, "is_tensorboard_available", lambda: True)
    (found,) = resolve_loggers(logger, str(tmp_path), False)
    assert isinstance(found, TensorBoardLogger)
    assert found.save_dir == str(tmp_path)


def test_default_logger_is_csv_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fulgur.loggers.tensorboard, "is_tensorboard_available", lambda: False)
    (found,) = resolve_loggers(True, str(tmp_path), False, flush_every_n_steps=7)
    assert isinstance(found, CSVLogger)


def test_default_version_is_the_id_of_the_batch_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_JOB_NAME", "train")
    assert resolve_loggers(True, str(tmp_path), False)[0].version == 4711


def test_loggers_keep_their_order(tmp_path: Path) -> None:
    first, second = CSVLogger(tmp_path), CSVLogger(tmp_path)
    assert resolve_loggers(first, "", False) == [first]
    assert resolve_loggers((first, second), "", False) == [first, second]


@pytest.mark.parametrize("logger", [False, []])
@pytest.mark.parametrize("fast_dev_run", [True, False])
def test_no_logger_stays_none(logger: Any, fast_dev_run: bool) -> None:
    assert resolve_loggers(logger, "", fast_dev_run) == []


def test_fast_dev_run_puts_a_dummy_in_place_of_loggers(tmp_path: Path) -> None:
    for logger in (True, [CSVLogger(tmp_path), CSVLogger(tmp_path)]):
        assert [type(item) for item in resolve_loggers(logger, "", 2)] == [DummyLogger]


@pytest.mark.parametrize("logger", ["csv", 3, [3], CSVLogger, [CSVLogger]])
def test_thing_that_is_no_logger_is_an_error(logger: Any) -> None:
    with pytest.raises(MisconfigurationException, match="is not a Logger"):
        resolve_loggers(logger, "", False)


def test_profiler_is_found_by_name_or_taken_as_it_is() -> None:
    profiler = SimpleProfiler()
    assert resolve_profiler(None) is None
    assert resolve_profiler("") is None
    assert resolve_profiler(profiler) is profiler
    assert isinstance(resolve_profiler("SIMPLE"), SimpleProfiler)


@pytest.mark.parametrize("profiler", ["quick", 3])
def test_unknown_profiler_is_an_error(profiler: Any) -> None:
    with pytest.raises(MisconfigurationException, match="profiler="):
        resolve_profiler(profiler)


@pytest.fixture
def _torch_switches_put_back(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    before = torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = before


@pytest.mark.usefixtures("_torch_switches_put_back")
def test_deterministic_switches_algorithms_and_benchmark() -> None:
    torch.backends.cudnn.benchmark = True
    apply_determinism(True, None)
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert not torch.backends.cudnn.benchmark


@pytest.mark.usefixtures("_torch_switches_put_back")
def test_deterministic_may_only_warn() -> None:
    apply_determinism("warn", True)
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert torch.backends.cudnn.benchmark


@pytest.mark.usefixtures("_torch_switches_put_back")
def test_nothing_given_leaves_the_switches_alone() -> None:
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = True
    apply_determinism(None, None)
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.benchmark
