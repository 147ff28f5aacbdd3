"""Every form in which loaders come: without length, several at once, combined, nested, several for evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from tests.trainer.conftest import Bare, Net, Numbers, Stream, letters, numbers, quiet, stream
from torch.utils.data import DataLoader

from fulgur import Callback, CombinedLoader
from fulgur.errors import MisconfigurationException, PossibleUserWarning


class Batches(Bare):
    """Keeps every training batch with the tensors replaced by their first number."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[Any] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.batches.append(_numbers_in(batch))
        return self.layer.weight.sum() * 1e-3


def _numbers_in(batch: Any) -> Any:
    if isinstance(batch, torch.Tensor):
        return int(batch.flatten()[0])
    if isinstance(batch, dict):
        return {key: _numbers_in(value) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*map(_numbers_in, batch))
    return type(batch)(map(_numbers_in, batch)) if isinstance(batch, (list, tuple)) else batch


def batches_of(loaders: Any, **kwargs: Any) -> list[Any]:
    model = Batches()
    quiet(**{"max_epochs": 1, **kwargs}).fit(model, loaders)
    return model.batches


# -------------------------------------------------------------------------------------------------------- no length


class Lasts(Callback):
    """Notes is_last_batch in three hooks of each training batch."""

    def __init__(self) -> None:
        self.starts: list[bool] = []
        self.ends: list[bool] = []

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        self.starts.append(trainer.is_last_batch)

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        self.ends.append(trainer.is_last_batch)


@pytest.mark.parametrize("loader", [numbers(3), stream(3), CombinedLoader([stream(3), numbers(5)])])
def test_is_last_batch_is_known_in_the_last_batch(loader: Any) -> None:
    lasts = Lasts()
    quiet(max_epochs=2, callbacks=[lasts]).fit(Batches(), loader)
    assert lasts.starts == lasts.ends == [False, False, True] * 2


def test_is_last_batch_of_a_limited_loader_without_length() -> None:
    lasts = Lasts()
    quiet(max_epochs=1, limit_train_batches=2, callbacks=[lasts]).fit(Batches(), stream(5))
    assert lasts.starts == [False, True]


