from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from fulgur.callbacks import Timer, timer
from fulgur.callbacks.timer import parse_duration
from fulgur.errors import MisconfigurationException


class Clock:
    """Stands in for the module `time` in timer.py."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timer, "time", clock)
    return clock


def make_trainer() -> Any:
    return SimpleNamespace(should_stop=False, sanity_checking=False)


def start(callback: Timer, trainer: Any) -> None:
    callback.on_fit_start(trainer, None)  # type: ignore[arg-type]
    callback.on_train_start(trainer, None)  # type: ignore[arg-type]


def end_batch(callback: Timer, trainer: Any) -> bool:
    callback.on_train_batch_end(trainer, None, None, None, 0)  # type: ignore[arg-type]
    return bool(trainer.should_stop)


def end_epoch(callback: Timer, trainer: Any) -> bool:
    callback.on_train_epoch_end(trainer, None)  # type: ignore[arg-type]
    return bool(trainer.should_stop)


@pytest.mark.parametrize(
    "value",
    [
        "01:02:03:04",
        timedelta(days=1, hours=2, minutes=3, seconds=4),
        {"days": 1, "hours": 2, "minutes": 3, "seconds": 4},
    ],
)
def test_duration_is_read_from_every_form(value: Any) -> None:
    assert parse_duration(value) == timedelta(seconds=93784)


def test_days_may_have_any_number_of_digits() -> None:
    assert parse_duration("123:00:00:00") == timedelta(days=123)


def test_no_duration_is_none() -> None:
    assert parse_duration(None) is None


@pytest.mark.parametrize("text", ["", "1:00", "00:00:00", "00:1:00:00", "a:00:00:00", "00:00:00:00:00"])
def test_duration_string_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(MisconfigurationException, match=r"max_time='.*DD:HH:MM:SS"):
        parse_duration(text, "max_time")


def test_unknown_unit_names_the_nearest() -> None:
    with pytest.raises(MisconfigurationException, match="Did you mean 'hours'"):
        parse_duration({"hour": 1})


def test_duration_of_another_type_is_refused() -> None:
    with pytest.raises(TypeError, match="duration=60 is of type int"):
        parse_duration(60)


def test_unknown_interval_is_refused() -> None:
    with pytest.raises(MisconfigurationException, match="'batch'"):
        Timer(interval="batch")


def test_stops_after_the_batch_in_which_time_is_over(clock: Clock) -> None:
    callback, trainer = Timer("00:00:00:10"), make_trainer()
    start(callback, trainer)
    clock.now += 9.9
    assert not end_batch(callback, trainer)
    clock.now += 0.1
    assert end_batch(callback, trainer)


def test_epoch_interval_waits_for_the_end_of_the_epoch(clock: Clock) -> None:
    callback, trainer = Timer("00:00:00:10", interval="epoch"), make_trainer()
    start(callback, trainer)
    clock.now += 20
    assert not end_batch(callback, trainer)
    assert end_epoch(callback, trainer)


def test_without_duration_nothing_stops(clock: Clock) -> None:
    callback, trainer = Timer(), make_trainer()
    start(callback, trainer)
    clock.now += 1e9
    assert not end_batch(callback, trainer)
    assert callback.time_remaining() is None


def test_time_before_the_resume_counts(clock: Clock) -> None:
    callback, trainer = Timer("00:00:00:10"), make_trainer()
    callback.load_state_dict({"time_elapsed": {"train": 7.0}})
    start(callback, trainer)
    clock.now += 3
    assert callback.time_elapsed() == 10.0
    assert end_batch(callback, trainer)


def test_fit_resumed_after_its_time_stops_at_the_start(clock: Clock) -> None:
    callback, trainer = Timer("00:00:00:10"), make_trainer()
    callback.load_state_dict({"time_elapsed": {"train": 11.0}})
    callback.on_fit_start(trainer, None)  # type: ignore[arg-type]
    assert trainer.should_stop


def test_second_fit_has_its_own_time(clock: Clock) -> None:
    callback, trainer = Timer("00:00:00:10"), make_trainer()
    start(callback, trainer)
    clock.now += 9
    callback.on_train_end(trainer, None)  # type: ignore[arg-type]
    clock.now += 100
    start(callback, trainer)
    clock.now += 5
    assert not end_batch(callback, trainer)
    assert callback.time_elapsed() == 5.0


def test_elapsed_time_stands_still_after_training(clock: Clock) -> None:
    callback, trainer = Timer("00:00:01:00"), make_trainer()
    start(callback, trainer)
    clock.now += 4
    callback.on_train_end(trainer, None)  # type: ignore[arg-type]
    clock.now += 100
    assert callback.time_elapsed("train") == 4.0
    assert callback.time_remaining("train") == 56.0
    assert (callback.start_time(), callback.end_time()) == (100.0, 104.0)


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_each_stage_is_measured(stage: str, clock: Clock) -> None:
    callback, trainer = Timer(), make_trainer()
    hook = {"validate": "validation"}.get(stage, stage)
    getattr(callback, f"on_{hook}_start")(trainer, None)
    clock.now += 2
    getattr(callback, f"on_{hook}_end")(trainer, None)
    clock.now += 2
    assert callback.time_elapsed(stage) == 2.0
    assert callback.time_elapsed("train") == 0.0


def test_unknown_stage_is_refused() -> None:
    with pytest.raises(ValueError, match="'training'"):
        Timer().time_elapsed("training")


def test_state_holds_seconds_by_stage(clock: Clock) -> None:
    callback = Timer()
    start(callback, make_trainer())
    clock.now += 3
    assert callback.state_dict() == {"time_elapsed": {"train": 3.0, "validate": 0.0, "test": 0.0, "predict": 0.0}}


def test_says_once_that_time_is_over(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    callback, trainer = Timer("00:00:00:10"), make_trainer()
    start(callback, trainer)
    clock.now += 20
    with caplog.at_level("INFO", logger="fulgur"):
        end_batch(callback, trainer)
        end_batch(callback, trainer)
    assert [record.getMessage() for record in caplog.records] == ["Time limit of 0:00:10 reached. Stopping."]
