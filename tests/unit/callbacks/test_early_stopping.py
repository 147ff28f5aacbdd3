from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fulgur.callbacks import EarlyStopping, EarlyStoppingReason
from fulgur.errors import MisconfigurationException
from fulgur.hooks import collect


class FakeStrategy:
    """A world in which the other ranks decide `others`."""

    def __init__(self, others: bool = False) -> None:
        self.others = others
        self.asked: list[bool] = []

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        self.asked.append(decision)
        return (decision and self.others) if all else (decision or self.others)


def make_trainer(**changes: Any) -> Any:
    values: dict[str, Any] = {
        "callback_metrics": {},
        "current_epoch": 0,
        "should_stop": False,
        "sanity_checking": False,
        "fast_dev_run": False,
        "is_global_zero": True,
        "global_rank": 0,
        "val_check_interval": 1.0,
        "check_val_every_n_epoch": 1,
        "state": SimpleNamespace(fn="fit"),
        "strategy": FakeStrategy(),
        "fit_loop": SimpleNamespace(is_epoch_cut=False, validates_only_to_stop=False),
    }
    return SimpleNamespace(**(values | changes))


def run_epochs(callback: EarlyStopping, values: list[float], trainer: Any = None) -> Any:
    """Feed one value an epoch until the callback asks for the end."""
    trainer = trainer or make_trainer()
    callback.setup(trainer, None, "fit")  # type: ignore[arg-type]
    for epoch, value in enumerate(values):
        trainer.current_epoch = epoch
        trainer.callback_metrics["loss"] = torch.tensor(value)
        callback.on_validation_end(trainer, None)  # type: ignore[arg-type]
        callback.on_train_epoch_end(trainer, None)  # type: ignore[arg-type]
        if trainer.should_stop:
            break
    return trainer


def test_constant_metric_stops_after_patience_epochs_without_improvement() -> None:
    callback = EarlyStopping("loss", patience=3)
    run_epochs(callback, [1.0] * 10)
    assert callback.stopped_epoch == 3
    assert callback.stopping_reason is EarlyStoppingReason.PATIENCE_EXHAUSTED


def test_improvement_resets_the_wait() -> None:
    callback = EarlyStopping("loss", patience=2)
    trainer = run_epochs(callback, [1.0, 1.1, 0.9, 1.0])
    assert not trainer.should_stop
    assert callback.wait_count == 1


@pytest.mark.parametrize("patience", [0, 1])
def test_patience_of_zero_or_one_stops_at_the_first_check_without_improvement(patience: int) -> None:
    callback = EarlyStopping("loss", patience=patience)
    run_epochs(callback, [1.0, 0.9, 0.95, 0.1])
    assert callback.stopped_epoch == 2


def test_change_of_exactly_min_delta_is_no_improvement() -> None:
    callback = EarlyStopping("loss", min_delta=0.5, patience=1)
    run_epochs(callback, [2.0, 1.5])
    assert callback.stopped_epoch == 1


def test_max_mode_counts_a_larger_value_as_improvement() -> None:
    callback = EarlyStopping("loss", mode="max", patience=1)
    run_epochs(callback, [0.1, 0.2, 0.3, 0.25])
    assert callback.stopped_epoch == 3
    assert callback.best_score == torch.tensor(0.3)


def test_nan_stops_at_once() -> None:
    callback = EarlyStopping("loss")
    run_epochs(callback, [1.0, math.nan, 0.5])
    assert callback.stopped_epoch == 1
    assert callback.stopping_reason is EarlyStoppingReason.NON_FINITE_METRIC


def test_nan_counts_as_no_improvement_without_check_finite() -> None:
    callback = EarlyStopping("loss", check_finite=False)
    trainer = run_epochs(callback, [1.0, math.nan])
    assert not trainer.should_stop
    assert callback.wait_count == 1


def test_value_better_than_stopping_threshold_stops_and_is_the_best() -> None:
    callback = EarlyStopping("loss", stopping_threshold=0.5)
    run_epochs(callback, [1.0, 0.5, 0.4, 0.3])
    assert callback.stopped_epoch == 2
    assert callback.stopping_reason is EarlyStoppingReason.STOPPING_THRESHOLD
    assert callback.best_score == torch.tensor(0.4)


def test_value_worse_than_divergence_threshold_stops() -> None:
    callback = EarlyStopping("loss", divergence_threshold=2.0)
    run_epochs(callback, [1.0, 2.0, 2.5])
    assert callback.stopped_epoch == 2
    assert callback.stopping_reason is EarlyStoppingReason.DIVERGENCE_THRESHOLD


def test_wait_keeps_growing_while_the_trainer_goes_on() -> None:
    callback = EarlyStopping("loss", patience=1)
    trainer = make_trainer()
    for _ in range(4):
        trainer.should_stop = False
        run_epochs(callback, [1.0], trainer)
    assert callback.wait_count == 3