def test_loader_without_length_is_read_one_batch_ahead_and_no_further() -> None:
    drawn: list[int] = []
    source = Stream(4)

    class Drawn(Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            drawn.append(source.n_drawn)

    quiet(max_epochs=1, callbacks=[Drawn()]).fit(Batches(), DataLoader(source, batch_size=1))
    assert drawn == [2, 3, 4, 4]


def test_limited_loader_without_length_is_not_read_beyond_the_limit() -> None:
    source = Stream(9)
    quiet(max_epochs=1, limit_train_batches=2).fit(Batches(), DataLoader(source, batch_size=1))
    assert source.n_drawn == 2


def test_loader_with_length_is_not_read_ahead() -> None:
    drawn: list[int] = []
    asked: list[int] = []

    class Counting(Numbers):
        def __getitem__(self, index: int) -> torch.Tensor:
            asked.append(index)
            return super().__getitem__(index)

    class Drawn(Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            drawn.append(len(asked))

    quiet(max_epochs=1, callbacks=[Drawn()]).fit(Batches(), DataLoader(Counting(3), batch_size=1))
    assert drawn == [1, 2, 3]


def test_number_of_batches_is_infinite_without_length_and_the_limit_with_one() -> None:
    trainer = quiet(max_epochs=1)
    trainer.fit(Net(), stream(3), stream(2))
    assert (trainer.num_training_batches, trainer.num_val_batches) == (float("inf"), [float("inf")])
    trainer = quiet(max_epochs=1, limit_train_batches=2, limit_val_batches=1)
    trainer.fit(Net(), stream(3), stream(2))
    assert (trainer.num_training_batches, trainer.num_val_batches) == (2, [1])


def test_evaluations_take_a_loader_without_length() -> None:
    model, trainer = Net(), quiet()
    trainer.validate(model, stream(3), verbose=False)
    trainer.test(model, stream(2), verbose=False)
    assert trainer.predict(model, stream(4), return_predictions=False) is None
    assert {stage: len(seen) for stage, seen in model.seen.items()} == {
        "train": 0,
        "validation": 3,
        "test": 2,
        "predict": 4,
    }


def test_own_iterable_is_a_loader() -> None:
    class Own:
        def __iter__(self) -> Iterator[torch.Tensor]:
            yield torch.zeros(1, 2)
            yield torch.ones(1, 2)

    assert batches_of(Own(), max_epochs=2) == [0, 1, 0, 1]


def test_loader_that_is_shorter_than_it_says_ends_the_epoch() -> None:
    class Short(Stream):
        def __len__(self) -> int:
            return 5

    class Lies(list[Any]):
        def __len__(self) -> int:
            return 5

    lies = Lies(torch.full((1, 2), float(index)) for index in range(3))
    assert letters(Net(), lies, numbers(1), max_epochs=2) == "<tttVEtttVE>"


def test_none_instead_of_a_batch_is_skipped_with_a_warning() -> None:
    with pytest.warns(PossibleUserWarning, match="None instead of a batch"):
        assert batches_of([torch.zeros(1, 2), None, torch.ones(1, 2)]) == [0, 1]


# ------------------------------------------------------------------------------------------------ several for training


class Pair(NamedTuple):
    left: Any
    right: Any


def test_list_of_batches_is_one_loader() -> None:
    pairs = [(torch.zeros(1, 2), torch.zeros(1)), (torch.ones(1, 2), torch.ones(1))]
    assert batches_of([torch.zeros(1, 2), torch.ones(1, 2)]) == [0, 1]
    assert batches_of(pairs) == [(0, 0), (1, 1)]
    assert batches_of([{"x": torch.zeros(1, 2)}, {"x": torch.ones(1, 2)}]) == [{"x": 0}, {"x": 1}]


@pytest.mark.parametrize(
    ("loaders", "expected"),
    [
        ([numbers(2), numbers(3)], [[0, 0], [1, 1], [0, 2]]),
        ((numbers(2), numbers(3)), [(0, 0), (1, 1), (0, 2)]),
        ({"a": numbers(2), "b": numbers(3)}, [{"a": 0, "b": 0}, {"a": 1, "b": 1}, {"a": 0, "b": 2}]),
        ([numbers(2)], [[0], [1]]),
        (Pair(numbers(1), numbers(2)), [Pair(0, 0), Pair(0, 1)]),
        (
            {"a": [numbers(1), numbers(2)], "b": {"c": numbers(1)}},
            [{"a": [0, 0], "b": {"c": 0}}, {"a": [0, 1], "b": {"c": 0}}],
        ),
    ],
)
def test_several_loaders_run_in_step_and_shorter_ones_again(loaders: Any, expected: list[Any]) -> None:
    assert batches_of(loaders) == expected


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("min_size", [[0, 0], [1, 1]]),
        ("max_size_cycle", [[0, 0], [1, 1], [0, 2]]),
        ("max_size", [[0, 0], [1, 1], [None, 2]]),
    ],
)
def test_combined_loader_of_the_user_runs_in_its_mode(mode: Any, expected: list[Any]) -> None:
    assert batches_of(CombinedLoader([numbers(2), numbers(3)], mode), max_epochs=2) == expected * 2


def test_combined_loader_in_sequence_cannot_be_trained_on() -> None:
    with pytest.raises(ValueError, match="mode 'sequential' cannot be trained on"):
        batches_of(CombinedLoader([numbers(1), numbers(1)], "sequential"))


def test_mode_of_1x_combines_the_loaders() -> None:
    assert batches_of([numbers(1), numbers(3)], multiple_trainloader_mode="min_size") == [[0, 0]]


def test_several_loaders_are_limited_together() -> None:
    assert batches_of([numbers(2), numbers(8)], limit_train_batches=0.25) == [[0, 0], [1, 1]]


def test_train_dataloader_has_the_structure_that_was_given() -> None:
    loaders = {"a": numbers(2), "b": [numbers(1), numbers(3)]}
    trainer = quiet(max_epochs=1)
    trainer.fit(Batches(), loaders)
    assert trainer.train_dataloader == loaders
    assert trainer.num_training_batches == 3


def test_train_dataloader_is_the_loader_that_was_given() -> None:
    loader, combined = numbers(1), CombinedLoader([numbers(1)])
    trainer = quiet(max_epochs=1)
    assert trainer.train_dataloader is None
    trainer.fit(Batches(), loader)
    assert trainer.train_dataloader is loader
    quiet_too = quiet(max_epochs=1)
    quiet_too.fit(Batches(), combined)
    assert quiet_too.train_dataloader is combined


def test_empty_loader_is_an_error_that_says_why() -> None:
    with pytest.raises(MisconfigurationException, match="3 samples, batch_size=4 and drop_last=True"):
        batches_of(DataLoader(Numbers(3), batch_size=4, drop_last=True))


