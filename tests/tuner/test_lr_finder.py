"""What a learning rate range test does and suggests."""

from __future__ import annotations

import logging
import math
import sys
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from fulgur import LightningModule
from fulgur.callbacks import LearningRateFinder
from fulgur.errors import MisconfigurationException, MissingExtraError, PossibleUserWarning
from fulgur.testing import ManualOptimBoringModel
from fulgur.tuner import Tuner
from fulgur.tuner.lr_finder import LRFinder

CURVATURE = 4.0


class Quadratic(LightningModule):
    """``CURVATURE / 2 * w**2``: the best rate is ``1 / CURVATURE``, and from twice that on nothing is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.lr = 1e-3
        self.double()
        self.w = torch.nn.Parameter(torch.tensor([3.0], dtype=torch.float64))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return CURVATURE / 2 * (self.w**2).sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)

    def train_dataloader(self) -> Any:
        return DataLoader(torch.zeros(10, 1), batch_size=1)


def measured(losses: list[float]) -> LRFinder:
    finder = LRFinder("exponential", 1e-3, 1.0, len(losses))
    finder.results = {"lr": [finder.rate(i) for i in range(len(losses))], "loss": losses}
    return finder


def by_hand(rates: list[float]) -> list[float]:
    """Smoothed losses of gradient descent on the quadratic."""
    w, mean, smoothed = 3.0, 0.0, []
    for step, rate in enumerate(rates, start=1):
        mean = 0.98 * mean + 0.02 * CURVATURE / 2 * w**2
        smoothed.append(mean / (1 - 0.98**step))
        w -= rate * CURVATURE * w
    return smoothed


def test_on_a_quadratic_losses_and_suggestion_are_those_of_gradient_descent_by_hand(make_trainer: Any) -> None:
    model = Quadratic()
    finder = Tuner(make_trainer()).lr_find(model, min_lr=1e-4, max_lr=10.0, num_training=60)
    rates = [1e-4 * 1e5 ** (i / 60) for i in range(60)]
    n = len(finder.results["lr"])
    expected = by_hand(rates[:n])
    assert finder.results["lr"] == pytest.approx(rates[:n])
    assert finder.results["loss"] == pytest.approx(expected, rel=1e-9)
    assert expected[-1] > 4 * min(expected[:-1])
    assert all(loss <= 4 * min(expected[:i]) for i, loss in enumerate(expected[:-1]) if i > 0)
    slopes = [(expected[i + 1] - expected[i - 1]) / 2 for i in range(11, n - 2)]
    assert model.lr == finder.suggestion() == finder.results["lr"][11 + slopes.index(min(slopes))]


def test_the_suggestion_on_a_quadratic_is_near_the_best_rate_and_learns(make_trainer: Any) -> None:
    model = Quadratic()
    finder = Tuner(make_trainer()).lr_find(model, min_lr=1e-4, max_lr=10.0)
    assert 1 / CURVATURE / 30 < finder.suggestion() < 2 / CURVATURE
    make_trainer(max_epochs=20).fit(model)
    assert abs(model.w.item()) < 3e-2


def test_linear_mode_adds_to_the_rate(make_trainer: Any) -> None:
    finder = Tuner(make_trainer()).lr_find(Quadratic(), min_lr=0.01, max_lr=0.11, num_training=10, mode="linear")
    assert finder.results["lr"] == pytest.approx([0.01 + 0.01 * i for i in range(10)])


def test_without_a_threshold_all_steps_run(make_trainer: Any) -> None:
    tuner = Tuner(make_trainer())
    finder = tuner.lr_find(Quadratic(), min_lr=1e-3, max_lr=3.0, num_training=30, early_stop_threshold=None)
    assert len(finder.results["lr"]) == 30


def test_losses_below_zero_do_not_end_the_test(make_trainer: Any) -> None:
    class Negative(Quadratic):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx) - 100

    finder = Tuner(make_trainer()).lr_find(Negative(), min_lr=1e-4, max_lr=0.1, num_training=25)
    assert len(finder.results["lr"]) == 25


def test_an_accumulated_step_counts_once_with_the_mean_of_its_losses(make_trainer: Any) -> None:
    class Counting(Quadratic):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx) * 0 + batch_idx % 2

    trainer = make_trainer(accumulate_grad_batches=2)
    finder = Tuner(trainer).lr_find(Counting(), num_training=8)
    assert finder.results["loss"] == pytest.approx([0.5] * 8)


def test_the_suggestion_is_where_the_loss_falls_fastest() -> None:
    finder = measured([9.0, 1.0, 8.0, 7.9, 7.0, 3.0, 2.8, 2.9])
    assert finder.suggestion(skip_begin=2, skip_end=1) == finder.results["lr"][4]
    assert finder.suggestion(skip_begin=0, skip_end=0) == finder.results["lr"][0]


def test_steps_without_a_finite_loss_do_not_shift_the_suggestion() -> None:
    finder = measured([8.0, math.nan, math.inf, 7.9, 7.0, 3.0, 2.8, 2.9])
    assert finder.suggestion(skip_begin=0, skip_end=0) == finder.results["lr"][4]


def test_too_few_losses_suggest_nothing_and_say_so(caplog: Any) -> None:
    with caplog.at_level(logging.ERROR):
        assert measured([1.0] * 12).suggestion() is None
    assert "of 12 steps, without the first 10 and the last 1, 1 have a finite loss" in caplog.text


def test_the_rate_goes_to_every_place_that_has_it(make_trainer: Any, net: Any) -> None:
    model = net()
    finder = Tuner(make_trainer()).lr_find(model, num_training=20)
    assert model.lr == model.hparams.lr == finder.suggestion() != 0.1


def test_without_update_attr_the_rate_stays(make_trainer: Any, net: Any) -> None:
    model = net()
    assert Tuner(make_trainer()).lr_find(model, num_training=20, update_attr=False).suggestion() is not None
    assert model.lr == model.hparams.lr == 0.1


def test_the_attribute_can_have_another_name(make_trainer: Any, net: Any) -> None:
    model = net()
    model.rate = 0.5
    finder = Tuner(make_trainer()).lr_find(model, num_training=20, attr_name="rate")
    assert (model.rate, model.lr) == (finder.suggestion(), 0.1)


def test_learning_rate_is_found_where_there_is_no_lr(make_trainer: Any) -> None:
    model = Quadratic()
    model.learning_rate = model.__dict__.pop("lr")
    model.configure_optimizers = lambda: torch.optim.SGD(model.parameters(), lr=model.learning_rate)
    finder = Tuner(make_trainer()).lr_find(model, num_training=20)
    assert model.learning_rate == finder.suggestion()


def test_without_an_attribute_the_error_names_what_is_missing(make_trainer: Any) -> None:
    model = Quadratic()
    del model.lr
    with pytest.raises(AttributeError, match="Quadratic has no attribute or hyperparameter 'lr' or 'learning_rate'"):
        Tuner(make_trainer()).lr_find(model)


def test_fast_dev_run_looks_for_nothing(make_trainer: Any) -> None:
    model = Quadratic()
    assert Tuner(make_trainer(fast_dev_run=True)).lr_find(model) is None
    assert model.lr == 1e-3


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"method": "validate"}, MisconfigurationException, "method='validate' trains nothing"),
        ({"mode": "cosine"}, ValueError, "mode='cosine' is unknown"),
        ({"num_training": 0}, ValueError, "num_training=0 leaves no step"),
        ({"min_lr": 0.0}, ValueError, r"min_lr=0.0 and max_lr=1 are no range"),
        ({"min_lr": 2.0}, ValueError, r"min_lr=2.0 and max_lr=1 are no range"),
    ],
)
def test_arguments_out_of_range_are_errors(make_trainer: Any, arguments: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=text):
        Tuner(make_trainer()).lr_find(Quadratic(), **arguments)


def test_a_trainer_with_the_callback_refuses_the_tuner(make_trainer: Any) -> None:
    with pytest.raises(ValueError, match="The Trainer has a LearningRateFinder"):
        Tuner(make_trainer(callbacks=[LearningRateFinder()])).lr_find(Quadratic())


def test_manual_optimization_is_refused(make_trainer: Any) -> None:
    with pytest.raises(MisconfigurationException, match="steps its optimizers itself"):
        Tuner(make_trainer()).lr_find(ManualOptimBoringModel(), update_attr=False)


def test_several_optimizers_are_refused(make_trainer: Any) -> None:
    class Two(Quadratic):
        def training_step(self, batch: Any, batch_idx: int, optimizer_idx: int) -> Any:
            return super().training_step(batch, batch_idx)

        def configure_optimizers(self) -> Any:
            return [super().configure_optimizers(), super().configure_optimizers()]

    with pytest.raises(MisconfigurationException, match="configure_optimizers of Two returned 2"):
        Tuner(make_trainer()).lr_find(Two())


def test_steps_that_train_nothing_come_to_an_end(make_trainer: Any) -> None:
    class Idle(Quadratic):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None

    with pytest.warns(PossibleUserWarning, match="training_step returned None for all"):
        finder = Tuner(make_trainer()).lr_find(Idle(), num_training=15, update_attr=False)
    assert finder.results == {"lr": [], "loss": []}


def test_a_plot_without_matplotlib_names_it(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(MissingExtraError, match="pip install matplotlib"):
        measured([1.0, 2.0]).plot()


def test_a_plot_shows_losses_over_rates_and_the_suggestion() -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    finder = measured([10.0] * 11 + [9.0, 4.0, 3.5, 3.4])
    figure = finder.plot(suggest=True)
    (axes,) = figure.axes
    curve, mark = axes.lines
    assert (list(curve.get_xdata()), list(curve.get_ydata())) == (finder.results["lr"], finder.results["loss"])
    assert list(mark.get_xdata()) == [finder.suggestion()] == [finder.results["lr"][11]]
    assert axes.get_xscale() == "log"
    _, own = pyplot.subplots()
    assert finder.plot(ax=own) is own.figure
    assert len(own.lines) == 1
    pyplot.close("all")


def test_a_lucky_first_batch_does_not_end_the_test(make_trainer: Any) -> None:
    class Lucky(Quadratic):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx) * (self.trainer.global_step >= 2)

    finder = Tuner(make_trainer()).lr_find(Lucky(), min_lr=1e-5, max_lr=1e-3, num_training=30)
    assert len(finder.results["lr"]) == 30


def test_a_loss_that_is_not_finite_ends_the_test(make_trainer: Any) -> None:
    class Broken(Quadratic):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx) / (self.trainer.global_step != 5)

    finder = Tuner(make_trainer()).lr_find(Broken(), num_training=30, update_attr=False)
    assert len(finder.results["lr"]) == 6
