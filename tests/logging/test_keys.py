"""Which keys a logged name gets, in each of the three dicts, at each point of a run."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fulgur import Callback


class Watch(Callback):
    """Notes the keys and values of `callback_metrics` at every point where somebody may read them."""

    def __init__(self) -> None:
        self.seen: dict[str, list[dict[str, float]]] = {}

    def note(self, where: str, trainer: Any) -> None:
        values = {key: round(float(value), 4) for key, value in trainer.callback_metrics.items()}
        self.seen.setdefault(where, []).append(values)

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        self.note("batch", trainer)

    def on_train_epoch_end(self, trainer: Any, *args: Any) -> None:
        self.note("epoch", trainer)

    def on_train_end(self, trainer: Any, *args: Any) -> None:
        self.note("end", trainer)

    def on_validation_batch_end(self, trainer: Any, *args: Any) -> None:
        self.note("val_batch", trainer)

    def on_validation_epoch_end(self, trainer: Any, *args: Any) -> None:
        self.note("val_epoch", trainer)

    def on_validation_end(self, trainer: Any, *args: Any) -> None:
        self.note("val_end", trainer)


def step_logging(**options: Any) -> Any:
    """Logs 0, 1, ... in batches 0, 1, ..., plus ten for each epoch."""

    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        self.log("x", torch.tensor(float(batch_idx + 10 * self.current_epoch)), **options)
        return self.layer(batch).mean()

    return training_step


def eval_logging(**options: Any) -> Any:
    def step(self: Any, batch: Any, batch_idx: int) -> None:
        self.log("v", torch.tensor(float(batch_idx + 10 * self.current_epoch)), **options)

    return step


STEP, EPOCH, BOTH = (
    {"on_step": True, "on_epoch": False},
    {"on_step": False, "on_epoch": True},
    {"on_step": True, "on_epoch": True},
)


@pytest.mark.parametrize(
    ("options", "keys"),
    [(STEP, {"x"}), (EPOCH, {"x"}), (BOTH, {"x_step", "x_epoch"})],
    ids=["step", "epoch", "both"],
)
def test_keys_of_a_training_value_for_loggers_and_bar(
    options: Any, keys: set[str], tiny: Any, make_trainer: Any, loader: Any, recorder: Any
) -> None:
    trainer = make_trainer()
    trainer.fit(tiny(training_step=step_logging(prog_bar=True, **options)), loader())
    assert {key for row, _ in recorder.rows for key in row} - {"epoch"} == keys
    assert set(trainer.logged_metrics) == keys
    assert set(trainer.progress_bar_metrics) == keys
    assert all(type(value) is float for value in trainer.progress_bar_metrics.values())


def test_callback_metrics_of_a_step_value(tiny: Any, make_trainer: Any, loader: Any) -> None:
    watch = Watch()
    make_trainer(callbacks=watch, max_epochs=2).fit(tiny(training_step=step_logging(**STEP)), loader())
    assert watch.seen["batch"] == [{"x": 0.0}, {"x": 1.0}, {"x": 10.0}, {"x": 11.0}]
    assert watch.seen["epoch"] == [{"x": 1.0}, {"x": 11.0}]
    assert watch.seen["end"] == [{"x": 11.0}]


def test_callback_metrics_of_an_epoch_value(tiny: Any, make_trainer: Any, loader: Any) -> None:
    watch = Watch()
    make_trainer(callbacks=watch, max_epochs=2).fit(tiny(training_step=step_logging(**EPOCH)), loader())
    assert watch.seen["batch"] == [{}, {}, {"x": 0.5}, {"x": 0.5}]
    assert watch.seen["epoch"] == [{"x": 0.5}, {"x": 10.5}]


def test_callback_metrics_of_a_value_for_step_and_epoch(tiny: Any, make_trainer: Any, loader: Any) -> None:
    watch = Watch()
    make_trainer(callbacks=watch, max_epochs=2).fit(tiny(training_step=step_logging(**BOTH)), loader())
    assert watch.seen["batch"] == [
        {"x": 0.0, "x_step": 0.0},
        {"x": 1.0, "x_step": 1.0},
        {"x": 10.0, "x_step": 10.0, "x_epoch": 0.5},
        {"x": 11.0, "x_step": 11.0, "x_epoch": 0.5},
    ]
    assert watch.seen["epoch"] == [
        {"x": 0.5, "x_step": 1.0, "x_epoch": 0.5},
        {"x": 10.5, "x_step": 11.0, "x_epoch": 10.5},
    ]
    assert watch.seen["end"] == [{"x": 10.5, "x_step": 11.0, "x_epoch": 10.5}]


def test_callback_metrics_of_a_validation_value_for_batch_and_epoch(
    tiny: Any, make_trainer: Any, loader: Any, recorder: Any
) -> None:
    watch = Watch()
    module = tiny(validation_step=eval_logging(prog_bar=True, **BOTH))
    trainer = make_trainer(callbacks=watch, max_epochs=2, num_sanity_val_steps=0)
    trainer.fit(module, loader(), loader(3))
    first, second = {"v": 1.0, "v_epoch": 1.0}, {"v": 11.0, "v_epoch": 11.0}
    assert watch.seen["val_batch"] == [{}, {}, {}, first, first, first]
    assert watch.seen["val_epoch"] == watch.seen["val_end"] == [first, second]
    assert {key for row, _ in recorder.rows for key in row} == {"v_step", "v_epoch", "epoch"}
    assert set(trainer.logged_metrics) == {"v_step", "v_epoch"}
    assert trainer.progress_bar_metrics == {"v_step": 12.0, "v_epoch": 11.0}


@pytest.mark.parametrize("prefix", ["validation", "test"])
def test_value_of_evaluation_batches_reaches_loggers_but_no_callback(
    prefix: str, tiny: Any, make_trainer: Any, loader: Any, recorder: Any
) -> None:
    module = tiny(**{f"{prefix}_step": eval_logging(prog_bar=True, **STEP)})
    trainer = make_trainer()
    entry = trainer.validate if prefix == "validation" else trainer.test
    assert entry(module, loader(3), verbose=False) == [{}]
    assert recorder.rows == [({"v": 0.0}, 0), ({"v": 1.0}, 1), ({"v": 2.0}, 2)]
    assert "v" not in trainer.callback_metrics
    assert trainer.logged_metrics == {"v": 2.0}
    assert trainer.progress_bar_metrics == {"v": 2.0}


def test_value_not_for_loggers_reaches_callbacks_and_bar_alone(
    tiny: Any, make_trainer: Any, loader: Any, recorder: Any
) -> None:
    trainer = make_trainer()
    results = trainer.validate(tiny(validation_step=eval_logging(logger=False, prog_bar=True)), loader(), verbose=False)
    assert results == [{}]
    assert recorder.rows == []
    assert trainer.logged_metrics == {}
    assert trainer.callback_metrics == {"v": 0.5}
    assert trainer.progress_bar_metrics == {"v": 0.5}


def test_training_value_not_for_loggers_reaches_callbacks_and_bar_alone(
    tiny: Any, make_trainer: Any, loader: Any, recorder: Any
) -> None:
    trainer = make_trainer()
    trainer.fit(tiny(training_step=step_logging(logger=False, prog_bar=True, **BOTH)), loader())
    assert recorder.rows == []
    assert set(trainer.callback_metrics) == {"x", "x_step", "x_epoch"}
    assert trainer.progress_bar_metrics == {"x_step": 1.0, "x_epoch": 0.5}


@pytest.mark.parametrize("logger", [None, True])
def test_results_and_logged_metrics_need_no_logger(logger: Any, tiny: Any, make_trainer: Any, loader: Any) -> None:
    trainer = make_trainer(logger=False)
    results = trainer.validate(tiny(validation_step=eval_logging(logger=logger)), loader(), verbose=False)
    assert results == [{"v": 0.5}]
    assert trainer.logged_metrics == {"v": 0.5}


def test_bar_shows_the_last_step_after_the_run_however_seldom_loggers_write(
    tiny: Any, make_trainer: Any, loader: Any
) -> None:
    trainer = make_trainer(log_every_n_steps=50)
    trainer.fit(tiny(training_step=step_logging(prog_bar=True, **STEP)), loader(3))
    assert trainer.progress_bar_metrics == {"x": 2.0}
    assert trainer.callback_metrics == {"x": 2.0}


def test_bar_metrics_are_those_of_the_latest_batch(tiny: Any, make_trainer: Any, loader: Any) -> None:
    seen = []

    def on_train_batch_end(self: Any, *args: Any) -> None:
        seen.append(dict(self.trainer.progress_bar_metrics))

    module = tiny(training_step=step_logging(prog_bar=True, **STEP), on_train_batch_end=on_train_batch_end)
    make_trainer(log_every_n_steps=50).fit(module, loader(3))
    assert seen == [{"x": 0.0}, {"x": 1.0}, {"x": 2.0}]


def test_own_epoch_end_hook_reads_the_epochs_mean(tiny: Any, make_trainer: Any, loader: Any) -> None:
    seen = []

    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        self.log("train_loss", float(batch_idx), on_step=True, on_epoch=True)
        return self.layer(batch).mean()

    def on_train_epoch_end(self: Any) -> None:
        seen.append(self.trainer.callback_metrics["train_loss_epoch"].item())

    make_trainer(max_epochs=2).fit(tiny(training_step=training_step, on_train_epoch_end=on_train_epoch_end), loader(4))
    assert seen == [1.5, 1.5]


def test_value_logged_in_one_epoch_only_stays_in_the_dicts(tiny: Any, make_trainer: Any, loader: Any) -> None:
    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        if self.current_epoch == 0:
            self.log("once", float(batch_idx), on_step=True, on_epoch=True, prog_bar=True)
        return self.layer(batch).mean()

    trainer = make_trainer(max_epochs=3)
    trainer.fit(tiny(training_step=training_step), loader())
    assert trainer.callback_metrics == {"once": 0.5, "once_step": 1.0, "once_epoch": 0.5}
    assert trainer.logged_metrics == trainer.progress_bar_metrics == {"once_step": 1.0, "once_epoch": 0.5}


def test_every_run_starts_with_empty_dicts(tiny: Any, make_trainer: Any, loader: Any) -> None:
    seen = []

    def on_validation_start(self: Any) -> None:
        trainer = self.trainer
        seen.append([dict(trainer.callback_metrics), dict(trainer.logged_metrics), dict(trainer.progress_bar_metrics)])

    module = tiny(training_step=step_logging(prog_bar=True, **BOTH), on_validation_start=on_validation_start)
    trainer = make_trainer()
    trainer.fit(module, loader())
    assert trainer.callback_metrics
    trainer.validate(module, loader(), verbose=False)
    assert seen == [[{}, {}, {}]]
    assert trainer.callback_metrics == trainer.logged_metrics == trainer.progress_bar_metrics == {}


def test_sanity_check_leaves_nothing_in_the_dicts(tiny: Any, make_trainer: Any, loader: Any, recorder: Any) -> None:
    seen = []

    def on_train_start(self: Any) -> None:
        trainer = self.trainer
        seen.append([dict(trainer.callback_metrics), dict(trainer.logged_metrics), dict(trainer.progress_bar_metrics)])

    module = tiny(validation_step=eval_logging(prog_bar=True, **BOTH), on_train_start=on_train_start)
    make_trainer(limit_val_batches=0.0 + 1).fit(module, loader(), loader())
    assert seen == [[{}, {}, {}]]


def test_values_are_on_the_host_after_a_run(tiny: Any, make_trainer: Any, loader: Any) -> None:
    trainer = make_trainer()
    trainer.fit(tiny(training_step=step_logging(**BOTH)), loader())
    values = [*trainer.callback_metrics.values(), *trainer.logged_metrics.values()]
    assert {value.device.type for value in values} == {"cpu"}


def test_same_name_in_two_hooks_has_two_sums_and_the_later_one_is_shown(
    tiny: Any, make_trainer: Any, loader: Any
) -> None:
    def on_train_batch_end(self: Any, *args: Any) -> None:
        self.log("x", 100.0, on_step=False, on_epoch=True)

    module = tiny(training_step=step_logging(**EPOCH), on_train_batch_end=on_train_batch_end)
    trainer = make_trainer()
    trainer.fit(module, loader())
    assert trainer.callback_metrics == {"x": 100.0}
