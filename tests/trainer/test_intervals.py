"""When a fit validates, checks the validation code, and asks for new loaders."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import torch
from tests.trainer.conftest import Bare, Letters, Net, letters, numbers, quiet, stream

from fulgur import Callback
from fulgur.errors import MisconfigurationException


def sequence(n_train: int, **arguments: Any) -> str:
    return letters(Net(), numbers(n_train), numbers(1), **{"max_epochs": 2, **arguments})


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        (None, "<ttttVEttttVE>"),
        (1.0, "<ttttVEttttVE>"),
        (0.5, "<ttVttVEttVttVE>"),
        (0.01, "<tVtVtVtVEtVtVtVtVE>"),
        (1, "<tVtVtVtVEtVtVtVtVE>"),
        (2, "<ttVttVEttVttVE>"),
        (3, "<tttVtEtttVtE>"),
        (4, "<ttttVEttttVE>"),
        (timedelta(0), "<tVtVtVtVEtVtVtVtVE>"),
        ("00:00:00:00", "<tVtVtVtVEtVtVtVtVE>"),
        ({"days": 1}, "<ttttEttttE>"),
    ],
)
def test_val_check_interval_is_a_fraction_a_count_or_a_time(interval: Any, expected: str) -> None:
    assert sequence(4, val_check_interval=interval) == expected


def test_interval_without_epochs_counts_batches_across_them() -> None:
    assert sequence(4, val_check_interval=3, check_val_every_n_epoch=None) == "<tttVtEttVttE>"


def test_interval_without_epochs_may_be_longer_than_an_epoch() -> None:
    assert sequence(2, val_check_interval=3, check_val_every_n_epoch=None, max_epochs=3) == "<ttEtVtEttVE>"


def test_check_val_every_n_epoch_without_interval_validates_each_epoch() -> None:
    assert sequence(2, check_val_every_n_epoch=None) == "<ttVEttVE>"


def test_check_val_every_n_epoch_leaves_out_epochs() -> None:
    assert sequence(2, check_val_every_n_epoch=2, max_epochs=3) == "<ttEttVEttE>"


def test_check_val_every_n_epoch_and_an_interval_together() -> None:
    assert sequence(2, check_val_every_n_epoch=2, val_check_interval=0.5) == "<ttEtVtVE>"


def test_interval_above_the_epoch_is_an_error_that_names_both() -> None:
    with pytest.raises(ValueError, match="val_check_interval=5 is more than the 4 training batches"):
        sequence(4, val_check_interval=5)


def test_interval_above_the_limited_epoch_is_an_error() -> None:
    with pytest.raises(ValueError, match="val_check_interval=3 is more than the 2 training batches"):
        sequence(4, val_check_interval=3, limit_train_batches=2)


def test_fraction_of_a_loader_without_length_is_an_error() -> None:
    with pytest.raises(MisconfigurationException, match=r"val_check_interval=0\.5 is a fraction"):
        letters(Net(), stream(4), numbers(1), max_epochs=1, val_check_interval=0.5)


def test_loader_without_length_is_validated_after_its_last_batch() -> None:
    assert letters(Net(), stream(3), numbers(1), max_epochs=2) == "<tttVEtttVE>"


def test_loader_without_length_validates_every_so_many_batches_and_at_its_end() -> None:
    assert letters(Net(), stream(3), numbers(1), max_epochs=1, val_check_interval=2) == "<ttVtVE>"


def test_val_check_batch_is_the_interval_in_batches() -> None:
    trainer = quiet(max_epochs=1, val_check_interval=0.5)
    trainer.fit(Net(), numbers(5), numbers(1))
    assert trainer.val_check_batch == 2


# -------------------------------------------------------------------------------------------- the check before training


@pytest.mark.parametrize(("n_steps", "n_batches"), [(None, 2), (0, 0), (1, 1), (2, 2), (-1, 5), (9, 5)])
def test_num_sanity_val_steps_batches_are_checked_before_training(n_steps: int | None, n_batches: int) -> None:
    model = Net()
    quiet(max_steps=0, num_sanity_val_steps=n_steps).fit(model, numbers(1), numbers(5))
    assert model.seen["validation"] == [[index] for index in range(n_batches)]


def test_sanity_check_takes_so_many_batches_of_each_loader() -> None:
    class Counts(Net):
        def __init__(self) -> None:
            super().__init__()
            self.n_seen = [0, 0]

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.n_seen[dataloader_idx] += 1

    model, trainer = Counts(), quiet(max_steps=0, num_sanity_val_steps=2)
    trainer.fit(model, numbers(1), [numbers(3), numbers(1)])
    assert model.n_seen == [2, 1]
    assert trainer.num_sanity_val_batches == [2, 1]


def test_sanity_check_leaves_no_metrics() -> None:
    found: list[Any] = []

    class Look(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            found.extend([dict(trainer.callback_metrics), dict(trainer.logged_metrics)])

    quiet(max_epochs=1, num_sanity_val_steps=2, callbacks=[Look()]).fit(Net(), numbers(1), numbers(2))
    assert found == [{}, {}]


def test_sanity_check_draws_no_random_number_of_the_training() -> None:
    class Draws(Net):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            torch.rand(3)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.seen["train"].append(torch.rand(1).item())
            return super().training_step(batch, batch_idx)

    def drawn(n_steps: int) -> list[Any]:
        torch.manual_seed(1)
        model = Draws()
        quiet(max_epochs=1, limit_val_batches=2, num_sanity_val_steps=n_steps).fit(
            model, numbers(4, shuffle=True), numbers(3, shuffle=True)
        )
        return model.seen["train"]

    assert drawn(0) == drawn(2)


# --------------------------------------------------------------------------------------------------------- new loaders


class Asked(Net):
    """Notes when it is asked for loaders."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def train_dataloader(self) -> Any:
        self.asked.append(f"train {self.current_epoch}")
        return numbers(2)

    def val_dataloader(self) -> Any:
        self.asked.append(f"val {self.current_epoch}")
        return numbers(1)


