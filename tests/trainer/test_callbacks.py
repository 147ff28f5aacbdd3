"""Callbacks of the module, and callbacks that come and go while a run lasts."""

from __future__ import annotations

from typing import Any

import pytest
from tests.trainer.conftest import Bare, Letters, Net, numbers, quiet

from fulgur import Callback
from fulgur.callbacks import EarlyStopping, ModelCheckpoint
from fulgur.errors import MisconfigurationException


class Brings(Net):
    """Brings the callbacks it is made with."""

    def __init__(self, *callbacks: Any) -> None:
        super().__init__()
        self.brought = callbacks[0] if len(callbacks) == 1 else list(callbacks)

    def configure_callbacks(self) -> Any:
        return self.brought


def test_callbacks_of_the_module_are_called() -> None:
    recorder = Letters()
    quiet(max_epochs=1).fit(Brings(recorder), numbers(2))
    assert recorder.text == "<ttE>"


def test_callback_of_the_module_takes_the_place_of_those_of_its_class() -> None:
    own, of_trainer, other = EarlyStopping("val"), EarlyStopping("val", patience=9), Letters()
    trainer = quiet(max_epochs=1, callbacks=[of_trainer, other])
    trainer.fit(Brings(own), numbers(1), numbers(1))
    assert trainer.callbacks == [other, own]


def test_callbacks_that_save_stay_last(tmp_path: Any) -> None:
    own, saver = Letters(), ModelCheckpoint(tmp_path)
    trainer = quiet(max_epochs=1, callbacks=[saver], enable_checkpointing=None)
    trainer.fit(Brings(own), numbers(1))
    assert trainer.callbacks == [own, saver]


def test_callbacks_of_the_module_are_merged_at_every_entry_point_once() -> None:
    own, other = Letters(), EarlyStopping("val")
    model, trainer = Brings(own, other), quiet(max_epochs=1)
    trainer.fit(model, numbers(1), numbers(1))
    trainer.validate(model, numbers(1), verbose=False)
    trainer.predict(model, numbers(1))
    assert trainer.callbacks == [own, other]


def test_module_that_brings_something_else_is_an_error() -> None:
    with pytest.raises(MisconfigurationException, match="not a Callback"):
        quiet(max_epochs=1).fit(Brings("callback", "bar"), numbers(1))


# ------------------------------------------------------------------------------------------------------ within a run


class At(Callback):
    """Calls `do` with the Trainer in one hook, once."""

    def __init__(self, hook: str, do: Any) -> None:
        self.done = False
        setattr(self, hook, lambda trainer, *args, **kwargs: self.call(trainer, do))

    def call(self, trainer: Any, do: Any) -> None:
        if not self.done:
            self.done = True
            do(trainer)


def test_callback_added_in_an_epoch_is_called_as_soon_as_its_batches_are_over() -> None:
    added = Letters()
    adder = At("on_train_batch_end", lambda trainer: trainer.callbacks.append(added))
    quiet(max_epochs=3, callbacks=[adder]).fit(Net(), numbers(2), numbers(1))
    assert added.text == "VEttVEttVE>"


def test_callback_removed_in_an_epoch_is_called_for_its_batches_alone() -> None:
    removed = Letters()
    remover = At("on_train_batch_end", lambda trainer: trainer.callbacks.remove(removed))
    quiet(max_epochs=3, callbacks=[remover, removed]).fit(Net(), numbers(2), numbers(1))
    assert removed.text == "<tt"


def test_callback_added_in_setup_is_called_from_the_start() -> None:
    added = Letters()
    adder = At("setup", lambda trainer: trainer.callbacks.append(added))
    quiet(max_epochs=1, callbacks=[adder]).fit(Net(), numbers(2), numbers(1))
    assert added.text == "<ttVE>"


def test_callback_that_came_later_may_log_and_sees_outputs() -> None:
    class Logs(Callback):
        def __init__(self) -> None:
            self.outputs: list[Any] = []

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.outputs.append(sorted(outputs))
            self.log("late", 3.0)  # type: ignore[attr-defined]

    added = Logs()
    adder = At("on_train_epoch_end", lambda trainer: trainer.callbacks.append(added))
    trainer = quiet(max_epochs=2, callbacks=[adder])
    trainer.fit(Bare(), numbers(1))
    assert (added.outputs, trainer.callback_metrics["late"].item()) == ([["loss"]], 3.0)


def test_callback_that_came_later_listens_to_gradients_being_cleared() -> None:
    class Listens(Callback):
        n_calls = 0

        def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            self.n_calls += 1

    added = Listens()
    adder = At("on_train_epoch_end", lambda trainer: trainer.callbacks.append(added))
    quiet(max_epochs=3, callbacks=[adder]).fit(Bare(), numbers(2))
    assert added.n_calls == 4


def test_hook_put_on_a_callback_itself_is_called() -> None:
    called: list[str] = []
    callback = Callback()
    callback.on_train_end = lambda *args: called.append("end")  # type: ignore[method-assign]
    quiet(max_epochs=1, callbacks=[callback]).fit(Bare(), numbers(1))
    assert called == ["end"]
