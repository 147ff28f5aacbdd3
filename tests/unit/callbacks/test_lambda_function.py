from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from fulgur.callbacks import LambdaCallback
from fulgur.errors import UnknownArgumentError
from fulgur.hooks import Callback, Hooks, collect


def test_only_the_hooks_given_are_collected() -> None:
    callback = LambdaCallback(on_train_start=lambda *_: None, on_train_end=None)
    hooks = collect([callback], object(), None, object)
    assert [field.name for field in fields(Hooks) if getattr(hooks, field.name)] == ["on_train_start"]


def test_function_gets_trainer_module_and_the_hooks_arguments() -> None:
    seen: list[tuple[Any, ...]] = []
    callback = LambdaCallback(on_train_batch_start=lambda *args: seen.append(args))
    module = object()
    hooks = collect([callback], module, "trainer", object)
    hooks.on_train_batch_start[0]("batch", 3)
    assert seen == [("trainer", module, "batch", 3)]


@pytest.mark.parametrize("name", [name for name in vars(Callback) if name.startswith("on_")] + ["setup", "teardown"])
def test_every_hook_of_a_callback_is_accepted(name: str) -> None:
    assert getattr(LambdaCallback(**{name: print}), name) is print


def test_epoch_hook_of_1x_is_called() -> None:
    seen: list[Any] = []
    callback = LambdaCallback(on_epoch_end=lambda trainer, module: seen.append(trainer))
    for hook in collect([callback], object(), "trainer", object).on_train_epoch_end:
        hook()
    assert seen == ["trainer"]


def test_misspelt_hook_names_the_nearest() -> None:
    with pytest.raises(TypeError, match=r"'on_train_strat'.*Did you mean 'on_train_start'"):
        LambdaCallback(on_train_strat=print)


@pytest.mark.parametrize("name", ["state_dict", "load_state_dict", "state_key"])
def test_methods_that_are_no_hooks_are_refused(name: str) -> None:
    with pytest.raises(UnknownArgumentError, match=name):
        LambdaCallback(**{name: print})


def test_value_that_cannot_be_called_is_refused() -> None:
    with pytest.raises(TypeError, match="on_train_end=3"):
        LambdaCallback(on_train_end=3)  # type: ignore[arg-type]
