"""Timer and ``max_time`` with a clock that the test turns."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from fulgur import Callback
from fulgur.callbacks import Timer, timer


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """`now` in seconds; a `Ticking` callback lets ten pass in every training batch."""
    now = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(timer, "time", SimpleNamespace(monotonic=lambda: now.now))
    return now


class Ticking(Callback):
    def __init__(self, clock: SimpleNamespace) -> None:
        self.clock = clock

    def on_train_batch_start(self, *args: Any) -> None:
        self.clock.now += 10.0

    def on_validation_batch_start(self, *args: Any) -> None:
        self.clock.now += 1.0


@pytest.mark.parametrize("max_time", ["00:00:00:35", timedelta(seconds=35), {"seconds": 35}])
def test_max_time_ends_the_fit_after_the_batch_that_passes_it(
    max_time: Any, clock: Any, tiny: Any, make_trainer: Any, loader: Any
) -> None:
    trainer = make_trainer(max_time=max_time, callbacks=Ticking(clock), max_epochs=None)
    trainer.fit(tiny(), loader(3))
    assert trainer.global_step == 4
    assert trainer.max_epochs == -1


def test_timer_of_epochs_waits_for_the_epochs_end(clock: Any, tiny: Any, make_trainer: Any, loader: Any) -> None:
    trainer = make_trainer(callbacks=[Ticking(clock), Timer(timedelta(seconds=35), interval="epoch")], max_epochs=100)
    trainer.fit(tiny(), loader(3))
    assert (trainer.global_step, trainer.current_epoch) == (6, 2)


def test_minimum_of_epochs_comes_first(clock: Any, tiny: Any, make_trainer: Any, loader: Any) -> None:
    trainer = make_trainer(callbacks=Ticking(clock), max_time={"seconds": 5}, max_epochs=10, min_epochs=3)
    trainer.fit(tiny(), loader(2))
    assert trainer.current_epoch == 3


def test_elapsed_time_of_each_stage(clock: Any, tiny: Any, make_trainer: Any, loader: Any) -> None:
    measured = Timer(timedelta(seconds=1000))
    trainer = make_trainer(callbacks=[Ticking(clock), measured], max_epochs=2)
    trainer.fit(tiny(), loader(3), loader(2))
    assert measured.time_elapsed() == 64.0
    assert measured.time_remaining() == 936.0
    assert measured.time_elapsed("validate") == 2.0
    assert measured.end_time() == measured.start_time() + 64.0
    assert measured.time_elapsed("test") == 0.0


def test_time_goes_on_where_the_checkpoint_was_taken(
    clock: Any, tiny: Any, make_trainer: Any, loader: Any, tmp_path: Any
) -> None:
    first = make_trainer(callbacks=[Ticking(clock), Timer(timedelta(seconds=100))], max_epochs=2)
    first.fit(tiny(), loader(3))
    clock.now += 5000.0
    measured = Timer(timedelta(seconds=100))
    second = make_trainer(callbacks=[Ticking(clock), measured], max_epochs=50)
    second.fit(tiny(), loader(3), ckpt_path=tmp_path / "checkpoints" / "epoch=1-step=6.ckpt")
    assert second.global_step == 10
    assert measured.time_elapsed() == 100.0


def test_time_that_was_over_already_trains_nothing(
    clock: Any, tiny: Any, make_trainer: Any, loader: Any, tmp_path: Any
) -> None:
    first = make_trainer(callbacks=[Ticking(clock), Timer(timedelta(seconds=30))], max_epochs=1)
    first.fit(tiny(), loader(3))
    path = tmp_path / "checkpoints" / "epoch=0-step=3.ckpt"
    second = make_trainer(callbacks=[Ticking(clock), Timer(timedelta(seconds=30))], max_epochs=50)
    second.fit(tiny(), loader(3), ckpt_path=path)
    assert second.global_step == 3
