"""How long a fit lasts, and how much of each loader it takes."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

import pytest
import torch
from tests.trainer.conftest import Bare, Letters, Net, letters, numbers, quiet, stream

from fulgur import Callback
from fulgur.errors import MisconfigurationException


class StopAt(Callback):
    """Sets should_stop at the end of the n-th training batch."""

    def __init__(self, n: int) -> None:
        self.n = n

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == self.n:
            trainer.should_stop = True


def test_max_epochs_counts_epochs() -> None:
    assert letters(Bare(), numbers(2), max_epochs=3) == "<ttEttEttE>"


def test_max_epochs_of_zero_trains_nothing() -> None:
    assert letters(Bare(), numbers(2), max_epochs=0) == ""


def test_max_steps_cuts_an_epoch_and_counts_it_as_done() -> None:
    trainer = quiet(max_steps=3)
    trainer.fit(Net(), numbers(2), numbers(1))
    assert (trainer.global_step, trainer.current_epoch) == (3, 2)


def test_no_validation_follows_the_batch_that_max_steps_cuts_an_epoch_at() -> None:
    assert letters(Net(), numbers(2), numbers(1), max_steps=3) == "<ttVEtE>"


def test_max_steps_counts_windows_not_batches() -> None:
    assert letters(Bare(), numbers(4), max_steps=3, accumulate_grad_batches=2) == "<ttttEttE>"


def test_max_steps_alone_means_no_limit_of_epochs() -> None:
    trainer = quiet(max_steps=5)
    trainer.fit(Bare(), numbers(1))
    assert (trainer.max_epochs, trainer.current_epoch) == (-1, 5)


def test_no_limit_at_all_means_a_thousand_epochs() -> None:
    trainer = quiet(callbacks=[StopAt(1)])
    assert trainer.max_epochs is None
    trainer.fit(Bare(), numbers(1))
    assert trainer.max_epochs == 1000


def test_max_epochs_of_minus_one_has_no_end_of_its_own() -> None:
    trainer = quiet(max_epochs=-1, callbacks=[StopAt(7)])
    trainer.fit(Bare(), numbers(2))
    assert (trainer.global_step, trainer.current_epoch) == (7, 4)


@pytest.mark.parametrize("max_time", [timedelta(0), {"seconds": 0}, "00:00:00:00"])
def test_max_time_of_nothing_ends_after_the_first_batch(max_time: Any) -> None:
    trainer = quiet(max_time=max_time)
    trainer.fit(Bare(), numbers(3))
    assert trainer.global_step <= 1


def test_max_time_means_no_limit_of_epochs() -> None:
    trainer = quiet(max_time={"hours": 1}, callbacks=[StopAt(2)])
    trainer.fit(Bare(), numbers(1))
    assert trainer.max_epochs == -1


def test_should_stop_ends_the_epoch_and_counts_it() -> None:
    recorder = Letters()
    trainer = quiet(max_epochs=5, callbacks=[recorder, StopAt(2)])
    trainer.fit(Net(), numbers(4), numbers(1))
    assert (recorder.text, trainer.current_epoch) == ("<ttVE>", 1)


def test_min_epochs_outlasts_should_stop() -> None:
    assert letters(Bare(), numbers(2), max_epochs=5, min_epochs=2, callbacks=[StopAt(1)]) == "<ttEttE>"


def test_min_steps_outlasts_should_stop() -> None:
    assert letters(Bare(), numbers(2), max_epochs=5, min_steps=3, callbacks=[StopAt(1)]) == "<ttEtE>"


def test_min_steps_implies_one_epoch() -> None:
    assert quiet(min_steps=3).min_epochs == 1


def test_should_stop_is_forgotten_by_the_next_fit() -> None:
    trainer = quiet(max_epochs=2, callbacks=[StopAt(1)])
    trainer.fit(Bare(), numbers(2))
    assert trainer.should_stop
    trainer.fit(Bare(), numbers(2))
    assert (trainer.global_step, trainer.current_epoch) == (3, 2)


def test_second_fit_goes_on_where_the_first_ended() -> None:
    trainer, model = quiet(max_epochs=1), Bare()
    trainer.fit(model, numbers(2))
    trainer.fit_loop.max_epochs = 3
    trainer.fit(model, numbers(2))
    assert (trainer.max_epochs, trainer.current_epoch, trainer.global_step) == (3, 3, 6)


def test_second_fit_at_the_limit_only_checks_the_validation_code() -> None:
    recorder = Letters()
    trainer, model = quiet(max_epochs=1, callbacks=[recorder], num_sanity_val_steps=1), Net()
    trainer.fit(model, numbers(2), numbers(2))
    trainer.fit(model, numbers(2), numbers(2))
    assert recorder.text == "v<ttVE>v"


@pytest.mark.parametrize(("limit", "n_batches"), [(3, 3), (0.5, 5), (1, 1), (1.0, 10), (20, 10), (0.29, 2), (2.0, 2)])
def test_limit_train_batches_counts_as_int_and_divides_as_float(limit: float, n_batches: int) -> None:
    model, trainer = Net(), quiet(max_epochs=1, limit_train_batches=limit)
    trainer.fit(model, numbers(10))
    assert model.seen["train"] == [[index] for index in range(n_batches)]
    assert trainer.num_training_batches == n_batches


def test_limit_train_batches_of_zero_trains_nothing() -> None:
    assert letters(Net(), numbers(2), numbers(1), max_epochs=1, limit_train_batches=0) == ""


@pytest.mark.parametrize(("limit", "n_batches"), [(3, 3), (0.5, 5), (1, 1), (20, 10)])
def test_limits_of_evaluations_hold_for_each_loader(limit: float, n_batches: int) -> None:
    model = TwoLoaders()
    trainer = quiet(limit_val_batches=limit, limit_test_batches=limit, limit_predict_batches=limit)
    trainer.validate(model, [numbers(10), numbers(10)], verbose=False)
    trainer.test(model, [numbers(10), numbers(10)], verbose=False)
    predictions = trainer.predict(model, [numbers(10), numbers(10)])
    assert model.n_seen == {"validation": [n_batches] * 2, "test": [n_batches] * 2}
    assert [len(of_loader) for of_loader in predictions or []] == [n_batches] * 2
    assert trainer.num_val_batches == trainer.num_test_batches == trainer.num_predict_batches == [n_batches] * 2


class TwoLoaders(Net):
    def __init__(self) -> None:
        super().__init__()
        self.n_seen = {"validation": [0, 0], "test": [0, 0]}

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.n_seen["validation"][dataloader_idx] += 1

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.n_seen["test"][dataloader_idx] += 1

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return batch


def test_limit_val_batches_of_zero_skips_validation_and_its_check() -> None:
    assert letters(Net(), numbers(2), numbers(1), max_epochs=1, limit_val_batches=0, num_sanity_val_steps=2) == "<ttE>"


def test_evaluations_limited_to_nothing_return_nothing() -> None:
    trainer = quiet(limit_val_batches=0, limit_test_batches=0, limit_predict_batches=0)
    assert trainer.validate(Net(), numbers(2)) == []
    assert trainer.test(Net(), numbers(2)) == []
    assert trainer.predict(Net(), numbers(2)) is None


@pytest.mark.parametrize("stage", ["train", "val", "test", "predict"])
def test_fraction_that_leaves_no_batch_is_an_error_that_names_it(stage: str) -> None:
    trainer = quiet(max_epochs=1, **{f"limit_{stage}_batches": 0.1})
    run = {"train": trainer.fit, "val": trainer.validate, "test": trainer.test, "predict": trainer.predict}[stage]
    with pytest.raises(MisconfigurationException, match=rf"limit_{stage}_batches=0\.1 of 3 batches"):
        run(Net(), numbers(3))


def test_fraction_of_a_loader_without_length_is_an_error() -> None:
    with pytest.raises(MisconfigurationException, match=r"limit_train_batches=0\.5 is a fraction"):
        quiet(max_epochs=1, limit_train_batches=0.5).fit(Bare(), stream(4))


def test_accumulation_updates_once_a_window_and_at_the_end_of_the_epoch() -> None:
    steps: list[int] = []

    class Count(Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            steps.append(trainer.global_step)

    quiet(max_epochs=2, accumulate_grad_batches=2, callbacks=[Count()]).fit(Bare(), numbers(3))
    assert steps == [0, 1, 2, 2, 3, 4]


def test_accumulation_of_a_loader_without_length_updates_at_its_end() -> None:
    trainer = quiet(max_epochs=1, accumulate_grad_batches=2)
    trainer.fit(Bare(), stream(3))
    assert trainer.global_step == 2


def test_estimated_stepping_batches_is_the_number_of_steps_that_a_fit_makes() -> None:
    trainer = quiet(max_epochs=3, accumulate_grad_batches=2)
    trainer.fit(Bare(), numbers(5))
    assert trainer.estimated_stepping_batches == trainer.global_step == 9


@pytest.mark.parametrize(
    ("arguments", "loader", "expected"),
    [
        ({"max_epochs": 2}, numbers(3), 6),
        ({"max_epochs": 2, "max_steps": 4}, numbers(3), 4),
        ({"max_steps": 4}, numbers(3), 4),
        ({"max_epochs": -1, "max_steps": 4}, numbers(3), 4),
        ({"max_epochs": 2, "limit_train_batches": 2}, numbers(3), 4),
        ({"max_epochs": 2, "accumulate_grad_batches": 4}, numbers(6), 4),
        ({"max_epochs": 1, "max_steps": 4}, stream(3), 4),
        ({"max_epochs": 1}, stream(3), -1),
        ({"max_epochs": 2, "limit_train_batches": 2}, stream(3), 4),
        ({"max_epochs": -1, "max_time": {"seconds": 0}}, numbers(3), math.inf),
    ],
)
def test_estimated_stepping_batches_is_known_in_configure_optimizers(
    arguments: dict[str, Any], loader: Any, expected: float
) -> None:
    class Asks(Bare):
        def configure_optimizers(self) -> Any:
            self.found = self.trainer.estimated_stepping_batches
            return super().configure_optimizers()

    model = Asks()
    quiet(**arguments).fit(model, loader)
    assert model.found == expected


def test_estimated_stepping_batches_asks_for_the_training_loader_once() -> None:
    class Asks(Bare):
        n_asked = 0

        def train_dataloader(self) -> Any:
            self.n_asked += 1
            return numbers(2)

        def configure_optimizers(self) -> Any:
            steps = self.trainer.estimated_stepping_batches
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            return [optimizer], [torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, steps)]

        def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
            pass

    model = Asks()
    with pytest.warns(UserWarning, match="OneCycleLR"):
        quiet(max_epochs=2).fit(model)
    assert model.n_asked == 1
