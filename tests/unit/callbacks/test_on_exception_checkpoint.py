"""OnExceptionCheckpoint."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fulgur.callbacks.on_exception_checkpoint import OnExceptionCheckpoint
from fulgur.checkpoint.load import load_checkpoint
from fulgur.checkpoint.write import remove_checkpoint, write_checkpoint
from fulgur.errors import CheckpointError


def build_trainer(fn: str = "fit") -> Any:
    return SimpleNamespace(
        state=SimpleNamespace(fn=fn),
        fast_dev_run=False,
        strategy=SimpleNamespace(remove_checkpoint=remove_checkpoint),
        save_checkpoint=lambda path: write_checkpoint({"epoch": 1}, path),
    )


def break_run(callback: OnExceptionCheckpoint, trainer: Any) -> None:
    callback.setup(trainer, None, stage="fit")  # type: ignore[arg-type]
    callback.on_exception(trainer, None, RuntimeError("broken"))  # type: ignore[arg-type]
    callback.teardown(trainer, None, stage="fit")  # type: ignore[arg-type]


def test_exception_saves_and_teardown_keeps_the_file(tmp_path: Path) -> None:
    callback = OnExceptionCheckpoint("mine")
    break_run(callback, build_trainer())
    assert callback.ckpt_path == str(tmp_path / "mine" / "on_exception.ckpt")
    assert load_checkpoint(callback.ckpt_path) == {"epoch": 1}


def test_run_that_goes_well_removes_the_file() -> None:
    callback, trainer = OnExceptionCheckpoint("mine", "oops"), build_trainer()
    break_run(callback, trainer)
    callback.setup(trainer, None, stage="fit")  # type: ignore[arg-type]
    callback.teardown(trainer, None, stage="fit")  # type: ignore[arg-type]
    assert os.listdir("mine") == []


def test_test_run_leaves_the_file_alone() -> None:
    callback = OnExceptionCheckpoint("mine")
    break_run(callback, build_trainer())
    callback.setup(build_trainer("test"), None, stage="test")  # type: ignore[arg-type]
    callback.teardown(build_trainer("test"), None, stage="test")  # type: ignore[arg-type]
    assert os.listdir("mine") == ["on_exception.ckpt"]


def test_save_that_fails_does_not_hide_the_exception() -> None:
    trainer = build_trainer()

    def fail(path: str) -> None:
        raise CheckpointError("disk full")

    trainer.save_checkpoint = fail
    with pytest.warns(UserWarning, match="on RuntimeError: disk full"):
        break_run(OnExceptionCheckpoint("mine"), trainer)


def test_empty_filename_is_an_error() -> None:
    with pytest.raises(ValueError, match="filename=''"):
        OnExceptionCheckpoint("mine", "")
