"""EarlyStopping in real fits."""

from __future__ import annotations

from typing import Any

import pytest

from fulgur.callbacks import Callback, EarlyStopping, ModelCheckpoint
from fulgur.callbacks.early_stopping import EarlyStoppingReason


@pytest.fixture
def fit(tiny: Any, make_trainer: Any, loader: Any) -> Any:
    def run(scores: tuple[float, ...], trainer: dict[str, Any] | None = None, **options: Any) -> Any:
        stopper = EarlyStopping(**({"monitor": "score"} | options))
        runner = make_trainer(callbacks=stopper, enable_checkpointing=False, **({"max_epochs": 20} | (trainer or {})))
        runner.fit(tiny(*scores), loader(2), loader(1))
        return stopper, runner

    return run


def test_constant_metric_stops_after_patience(fit: Any) -> None:
    stopper, trainer = fit((1.0,), patience=3)
    assert (stopper.stopped_epoch, trainer.current_epoch, stopper.wait_count) == (3, 4, 3)
    assert stopper.stopping_reason is EarlyStoppingReason.PATIENCE_EXHAUSTED
    assert stopper.stopping_reason_message is not None


@pytest.mark.parametrize("patience", [0, 1])
def test_no_patience_stops_at_the_first_check_without_improvement(patience: int, fit: Any) -> None:
    stopper, trainer = fit((3.0, 2.0, 2.5), patience=patience)
    assert (stopper.stopped_epoch, trainer.current_epoch) == (2, 3)


def test_improvement_starts_the_count_anew(fit: Any) -> None:
    stopper, _ = fit((3.0, 3.0, 2.0, 2.0, 2.0), patience=2)
    assert stopper.stopped_epoch == 4
    assert stopper.best_score == 2.0


def test_larger_is_better_on_request(fit: Any) -> None:
    stopper, _ = fit((1.0, 2.0, 3.0, 2.0), patience=1, mode="max")
    assert (stopper.stopped_epoch, stopper.best_score) == (3, 3.0)


def test_improvement_below_min_delta_does_not_count(fit: Any) -> None:
    stopper, _ = fit((1.0, 0.95, 0.91, 0.85, 0.85), patience=2, min_delta=0.1)
    assert (stopper.stopped_epoch, stopper.best_score) == (2, 1.0)


def test_value_that_is_no_number_stops(fit: Any) -> None:
    stopper, trainer = fit((1.0, float("nan")))
    assert (stopper.stopped_epoch, trainer.current_epoch) == (1, 2)
    assert stopper.stopping_reason is EarlyStoppingReason.NON_FINITE_METRIC


def test_thresholds_stop(fit: Any) -> None:
    assert fit((3.0, 2.0, 0.5), stopping_threshold=1.0)[0].stopping_reason is EarlyStoppingReason.STOPPING_THRESHOLD
    stopper, _ = fit((3.0, 2.0, 9.0), divergence_threshold=5.0)
    assert (stopper.stopped_epoch, stopper.stopping_reason) == (2, EarlyStoppingReason.DIVERGENCE_THRESHOLD)


def test_minimum_of_epochs_comes_first(fit: Any) -> None:
    stopper, trainer = fit((1.0,), patience=2, trainer={"min_epochs": 6})
    assert trainer.current_epoch == 6
    assert stopper.wait_count == 5


def test_metric_of_validations_within_an_epoch_is_checked_there(fit: Any) -> None:
    stopper, trainer = fit((1.0,), patience=2, trainer={"val_check_interval": 0.5})
    assert (stopper.stopped_epoch, trainer.global_step) == (1, 3)


def test_epochs_without_validation_are_not_checked(fit: Any) -> None:
    stopper, trainer = fit((1.0,), patience=1, trainer={"check_val_every_n_epoch": 2})
    assert (stopper.stopped_epoch, trainer.current_epoch) == (3, 4)


def test_missing_metric_is_an_error_that_lists_what_there_is(fit: Any) -> None:
    with pytest.raises(RuntimeError, match=r"'scor'.*'score'"):
        fit((1.0,), monitor="scor")


def test_missing_metric_is_skipped_on_request(fit: Any) -> None:
    _, trainer = fit((1.0,), monitor="nope", strict=False, trainer={"max_epochs": 3})
    assert trainer.current_epoch == 3


def test_trial_run_and_sanity_check_are_not_checked(fit: Any) -> None:
    stopper, _ = fit((float("nan"),), trainer={"fast_dev_run": True})
    assert stopper.stopping_reason is EarlyStoppingReason.NOT_STOPPED
    fit((1.0,), monitor="nope", check_on_train_epoch_end=False, trainer={"limit_train_batches": 0})


def test_training_metric_is_monitored(tiny: Any, make_trainer: Any, loader: Any) -> None:
    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        self.log("train_loss", float(10 - self.current_epoch if self.current_epoch < 3 else 8), on_epoch=True)
        return self.layer(batch).mean()

    stopper = EarlyStopping("train_loss", patience=2)
    trainer = make_trainer(callbacks=stopper, max_epochs=20, enable_checkpointing=False)
    trainer.fit(tiny(training_step=training_step), loader(2))
    assert (stopper.stopped_epoch, stopper.best_score) == (4, 8.0)


@pytest.mark.parametrize("n_steps", [2, 4, 5])
def test_an_epoch_cut_short_counts_once_in_a_resumed_run(
    n_steps: int, tiny: Any, make_trainer: Any, loader: Any, tmp_path: Any
) -> None:
    def step(self: Any, batch: Any, batch_idx: int) -> Any:
        self.log("train_score", 1.0)
        return self.layer(batch).mean()

    saver = ModelCheckpoint(dirpath=tmp_path, filename="a", every_n_epochs=1)
    cut = make_trainer(callbacks=[EarlyStopping("train_score"), saver], max_epochs=9, max_steps=n_steps)
    cut.fit(tiny(training_step=step), loader(3))
    stopper = EarlyStopping("train_score")
    trainer = make_trainer(callbacks=stopper, max_epochs=9, enable_checkpointing=False)
    trainer.fit(tiny(training_step=step), loader(3), ckpt_path=tmp_path / "a.ckpt")
    assert (stopper.stopped_epoch, trainer.global_step) == (3, 12)


def test_a_validation_that_is_there_only_because_the_run_stops_does_not_count(
    tiny: Any, make_trainer: Any, loader: Any
) -> None:
    class StopsAtFour(Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            trainer.should_stop = trainer.global_step == 4

    stopper = EarlyStopping("score", check_on_train_epoch_end=False)
    trainer = make_trainer(callbacks=[stopper, StopsAtFour()], enable_checkpointing=False, max_epochs=9)
    module = tiny(1.0)
    trainer.fit(module, loader(3), loader(1))
    assert (stopper.wait_count, trainer.global_step) == (0, 4)


def test_waiting_goes_on_where_the_checkpoint_was_taken(
    tiny: Any, make_trainer: Any, loader: Any, tmp_path: Any
) -> None:
    saver = ModelCheckpoint(dirpath=tmp_path, filename="a")
    make_trainer(callbacks=[EarlyStopping("score", patience=3), saver], max_epochs=2).fit(
        tiny(1.0), loader(1), loader(1)
    )
    stopper = EarlyStopping("score", patience=99)
    trainer = make_trainer(callbacks=stopper, max_epochs=20, enable_checkpointing=False)
    trainer.fit(tiny(1.0), loader(1), loader(1), ckpt_path=tmp_path / "a.ckpt")
    assert (stopper.patience, stopper.stopped_epoch) == (3, 3)