def test_loaders_are_asked_for_once() -> None:
    model = Asked()
    quiet(max_epochs=3, num_sanity_val_steps=1).fit(model)
    assert model.asked == ["val 0", "train 0"]


def test_reload_dataloaders_every_epoch_asks_again_before_each() -> None:
    model = Asked()
    quiet(max_epochs=3, reload_dataloaders_every_n_epochs=1).fit(model)
    assert model.asked == ["train 0", "val 0", "train 1", "val 1", "train 2", "val 2"]


def test_reload_dataloaders_every_two_epochs_asks_before_every_second() -> None:
    model = Asked()
    quiet(max_epochs=5, reload_dataloaders_every_n_epochs=2).fit(model)
    assert model.asked == ["train 0", "val 0", "train 2", "val 2", "train 4", "val 4"]


def test_reload_counts_validations_where_they_are_rarer_than_epochs() -> None:
    model = Asked()
    quiet(max_epochs=4, reload_dataloaders_every_n_epochs=1, check_val_every_n_epoch=2).fit(model)
    assert model.asked == ["train 0", "train 1", "val 1", "train 2", "train 3", "val 3"]


def test_reloaded_loader_may_have_another_length() -> None:
    class Grows(Bare):
        def train_dataloader(self) -> Any:
            return numbers(self.current_epoch + 1)

    recorder = Letters()
    trainer = quiet(max_epochs=3, reload_dataloaders_every_n_epochs=1, callbacks=[recorder])
    trainer.fit(Grows())
    assert (recorder.text, trainer.num_training_batches) == ("<tEttEtttE>", 3)


def test_loaders_that_were_passed_are_not_asked_for_again() -> None:
    model = Asked()
    quiet(max_epochs=2, reload_dataloaders_every_n_epochs=1).fit(model, numbers(2), numbers(1))
    assert model.asked == []
