"""When loggers get values: which, at which place of the axis, and what follows."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fulgur.callbacks import EarlyStopping, ModelCheckpoint


def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
    self.log("x", float(batch_idx))
    return self.layer(batch).mean()


def validation_step(self: Any, batch: Any, batch_idx: int) -> None:
    self.log("v", batch.mean())


def test_steps_are_logged_every_so_many(tiny: Any, make_trainer: Any, loader: Any, recorder: Any) -> None:
    make_trainer(log_every_n_steps=2, max_epochs=2).fit(tiny(training_step=training_step), loader(3))
    assert recorder.rows == [
        ({"x": 1.0, "epoch": 0}, 1),
        ({"x": 0.0, "epoch": 1}, 3),
        ({"x": 2.0, "epoch": 1}, 5),
    ]


def test_zero_logs_no_steps_but_epochs(tiny: Any, make_trainer: Any, loader: Any, recorder: Any) -> None:
    def step(self: Any, batch: Any, batch_idx: int) -> Any:
        self.log("x", float(batch_idx), on_step=True, on_epoch=True)
        return self.layer(batch).mean()

    make_trainer(log_every_n_steps=0).fit(tiny(training_step=step), loader(4))
    assert recorder.rows == [({"x_epoch": 1.5, "epoch": 0}, 3)]


def test_accumulating_batches_are_logged_once_a_window(
    tiny: Any, make_trainer: Any, loader: Any, recorder: Any
) -> None:
    make_trainer(accumulate_grad_batches=2).fit(tiny(training_step=training_step), loader(5))
    assert recorder.rows == [
        ({"x": 1.0, "epoch": 0}, 0),
        ({"x": 3.0, "epoch": 0}, 1),
        ({"x": 4.0, "epoch": 0}, 2),
    ]


def test_several_optimizers_count_once(tiny: Any, make_trainer: Any, loader: Any, recorder: Any) -> None:
    def step(self: Any, batch: Any, batch_idx: int) -> None:
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(self.layer(batch).mean())
            optimizer.step()
        self.log("x", float(batch_idx))

    def configure_optimizers(self: Any) -> Any:
        return [torch.optim.SGD(self.parameters(), lr=0.1), torch.optim.SGD(self.parameters(), lr=0.1)]

    module = tiny(training_step=step, configure_optimizers=configure_optimizers)
    module.automatic_optimization = False
    make_trainer().fit(module, loader(3))
    assert [step for _, step in recorder.rows] == [0, 1, 2]


def test_step_that_ends_the_run_is_logged(tiny: Any, make_trainer: Any, loader: Any, recorder: Any) -> None:
    def step(self: Any, batch: Any, batch_idx: int) -> Any:
        self.log("x", float(batch_idx))
        self.trainer.should_stop = batch_idx == 1
        return self.layer(batch).mean()

    make_trainer(log_every_n_steps=50).fit(tiny(training_step=step), loader(5))
    assert recorder.rows == [({"x": 1.0, "epoch": 0}, 1)]


def test_trial_run_keeps_the_values_but_writes_none(tiny: Any, make_trainer: Any, loader: Any, recorder: Any) -> None:
    trainer = make_trainer(fast_dev_run=2, log_every_n_steps=50)
    trainer.fit(tiny(training_step=training_step, validation_step=validation_step), loader(5), loader(5))
    assert recorder.calls == []
    assert trainer.logged_metrics == {"x": 1.0, "v": 0.5}


def test_epochs_end_is_logged_at_the_last_steps_axis(tiny: Any, make_trainer: Any, loader: Any, recorder: Any) -> None:
    def on_train_epoch_end(self: Any) -> None:
        self.log("end", 1.0)

    module = tiny(validation_step=validation_step, on_train_epoch_end=on_train_epoch_end)
    make_trainer(max_epochs=2).fit(module, loader(3), loader(2))
    assert recorder.rows == [
        ({"v": 0.5, "epoch": 0}, 2),
        ({"end": 1.0, "epoch": 0}, 2),
        ({"v": 0.5, "epoch": 1}, 5),
        ({"end": 1.0, "epoch": 1}, 5),
    ]


def test_validation_within_an_epoch_is_logged_at_the_axis_of_the_step_before(
    tiny: Any, make_trainer: Any, loader: Any, recorder: Any
) -> None:
    module = tiny(validation_step=validation_step)
    make_trainer(val_check_interval=2).fit(module, loader(4), loader(2))
    assert recorder.rows == [({"v": 0.5, "epoch": 0}, 1), ({"v": 0.5, "epoch": 0}, 3)]


def test_validation_logs_one_row_of_batches_and_epoch_values(
    tiny: Any, make_trainer: Any, loader: Any, recorder: Any
) -> None:
    def step(self: Any, batch: Any, batch_idx: int) -> None:
        self.log("v", batch.mean(), on_step=True, on_epoch=True)
        self.log("w", 1.0)

    make_trainer(max_epochs=2, log_every_n_steps=50).fit(tiny(validation_step=step), loader(1), loader(2))
    assert recorder.rows == [
        ({"v_step": 0.0}, 0),
        ({"v_step": 1.0}, 1),
        ({"v_epoch": 0.5, "w": 1.0, "epoch": 0}, 0),
        ({"v_step": 0.0}, 2),
        ({"v_step": 1.0}, 3),
        ({"v_epoch": 0.5, "w": 1.0, "epoch": 1}, 1),
    ]


def test_evaluation_without_a_fit_is_logged_at_zero(tiny: Any, make_trainer: Any, loader: Any, recorder: Any) -> None:
    make_trainer().validate(tiny(validation_step=validation_step), loader(2), verbose=False)
    assert recorder.rows == [({"v": 0.5, "epoch": 0}, 0)]


def test_evaluation_after_a_fit_is_logged_where_the_fit_ended(
    tiny: Any, make_trainer: Any, loader: Any, recorder: Any
) -> None:
    trainer, module = make_trainer(), tiny(test_step=validation_step)
    trainer.fit(module, loader(3))
    trainer.test(module, loader(2), verbose=False)
    assert recorder.rows == [({"v": 0.5, "epoch": 1}, 2)]


def test_sanity_check_writes_nothing(tiny: Any, make_trainer: Any, loader: Any, recorder: Any) -> None:
    def step(self: Any, batch: Any, batch_idx: int) -> None:
        assert self.trainer.sanity_checking
        self.log("v", batch.mean(), on_step=True, on_epoch=True)

    make_trainer(limit_train_batches=0).fit(tiny(validation_step=step), loader(1), loader(2))
    assert recorder.rows == []


def test_logged_step_replaces_the_axis(tiny: Any, make_trainer: Any, loader: Any, recorder: Any) -> None:
    def step(self: Any, batch: Any, batch_idx: int) -> Any:
        self.log("x", float(batch_idx))
        self.log("step", torch.tensor(100.0 + batch_idx))
        return self.layer(batch).mean()

    make_trainer().fit(tiny(training_step=step), loader(2))
    assert recorder.rows == [({"x": 0.0}, 100), ({"x": 1.0}, 101)]
    assert all(type(step) is int for _, step in recorder.rows)


def test_logged_step_of_an_epochs_end_replaces_the_axis(
    tiny: Any, make_trainer: Any, loader: Any, recorder: Any
) -> None:
    def on_validation_epoch_end(self: Any) -> None:
        self.log("step", float(self.current_epoch))

    module = tiny(validation_step=validation_step, on_validation_epoch_end=on_validation_epoch_end)
    make_trainer(max_epochs=2).fit(module, loader(3), loader(2))
    assert recorder.rows == [({"v": 0.5}, 0), ({"v": 0.5}, 1)]


def test_save_follows_every_call(tiny: Any, make_trainer: Any, loader: Any, recorder: Any) -> None:
    module = tiny(training_step=training_step, validation_step=validation_step)
    make_trainer().fit(module, loader(2), loader(2))
    assert recorder.calls == ["save"] + ["log_metrics", "save"] * 3 + ["save"]


def test_several_loggers_get_the_same_and_may_change_it(tiny: Any, make_trainer: Any, loader: Any) -> None:
    from fulgur.loggers import Logger

    class Greedy(Logger):
        name, version = "greedy", 0

        def __init__(self) -> None:
            self.seen: list[dict[str, float]] = []

        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            self.seen.append(dict(metrics))
            metrics.clear()

        def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    loggers = [Greedy(), Greedy()]
    trainer = make_trainer(logger=loggers)
    trainer.fit(tiny(training_step=training_step), loader(1))
    assert loggers[0].seen == loggers[1].seen == [{"x": 0.0, "epoch": 0}]
    assert trainer.logged_metrics == {"x": 0.0}


def test_value_not_logged_again_is_not_written_again(tiny: Any, make_trainer: Any, loader: Any, recorder: Any) -> None:
    def step(self: Any, batch: Any, batch_idx: int) -> Any:
        if batch_idx in (0, 3):
            self.log("x", float(batch_idx))
        return self.layer(batch).mean()

    make_trainer(log_every_n_steps=2).fit(tiny(training_step=step), loader(6))
    assert recorder.rows == [({"x": 0.0, "epoch": 0}, 1), ({"x": 3.0, "epoch": 0}, 3)]


@pytest.mark.parametrize("hook", ["on_train_epoch_end", "on_validation_epoch_end"])
@pytest.mark.parametrize("owner", ["module", "callback"])
def test_value_of_an_epochs_end_is_monitored_in_the_same_epoch(
    hook: str, owner: str, tiny: Any, make_trainer: Any, loader: Any
) -> None:
    from fulgur import Callback

    values = iter((3.0, 1.0, 2.0, 5.0))

    def log_value(self: Any, *args: Any) -> None:
        owner_trainer = args[0] if args else self.trainer
        if not owner_trainer.sanity_checking:
            self.log("score", next(values))

    stopper = EarlyStopping("score", patience=2)
    saver = ModelCheckpoint(monitor="score", filename="{epoch}-{score}")
    callbacks: list[Any] = [stopper, saver]
    methods = {}
    if owner == "module":
        methods = {hook: log_value}
    else:
        callbacks.append(type("Logging", (Callback,), {hook: log_value})())
    trainer = make_trainer(max_epochs=10, callbacks=callbacks, enable_checkpointing=True, logger=False)
    trainer.fit(tiny(**methods), loader(1), loader(1))
    assert (trainer.current_epoch, stopper.best_score) == (4, 1.0)
    assert saver.best_model_path.endswith("epoch=1-score=1.0.ckpt")
    assert saver.best_model_score == 1.0
