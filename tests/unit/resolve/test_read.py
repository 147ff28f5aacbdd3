"""From a call of the Trainer to settings."""

from __future__ import annotations

import pytest

from fulgur.errors import UnknownArgumentError
from fulgur.resolve import read_arguments


def test_positions_names_environment_and_1_x_come_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_TRAINER_MAX_EPOCHS", "7")
    monkeypatch.setenv("PL_TRAINER_RESUME_FROM_CHECKPOINT", "a.ckpt")
    settings, legacy = read_arguments(("cpu",), {"checkpoint_callback": False, "log_every_n_steps": 3})
    assert (settings.accelerator, settings.max_epochs, settings.log_every_n_steps) == ("cpu", 7, 3)
    assert settings.enable_checkpointing is False
    assert legacy.resume_from_checkpoint == "a.ckpt"


def test_misspelt_1_x_argument_is_told_the_nearest() -> None:
    with pytest.raises(UnknownArgumentError, match="Did you mean 'checkpoint_callback'"):
        read_arguments((), {"checkpoint_callbck": True})
