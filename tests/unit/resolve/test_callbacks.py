"""Which callbacks a run has, and their order."""

from __future__ import annotations

import importlib.metadata
import os
from types import SimpleNamespace
from typing import Any

import pytest

from fulgur.callbacks import EarlyStopping, ModelCheckpoint, ModelSummary, ProgressBar, RichProgressBar, Timer
from fulgur.errors import MisconfigurationException
from fulgur.hooks import Callback
from fulgur.resolve import (
    Arguments,
    LegacySettings,
    check_arguments,
    merge_module_callbacks,
    order_callbacks,
    resolve_callbacks,
)


class Plain(Callback):
    pass


class Tuning(Callback):
    is_tuner = True


class Stateful(Callback):
    def state_dict(self) -> dict[str, Any]:
        return {"a": 1}


def resolve(legacy: LegacySettings | None = None, **given: Any) -> list[Callback]:
    return resolve_callbacks(check_arguments(Arguments(**given)), legacy or LegacySettings())


def kinds(callbacks: list[Callback]) -> list[type]:
    return [type(callback) for callback in callbacks]


def test_defaults_are_bar_summary_and_checkpoint() -> None:
    assert kinds(resolve()) == [RichProgressBar, ModelSummary, ModelCheckpoint]


def test_each_default_can_be_switched_off() -> None:
    assert resolve(enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False) == []


def test_timer_comes_before_the_bar() -> None:
    assert kinds(resolve(max_time="00:01:00:00"))[:2] == [Timer, RichProgressBar]


def test_own_timer_replaces_max_time() -> None:
    timer = Timer()
    assert [c for c in resolve(max_time="00:01:00:00", callbacks=[timer]) if isinstance(c, Timer)] == [timer]


def test_own_callbacks_replace_the_defaults() -> None:
    own: list[Callback] = [ModelCheckpoint(), ProgressBar(), ModelSummary()]
    assert resolve(callbacks=own) == [own[1], own[2], own[0]]


def test_users_list_is_left_alone() -> None:
    own: list[Callback] = [Plain()]
    resolve(callbacks=own)
    assert len(own) == 1


def test_callbacks_of_1_x_arguments_come_after_the_users() -> None:
    user, extra = Plain(), EarlyStopping("loss")
    assert resolve(LegacySettings(callbacks=[extra]), callbacks=[user])[:2] == [user, extra]


def test_weights_save_path_is_where_checkpoints_without_a_place_go() -> None:
    placed, unplaced = ModelCheckpoint("there", monitor="a"), ModelCheckpoint()
    resolve(LegacySettings(weights_save_path="here"), callbacks=[placed, unplaced])
    assert placed.dirpath == os.path.realpath("there")
    assert unplaced.dirpath == os.path.realpath("here")


def test_tuning_comes_first_and_checkpoints_last() -> None:
    checkpoint, plain, tuning, other = ModelCheckpoint(), Plain(), Tuning(), Plain()
    assert order_callbacks([checkpoint, plain, tuning, other]) == [tuning, plain, other, checkpoint]


def test_two_states_under_one_key_are_an_error() -> None:
    with pytest.raises(RuntimeError, match="Two callbacks of class Stateful have the state_key 'Stateful'"):
        resolve(callbacks=[Stateful(), Stateful()])


def test_callbacks_without_state_may_share_a_key() -> None:
    assert kinds(resolve(callbacks=[Plain(), Plain()]))[:2] == [Plain, Plain]


@pytest.mark.parametrize("group", ["lightning.pytorch.callbacks_factory", "fulgur.callbacks_factory"])
@pytest.mark.parametrize("several", [True, False])
def test_installed_packages_add_callbacks(monkeypatch: pytest.MonkeyPatch, group: str, several: bool) -> None:
    external = Plain()

    def factory() -> Any:
        return [external] if several else external

    def entry_points(*, group: str) -> list[Any]:
        return [SimpleNamespace(load=lambda: factory)] if group == wanted else []

    wanted = group
    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    assert external in resolve()


def test_modules_callback_joins_the_trainers() -> None:
    own, added = Plain(), EarlyStopping("loss")
    assert merge_module_callbacks([own], added) == [own, added]
    assert merge_module_callbacks([own], None) == [own]


def test_modules_callback_replaces_all_of_its_class() -> None:
    other, new = Tuning(), Plain()
    assert merge_module_callbacks([Plain(), other, Plain()], [new]) == [other, new]


def test_modules_callback_replaces_the_class_it_is_derived_from() -> None:
    class Derived(ModelCheckpoint):
        pass

    new = Derived()
    assert merge_module_callbacks([ModelCheckpoint()], [new]) == [new]


def test_modules_callback_leaves_classes_derived_from_it() -> None:
    class Derived(Plain):
        pass

    derived, new = Derived(), Plain()
    assert merge_module_callbacks([derived], [new]) == [derived, new]


def test_merging_again_does_not_duplicate() -> None:
    def make() -> list[Callback]:
        return [Plain(), ModelCheckpoint()]

    once = merge_module_callbacks([ModelCheckpoint()], make())
    assert kinds(merge_module_callbacks(once, make())) == kinds(once) == [Plain, ModelCheckpoint]


def test_module_must_return_callbacks() -> None:
    with pytest.raises(MisconfigurationException, match="'early'"):
        merge_module_callbacks([], ["early"])  # type: ignore[list-item]
