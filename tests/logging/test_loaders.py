"""Several evaluation loaders: suffixes, and one dict of results for each."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fulgur.errors import MisconfigurationException


def evaluate(trainer: Any, prefix: str, module: Any, loaders: Any) -> Any:
    entry = trainer.validate if prefix == "validation" else trainer.test
    return entry(module, loaders, verbose=False)


def log_mean(name: str = "v", **options: Any) -> Any:
    def step(self: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log(name, batch.mean() + 10.0 * dataloader_idx, **options)

    return step


@pytest.mark.parametrize("prefix", ["validation", "test"])
def test_each_loader_has_its_own_dict_with_suffixed_keys(
    prefix: str, tiny: Any, make_trainer: Any, loader: Any, recorder: Any
) -> None:
    trainer = make_trainer()
    results = evaluate(trainer, prefix, tiny(**{f"{prefix}_step": log_mean()}), [loader(5, 2), loader(3)])
    assert results == [{"v/dataloader_idx_0": 2.0}, {"v/dataloader_idx_1": 11.0}]
    assert recorder.rows == [({"v/dataloader_idx_0": 2.0, "v/dataloader_idx_1": 11.0, "epoch": 0}, 0)]
    assert trainer.callback_metrics == {"v/dataloader_idx_0": 2.0, "v/dataloader_idx_1": 11.0}


def test_suffix_stands_after_step_and_epoch(tiny: Any, make_trainer: Any, loader: Any, recorder: Any) -> None:
    trainer = make_trainer()
    module = tiny(validation_step=log_mean(on_step=True, prog_bar=True))
    results = evaluate(trainer, "validation", module, [loader(2), loader(1)])
    assert results == [{"v_epoch/dataloader_idx_0": 0.5}, {"v_epoch/dataloader_idx_1": 10.0}]
    assert recorder.rows == [
        ({"v_step/dataloader_idx_0": 0.0}, 0),
        ({"v_step/dataloader_idx_0": 1.0}, 1),
        ({"v_step/dataloader_idx_1": 10.0}, 0),
        ({"v_epoch/dataloader_idx_0": 0.5, "v_epoch/dataloader_idx_1": 10.0, "epoch": 0}, 0),
    ]
    assert set(trainer.callback_metrics) == {
        "v/dataloader_idx_0",
        "v_epoch/dataloader_idx_0",
        "v/dataloader_idx_1",
        "v_epoch/dataloader_idx_1",
    }
    assert trainer.progress_bar_metrics == {
        "v_step/dataloader_idx_0": 1.0,
        "v_step/dataloader_idx_1": 10.0,
        "v_epoch/dataloader_idx_0": 0.5,
        "v_epoch/dataloader_idx_1": 10.0,
    }


@pytest.mark.parametrize("hook", ["on_validation_batch_start", "on_validation_batch_end"])
def test_batch_hooks_have_suffixes_too(hook: str, tiny: Any, make_trainer: Any, loader: Any) -> None:
    def log_index(self: Any, *args: Any) -> None:
        self.log("i", float(args[-1]))

    results = evaluate(make_trainer(), "validation", tiny(**{hook: log_index}), [loader(2), loader(2)])
    assert results == [{"i/dataloader_idx_0": 0.0}, {"i/dataloader_idx_1": 1.0}]


def test_one_loader_in_a_list_has_no_suffix(tiny: Any, make_trainer: Any, loader: Any) -> None:
    results = evaluate(make_trainer(), "validation", tiny(validation_step=log_mean()), [loader(2)])
    assert results == [{"v": 0.5}]


def test_loaders_of_a_dict_are_told_apart_by_their_place(tiny: Any, make_trainer: Any, loader: Any) -> None:
    loaders = {"easy": loader(2), "hard": loader(3)}
    results = evaluate(make_trainer(), "validation", tiny(validation_step=log_mean()), loaders)
    assert results == [{"v/dataloader_idx_0": 0.5}, {"v/dataloader_idx_1": 11.0}]


def test_names_of_the_users_own_stand_in_their_loaders_results_alone(
    tiny: Any, make_trainer: Any, loader: Any, recorder: Any
) -> None:
    names = ("easy", "hard")

    def validation_step(self: Any, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
        self.log(f"{names[dataloader_idx]}/v", batch.mean(), add_dataloader_idx=False)

    trainer = make_trainer()
    results = evaluate(trainer, "validation", tiny(validation_step=validation_step), [loader(2), loader(3)])
    assert results == [{"easy/v": 0.5}, {"hard/v": 1.0}]
    assert recorder.rows == [({"easy/v": 0.5, "hard/v": 1.0, "epoch": 0}, 0)]


def test_one_name_without_suffix_for_two_loaders_is_refused(tiny: Any, make_trainer: Any, loader: Any) -> None:
    module = tiny(validation_step=log_mean(add_dataloader_idx=False))
    with pytest.raises(MisconfigurationException, match="for two loaders in validation_step"):
        evaluate(make_trainer(), "validation", module, [loader(2), loader(2)])


def test_values_of_the_epochs_end_stand_in_every_loaders_results(tiny: Any, make_trainer: Any, loader: Any) -> None:
    def on_validation_epoch_end(self: Any) -> None:
        self.log("all", 7.0)

    module = tiny(validation_step=log_mean(), on_validation_epoch_end=on_validation_epoch_end)
    results = evaluate(make_trainer(), "validation", module, [loader(2), loader(2)])
    assert results == [{"v/dataloader_idx_0": 0.5, "all": 7.0}, {"v/dataloader_idx_1": 10.5, "all": 7.0}]


def test_epoch_end_hook_reads_the_values_of_all_loaders(tiny: Any, make_trainer: Any, loader: Any) -> None:
    seen = []

    def on_validation_epoch_end(self: Any) -> None:
        seen.append({key: value.item() for key, value in self.trainer.callback_metrics.items()})

    module = tiny(validation_step=log_mean(), on_validation_epoch_end=on_validation_epoch_end)
    evaluate(make_trainer(), "validation", module, [loader(2), loader(2)])
    assert seen == [{"v/dataloader_idx_0": 0.5, "v/dataloader_idx_1": 10.5}]


def test_value_logged_for_one_loader_only_stands_in_its_results_alone(
    tiny: Any, make_trainer: Any, loader: Any
) -> None:
    def validation_step(self: Any, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
        if dataloader_idx == 1:
            self.log("v", batch.mean())

    results = evaluate(make_trainer(), "validation", tiny(validation_step=validation_step), [loader(2), loader(2)])
    assert results == [{}, {"v/dataloader_idx_1": 0.5}]


def test_axis_of_values_per_batch_counts_each_loader_on_through_the_epochs(
    tiny: Any, make_trainer: Any, loader: Any, recorder: Any
) -> None:
    module = tiny(validation_step=log_mean(on_step=True, on_epoch=False))
    make_trainer(max_epochs=2).fit(module, loader(1), [loader(2), loader(1)])
    zero, one = "v/dataloader_idx_0", "v/dataloader_idx_1"
    assert [(set(row), step) for row, step in recorder.rows] == [
        ({zero}, 0),
        ({zero}, 1),
        ({one}, 0),
        ({zero}, 2),
        ({zero}, 3),
        ({one}, 1),
    ]


def test_sanity_check_leaves_no_batch_value_for_the_first_validation(
    tiny: Any, make_trainer: Any, loader: Any, recorder: Any
) -> None:
    def validation_step(self: Any, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
        self.log("v", float(self.trainer.sanity_checking), on_step=True, on_epoch=False)

    make_trainer().fit(tiny(validation_step=validation_step), loader(1), [loader(2), loader(2)])
    assert [set(row.values()) for row, _ in recorder.rows] == [{0.0}] * 4


def test_several_loaders_in_fit_can_be_monitored_by_their_keys(tiny: Any, make_trainer: Any, loader: Any) -> None:
    from fulgur.callbacks import EarlyStopping

    stopper = EarlyStopping("v/dataloader_idx_1", patience=1)
    trainer = make_trainer(callbacks=stopper, max_epochs=5)
    trainer.fit(tiny(validation_step=log_mean()), loader(1), [loader(2), loader(2)])
    assert trainer.current_epoch == 2
    assert stopper.best_score == torch.tensor(10.5)