def test_set_epoch_of_samplers_is_called_before_each_epoch() -> None:
    class Epochs(torch.utils.data.SequentialSampler):
        def __init__(self, n: int) -> None:
            super().__init__(Numbers(n))
            self.epochs: list[int] = []

        def set_epoch(self, epoch: int) -> None:
            self.epochs.append(epoch)

    train, in_batches, val = Epochs(2), Epochs(2), Epochs(1)
    loaders = [
        DataLoader(Numbers(2), sampler=train),
        DataLoader(Numbers(2), batch_sampler=torch.utils.data.BatchSampler(in_batches, 1, False)),
    ]
    quiet(max_epochs=2).fit(Validates(), loaders, DataLoader(Numbers(1), sampler=val))
    assert (train.epochs, in_batches.epochs, val.epochs) == ([0, 1], [0, 1], [0, 1])


class Validates(Batches):
    def validation_step(self, batch: Any, batch_idx: int) -> None: ...


# ------------------------------------------------------------------------------------------------- several to evaluate


class Evaluated(Bare):
    """Keeps ``(dataloader_idx, batch_idx, sample)`` of every evaluation batch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Any] = []

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.found.append((dataloader_idx, batch_idx, _numbers_in(batch)))

    test_step = predict_step = validation_step


ONE_AFTER_THE_OTHER = [(0, 0, 0), (0, 1, 1), (1, 0, 0)]


@pytest.mark.parametrize(
    "loaders",
    [
        [numbers(2), numbers(1)],
        (numbers(2), numbers(1)),
        {"a": numbers(2), "b": numbers(1)},
        {"a": [numbers(2)], "b": {"c": numbers(1)}},
        CombinedLoader([numbers(2), numbers(1)], "sequential"),
        CombinedLoader({"a": numbers(2), "b": numbers(1)}, "sequential"),
    ],
)
def test_evaluations_run_loaders_one_after_the_other(loaders: Any) -> None:
    trainer = quiet(max_epochs=1)
    for run in (trainer.validate, trainer.test, trainer.predict):
        model = Evaluated()
        run(model, loaders)
        assert model.found == ONE_AFTER_THE_OTHER
    model = Evaluated()
    trainer.fit(model, numbers(1), loaders)
    assert model.found == ONE_AFTER_THE_OTHER


def test_evaluation_may_combine_its_loaders_in_step() -> None:
    model = Evaluated()
    quiet().validate(model, CombinedLoader([numbers(2), numbers(3)], "min_size"))
    assert model.found == [(0, 0, [0, 0]), (0, 1, [1, 1])]


def test_prediction_cannot_combine_its_loaders_in_step() -> None:
    with pytest.raises(ValueError, match="sequential"):
        quiet().predict(Evaluated(), CombinedLoader([numbers(2), numbers(3)], "min_size"))


def test_evaluation_of_a_list_of_batches_is_one_loader() -> None:
    model = Evaluated()
    quiet().test(model, [torch.zeros(1, 2), torch.ones(1, 2)])
    assert model.found == [(0, 0, 0), (0, 1, 1)]


def test_empty_loader_among_several_is_an_error_but_for_predict() -> None:
    with pytest.raises(MisconfigurationException, match=r"empty loader \(number 0\)"):
        quiet().test(Evaluated(), [numbers(0), numbers(1)])
    model = Evaluated()
    quiet().predict(model, [numbers(0), numbers(1)])
    assert model.found == [(1, 0, 0)]


def test_several_loaders_need_a_step_that_tells_them_apart() -> None:
    with pytest.raises(RuntimeError, match="no argument dataloader_idx"):
        quiet().test(Net(), [numbers(1), numbers(1)])


def test_several_validation_loaders_of_the_module() -> None:
    class Own(Evaluated):
        def val_dataloader(self) -> Any:
            return [numbers(2), numbers(1)]

    model, trainer = Own(), quiet(max_epochs=1)
    trainer.fit(model, numbers(1))
    assert model.found == ONE_AFTER_THE_OTHER
    assert trainer.num_val_batches == [2, 1]
    assert [len(loader) for loader in trainer.val_dataloaders] == [2, 1]


def test_evaluation_keeps_the_structure_of_the_loaders() -> None:
    loaders, trainer = {"a": numbers(2), "b": numbers(1)}, quiet()
    trainer.test(Evaluated(), loaders)
    assert trainer.test_dataloaders == loaders
