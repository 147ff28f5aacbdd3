from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from fulgur.callbacks import GradientAccumulationScheduler
from fulgur.errors import MisconfigurationException

MODULE: Any = SimpleNamespace(automatic_optimization=True)


def make_trainer(epoch: int = 0, accumulate: int = 1) -> Any:
    return SimpleNamespace(current_epoch=epoch, accumulate_grad_batches=accumulate, strategy=None)


def test_factor_changes_at_the_epochs_listed() -> None:
    callback = GradientAccumulationScheduler({1: 2, 2: 4})
    trainer = make_trainer()
    seen = []
    for trainer.current_epoch in range(4):
        callback.on_train_epoch_start(trainer, MODULE)
        seen.append(trainer.accumulate_grad_batches)
    assert seen == [1, 2, 4, 4]


def test_epoch_resumed_midway_has_its_factor() -> None:
    trainer = make_trainer(epoch=3)
    GradientAccumulationScheduler({2: 4}).on_train_start(trainer, MODULE)
    assert trainer.accumulate_grad_batches == 4


def test_second_fit_is_not_taken_for_a_conflict() -> None:
    callback = GradientAccumulationScheduler({0: 2})
    trainer = make_trainer()
    for _ in range(2):
        callback.setup(trainer, MODULE, "fit")
        callback.on_train_start(trainer, MODULE)
        callback.teardown(trainer, MODULE, "fit")
    assert trainer.accumulate_grad_batches == 1


def test_factor_given_to_the_trainer_too_is_refused_and_kept() -> None:
    callback = GradientAccumulationScheduler({0: 2})
    trainer = make_trainer(accumulate=2)
    with pytest.raises(ValueError, match="accumulate_grad_batches=2"):
        callback.setup(trainer, MODULE, "fit")
    callback.teardown(trainer, MODULE, "fit")
    assert trainer.accumulate_grad_batches == 2


def test_manual_optimization_is_refused() -> None:
    module: Any = SimpleNamespace(automatic_optimization=False)
    with pytest.raises(RuntimeError, match="automatic_optimization=False"):
        GradientAccumulationScheduler({0: 2}).setup(make_trainer(), module, "fit")


def test_empty_scheduling_is_refused() -> None:
    with pytest.raises(TypeError, match="empty"):
        GradientAccumulationScheduler({})


@pytest.mark.parametrize("scheduling", [{-1: 2}, {"0": 2}, {0: 0}, {0: 1.5}, {1: "2"}])
def test_bad_epoch_or_factor_is_refused(scheduling: Any) -> None:
    with pytest.raises(MisconfigurationException, match="scheduling has"):
        GradientAccumulationScheduler(scheduling)


@pytest.mark.parametrize(("scheduling", "expected"), [({0: 1}, False), ({3: 2}, True)])
def test_going_to_accumulate_tells_whether_any_factor_is_above_one(scheduling: dict[int, int], expected: bool) -> None:
    assert GradientAccumulationScheduler(scheduling).going_to_accumulate_grad_batches() is expected
