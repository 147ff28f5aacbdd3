"""How a Trainer is given its arguments, and how it lends its device and precision to a model being built."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.trainer.conftest import Bare, numbers, quiet

from fulgur import Trainer
from fulgur.errors import UnknownArgumentError


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda **values: [monkeypatch.setenv(f"PL_TRAINER_{k.upper()}", v) for k, v in values.items()]


def test_environment_gives_defaults(env: Any) -> None:
    env(max_epochs="3", limit_train_batches="0.5", accelerator="cpu", logger="False", devices="1")
    trainer = Trainer(enable_progress_bar=False)
    assert (trainer.max_epochs, trainer.limit_train_batches, trainer.loggers) == (3, 0.5, [])
    assert trainer.strategy.root_device == torch.device("cpu")


def test_argument_wins_over_the_environment(env: Any) -> None:
    env(max_epochs="3", max_steps="8")
    trainer = quiet(max_epochs=5)
    assert (trainer.max_epochs, trainer.max_steps) == (5, 8)


def test_empty_variable_counts_as_absent(env: Any) -> None:
    env(max_epochs="")
    assert quiet().max_epochs is None


def test_wrong_value_in_the_environment_is_an_error(env: Any) -> None:
    env(max_epochs="many")
    with pytest.raises(Exception, match="max_epochs='many'"):
        quiet()


def test_variable_of_no_argument_is_none_of_our_business(env: Any) -> None:
    env(max_epoch="3")
    assert quiet().max_epochs is None


def test_arguments_by_position_come_in_the_known_order() -> None:
    trainer = Trainer("cpu", "auto", 1, 1, "64-true", False)
    assert (trainer.precision, trainer.loggers) == ("64-true", [])


def test_argument_by_name_and_position_is_an_error() -> None:
    with pytest.raises(TypeError, match="accelerator='cpu' is given by name and by position"):
        Trainer("cpu", accelerator="cpu")


def test_misspelt_argument_names_the_nearest() -> None:
    with pytest.raises(UnknownArgumentError, match="Did you mean 'max_epochs'"):
        Trainer(max_epoch=3)


def test_constructor_leaves_the_users_list_of_callbacks_alone() -> None:
    callbacks: list[Any] = []
    Trainer(accelerator="cpu", logger=False, callbacks=callbacks)
    assert callbacks == []


def test_arguments_of_1x_train() -> None:
    trainer = Trainer(
        gpus=0,
        precision=32,
        max_epochs=1,
        logger=False,
        checkpoint_callback=False,
        progress_bar_refresh_rate=0,
        weights_summary=None,
    )
    trainer.fit(Bare(), numbers(2))
    assert (trainer.global_step, trainer.callbacks) == (2, [])


@pytest.mark.parametrize(("precision", "dtype"), [("32-true", torch.float32), ("64-true", torch.float64)])
def test_init_module_builds_in_the_precision_and_on_the_device(precision: str, dtype: torch.dtype) -> None:
    trainer = quiet(precision=precision)
    with trainer.init_module():
        model = Bare()
    assert model.layer.weight.dtype is dtype
    assert model.layer.weight.device == trainer.strategy.root_device
    assert torch.get_default_dtype() is torch.float32
    assert torch.empty(0).device.type == "cpu"


def test_module_built_in_init_module_trains() -> None:
    trainer = quiet(precision="64-true", max_epochs=1)
    with trainer.init_module(empty_init=False):
        model = Bare()
    trainer.fit(model, numbers(1))
    assert model.layer.weight.dtype is torch.float64