def test_missing_metric_lists_the_keys_there_are() -> None:
    trainer = make_trainer(callback_metrics={"train_loss": torch.tensor(1.0), "val_loss": torch.tensor(1.0)})
    callback = EarlyStopping("val_los")
    with pytest.raises(RuntimeError, match=r"'val_los'.*'train_loss', 'val_loss'.*Did you mean 'val_loss'"):
        callback.on_validation_end(trainer, None)  # type: ignore[arg-type]


def test_missing_metric_without_strict_still_takes_part_in_the_decision_of_all_ranks() -> None:
    trainer = make_trainer(strategy=FakeStrategy(others=True))
    EarlyStopping("loss", strict=False).on_validation_end(trainer, None)  # type: ignore[arg-type]
    assert trainer.strategy.asked == [False]
    assert trainer.should_stop


def test_a_rank_with_a_good_metric_stops_with_the_others() -> None:
    callback = EarlyStopping("loss")
    trainer = run_epochs(callback, [1.0], make_trainer(strategy=FakeStrategy(others=True)))
    assert trainer.should_stop


@pytest.mark.parametrize(
    "changes",
    [{"fast_dev_run": 1}, {"sanity_checking": True}, {"state": SimpleNamespace(fn="validate")}],
    ids=["fast_dev_run", "sanity check", "validate"],
)
def test_nothing_is_checked(changes: dict[str, Any]) -> None:
    trainer = run_epochs(EarlyStopping("loss"), [math.nan], make_trainer(**changes))
    assert trainer.strategy.asked == []


@pytest.mark.parametrize(
    ("interval", "every_n_epoch", "expected"),
    [(1.0, 1, True), (0.5, 1, False), (1, 1, False), (1.0, 2, False), (100, None, False)],
)
def test_check_point_follows_the_validation_interval(
    interval: float, every_n_epoch: int | None, expected: bool
) -> None:
    trainer = make_trainer(val_check_interval=interval, check_val_every_n_epoch=every_n_epoch)
    trainer.callback_metrics["loss"] = torch.tensor(1.0)
    callback = EarlyStopping("loss")
    callback.setup(trainer, None, "fit")  # type: ignore[arg-type]
    callback.on_train_epoch_end(trainer, None)  # type: ignore[arg-type]
    assert len(trainer.strategy.asked) == int(expected)


def test_check_point_stays_as_resolved_at_the_first_setup() -> None:
    callback = EarlyStopping("loss")
    trainer = make_trainer()
    callback.setup(trainer, None, "fit")  # type: ignore[arg-type]
    trainer.val_check_interval = 0.5
    run_epochs(callback, [1.0], trainer)
    assert trainer.strategy.asked == [False]


def test_state_survives_a_round_trip() -> None:
    callback = EarlyStopping("loss", patience=1)
    run_epochs(callback, [1.0, 2.0])
    other = EarlyStopping("loss", patience=9)
    other.load_state_dict(callback.state_dict())
    assert other.state_dict() == callback.state_dict()
    assert other.stopping_reason is EarlyStoppingReason.PATIENCE_EXHAUSTED


def test_best_score_does_not_follow_later_writes_to_the_metric() -> None:
    trainer = run_epochs(callback := EarlyStopping("loss"), [1.0])
    trainer.callback_metrics["loss"].fill_(7.0)
    assert callback.best_score == torch.tensor(1.0)


def test_state_key_names_monitor_and_mode() -> None:
    assert EarlyStopping("vl").state_key == "EarlyStopping{'monitor': 'vl', 'mode': 'min'}"


def test_unknown_mode_is_refused() -> None:
    with pytest.raises(MisconfigurationException, match="mode='less'"):
        EarlyStopping("loss", mode="less")


@pytest.mark.parametrize(("monitor", "mode"), [("val_acc", "max"), ("val_loss", "min")])
def test_auto_mode_goes_by_the_name(monitor: str, mode: str) -> None:
    assert EarlyStopping(monitor, mode="auto").mode == mode


def test_verbose_tells_why_the_run_stops(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="fulgur"):
        run_epochs(EarlyStopping("loss", patience=1, verbose=True), [1.0, 1.0])
    assert [record.getMessage() for record in caplog.records] == [
        "EarlyStopping: loss improved to 1.",
        "EarlyStopping: loss = 1 did not improve in 1 checks; the best was 1. Stopping.",
    ]


def test_stop_is_silent_unless_verbose(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="fulgur"):
        run_epochs(EarlyStopping("loss", patience=1), [1.0, 1.0])
        run_epochs(EarlyStopping("loss", stopping_threshold=2.0), [1.0])
    assert caplog.records == []


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_stop_on_a_value_that_is_not_finite_is_always_told(value: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="fulgur"):
        run_epochs(EarlyStopping("loss"), [1.0, float(value)])
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", f"EarlyStopping: loss = {value} is not finite; the best was 1. Stopping.")
    ]


def test_runs_after_the_module_at_the_end_of_an_epoch() -> None:
    callback = EarlyStopping("loss")
    hooks = collect([callback], object(), None, object)
    assert hooks.on_train_epoch_end == ()
    assert len(hooks.on_train_epoch_end_monitors) == 1
