"""When validation, saving and the end of an epoch come, for each way to set their intervals.

T is a training step, V( … ) a validation run, S a save by the default ModelCheckpoint, EE the module's epoch end.
Saves come after the module's hook of the same name, so that a file holds what the module does there (decision 0009).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import torch
from torch.utils.data import IterableDataset

LETTERS = {
    "M.training_step": "T",
    "M.on_validation_start": "V(",
    "M.on_validation_end": ")",
    "M.on_save_checkpoint": "S",
    "M.on_train_epoch_end": "EE",
}


@pytest.fixture
def spelled(build: Any, tape: Any, kit: Any) -> Callable[..., str]:
    """Fits with the Trainer arguments given and returns the letters."""

    def fit(n_train: Any, **arguments: Any) -> str:
        run = build(enable_checkpointing=True, **arguments)
        loaders = n_train if not isinstance(n_train, int) else kit.loader(n_train)
        run.trainer.fit(kit.Module(tape), loaders, kit.loader(2))
        fit.trainer = run.trainer  # type: ignore[attr-defined]
        return str(tape.spelled(LETTERS))

    return fit


@pytest.mark.parametrize(
    ("n_train", "arguments", "expected"),
    [
        (2, {}, "T T V( ) EE S"),
        (4, {"val_check_interval": 0.5}, "T T V( ) S T T V( ) S EE"),
        (4, {"val_check_interval": 3, "max_epochs": 2}, "T T T V( ) S T EE T T T V( ) S T EE"),
        (
            4,
            {"val_check_interval": 3, "check_val_every_n_epoch": None, "max_epochs": 2},
            "T T T V( ) S T EE T T V( ) S T T EE",
        ),
        (2, {"check_val_every_n_epoch": 2, "max_epochs": 3}, "T T EE T T V( ) S EE T T EE"),
        (4, {"overfit_batches": 1, "max_epochs": 2}, "T V( ) EE S T V( ) EE S"),
        (4, {"fast_dev_run": True}, "T V( ) EE"),
        (4, {"fast_dev_run": 2}, "T T V( ) EE"),
        (2, {"max_steps": 3, "max_epochs": None}, "T T V( ) EE S T EE S"),
        (2, {"limit_val_batches": 0}, "T T EE S"),
        (4, {"limit_train_batches": 2}, "T T V( ) EE S"),
        (4, {"limit_train_batches": 0.5, "val_check_interval": 0.5}, "T V( ) S T V( ) S EE"),
        (4, {"val_check_interval": 0.3}, "T V( ) S T V( ) S T V( ) S T V( ) S EE"),
        (4, {"accumulate_grad_batches": 2, "max_steps": 1}, "T T EE S"),
        (2, {"val_check_interval": timedelta(hours=1)}, "T T EE"),
        (2, {"val_check_interval": timedelta(0)}, "T V( ) S T V( ) S EE"),
    ],
    ids=str,
)
def test_sequence(spelled: Any, n_train: int, arguments: dict[str, Any], expected: str) -> None:
    assert spelled(n_train, **arguments) == expected


def test_epoch_cut_by_max_steps_counts_as_completed(spelled: Any) -> None:
    spelled(2, max_steps=3, max_epochs=None)
    assert (spelled.trainer.current_epoch, spelled.trainer.global_step) == (2, 3)


def test_overfitting_validates_on_the_validation_loader(build: Any, tape: Any, kit: Any) -> None:
    run = build(overfit_batches=1)
    run.trainer.fit(kit.Module(tape), kit.loader(4), val := kit.loader(4))
    assert run.trainer.val_dataloaders.dataset is val.dataset
    assert run.trainer.num_val_batches == [1]


def test_fast_dev_run_has_no_sanity_check_and_logs_and_saves_nothing(build: Any, tape: Any, kit: Any) -> None:
    run = build(fast_dev_run=True, num_sanity_val_steps=2, enable_checkpointing=True)
    run.trainer.fit(kit.ModuleBesideData(tape), datamodule=kit.Data(tape, n_train=4))
    assert tape.only("D.train_dataloader", "D.val_dataloader", "C.on_sanity_check_start", *LETTERS) == [
        "D.train_dataloader",
        "D.val_dataloader",
        "M.training_step",
        "M.on_validation_start",
        "M.on_validation_end",
        "M.on_train_epoch_end",
    ]
    assert [event for event in tape.events if event.startswith("L.")] == []
    assert type(run.trainer.logger).__name__ == "DummyLogger"


def test_no_sanity_check_without_validation_batches(build: Any, tape: Any, kit: Any) -> None:
    build(limit_val_batches=0, num_sanity_val_steps=2).fit(kit.Module(tape))
    assert tape.only("C.on_sanity_check_start", "M.validation_step") == []


def test_sanity_check_runs_so_many_batches_of_each_loader(build: Any, tape: Any, kit: Any) -> None:
    class Module(kit.Module):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.tape.add(f"validation_step({batch_idx}, {dataloader_idx})")

    run = build(num_sanity_val_steps=2, check_val_every_n_epoch=2)
    run.trainer.fit(Module(tape), kit.loader(1), [kit.loader(3), kit.loader(1)])
    assert [e for e in tape.events if e.startswith("validation_step")] == [
        "validation_step(0, 0)",
        "validation_step(1, 0)",
        "validation_step(0, 1)",
    ]


def test_reloading_asks_for_loaders_before_each_epoch_and_each_validation(build: Any, tape: Any, kit: Any) -> None:
    run = build(reload_dataloaders_every_n_epochs=1, max_epochs=2)
    run.trainer.fit(kit.ModuleBesideData(tape), datamodule=kit.Data(tape))
    epoch = ["M.on_train_epoch_start", "M.on_validation_start", "M.on_train_epoch_end"]
    assert tape.only("D.train_dataloader", "D.val_dataloader", *epoch) == [
        "D.train_dataloader",
        "D.val_dataloader",
        *epoch,
        "D.train_dataloader",
        "M.on_train_epoch_start",
        "D.val_dataloader",
        "M.on_validation_start",
        "M.on_train_epoch_end",
    ]


def test_reloading_every_second_epoch(build: Any, tape: Any, kit: Any) -> None:
    run = build(reload_dataloaders_every_n_epochs=2, max_epochs=4)
    run.trainer.fit(kit.ModuleBesideData(tape), datamodule=kit.Data(tape))
    assert tape.spelled(LETTERS | {"D.train_dataloader": "train", "D.val_dataloader": "val"}) == (
        "train val T T V( ) EE T T V( ) EE train T T val V( ) EE T T V( ) EE"
    )


def test_interval_longer_than_the_epoch_is_an_error_after_the_sanity_check(build: Any, tape: Any, kit: Any) -> None:
    run = build(val_check_interval=5, num_sanity_val_steps=1)
    with pytest.raises(ValueError, match="val_check_interval=5"):
        run.fit(kit.Module(tape), n_train=4)
    assert tape.only("M.validation_step", "C.on_sanity_check_end", "C.on_train_start") == [
        "M.validation_step",
        "C.on_sanity_check_end",
    ]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(torch.ones(3, 1, 2))


def stream() -> Any:
    return torch.utils.data.DataLoader(Stream(), collate_fn=lambda rows: [torch.stack(rows)])


def test_unsized_loader_validates_after_its_last_batch(spelled: Any) -> None:
    assert spelled(stream()) == "T T T V( ) EE S"


def test_unsized_loader_validates_every_n_batches_and_at_its_end(spelled: Any) -> None:
    assert spelled(stream(), val_check_interval=2) == "T T V( ) S T V( ) S EE"


def test_unsized_loader_is_cut_by_a_limit(spelled: Any) -> None:
    assert spelled(stream(), limit_train_batches=2, max_epochs=2) == "T T V( ) EE S T T V( ) EE S"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, "T T V( ) EE"),
        ({"min_epochs": 2}, "T T T T V( ) EE T T T T V( ) EE"),
        ({"min_steps": 3, "min_epochs": 0}, "T T T V( ) EE"),
        ({"min_steps": 3}, "T T T T V( ) EE"),  # with min_steps, min_epochs is 1
        ({"min_steps": 6}, "T T T T V( ) EE T T V( ) EE"),
    ],
    ids=str,
)
def test_should_stop_validates_and_ends_the_epoch_once_the_minimums_are_met(
    build: Any, tape: Any, kit: Any, arguments: dict[str, Any], expected: str
) -> None:
    class Stopping(kit.Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            if trainer.global_step == 2:
                trainer.should_stop = True

    run = build(callbacks=[Stopping(tape)], max_epochs=3, **arguments)
    run.fit(kit.Module(tape), n_train=4)
    assert tape.spelled(LETTERS) == expected
    assert run.trainer.current_epoch == expected.count("EE")
