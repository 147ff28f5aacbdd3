"""What is left of a run that an error ended: a Trainer, a module and loggers that can go on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.errors.conftest import Net, loader, net, quiet

from fulgur import LightningModule
from fulgur.callbacks import Callback


class Own(Exception):
    """Raised by the tests' hooks."""


class Failing(Net):
    """Notes each batch's place, and fails in `hook` when that is called for the `at`-th time."""

    def __init__(self, at: int = 0, hook: str = "training_step") -> None:
        super().__init__()
        self.at, self.hook, self.n_calls = at, hook, 0
        self.places: list[tuple[int, int]] = []

    def fail(self, hook: str) -> None:
        self.n_calls += hook == self.hook
        if hook == self.hook and self.n_calls == self.at:
            raise Own

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.places.append((self.current_epoch, batch_idx))
        self.fail("training_step")
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.fail("validation_step")

    def on_train_batch_end(self, *args: Any) -> None:
        self.fail("on_train_batch_end")

    def on_train_epoch_end(self) -> None:
        self.fail("on_train_epoch_end")

    def on_train_end(self) -> None:
        self.fail("on_train_end")


EPOCH_0 = [(0, idx) for idx in range(4)]
EPOCH_1 = [(1, idx) for idx in range(4)]


@pytest.mark.parametrize(
    ("hook", "at", "n_steps", "expected"),
    [
        ("training_step", 1, 0, [*EPOCH_0, *EPOCH_1]),
        ("training_step", 3, 2, [*EPOCH_0, *EPOCH_1]),
        ("training_step", 6, 5, EPOCH_1),
        ("on_train_batch_end", 4, 4, [*EPOCH_0, *EPOCH_1]),
        ("on_train_epoch_end", 1, 4, [*EPOCH_0, *EPOCH_1]),
        ("on_train_end", 1, 8, []),
        ("validation_step", 1, 0, [*EPOCH_0, *EPOCH_1]),  # in the sanity check
        ("validation_step", 3, 4, [*EPOCH_0, *EPOCH_1]),
    ],
)
def test_next_fit_begins_the_broken_epoch_anew(hook: str, at: int, n_steps: int, expected: list[Any]) -> None:
    trainer = quiet(max_epochs=2)
    with pytest.raises(Own):
        trainer.fit(Failing(at, hook), loader(), loader())
    assert trainer.global_step == n_steps
    again = Failing()
    trainer.fit(again, loader(), loader())
    assert again.places == expected
    assert trainer.global_step == n_steps + len(expected)
    assert trainer.current_epoch == 2


def test_next_fit_has_true_accumulation_windows() -> None:
    trainer = quiet(accumulate_grad_batches=3)
    with pytest.raises(Own):
        trainer.fit(Failing(3), loader())
    stepped: list[int] = []

    class Windows(Net):
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, closure: Any = None) -> None:
            stepped.append(batch_idx)
            optimizer.step(closure=closure)

    trainer.fit(Windows(), loader())
    assert stepped == [2, 3]


def test_metrics_of_the_broken_run_are_gone() -> None:
    trainer = quiet()
    with pytest.raises(Own):
        trainer.fit(Failing(3), loader())
    trainer.test(Net(), loader(), verbose=False)
    assert list(trainer.callback_metrics) == ["test_loss"]


@pytest.mark.parametrize("entry", ["validate", "test", "predict"])
def test_evaluations_can_be_repeated_after_an_error(entry: str) -> None:
    def fail(self: LightningModule, batch: Any, batch_idx: int) -> Any:
        raise Own

    step = {"validate": "validation"}.get(entry, entry) + "_step"
    trainer, module, quietly = quiet(), net(**{step: fail}), {} if entry == "predict" else {"verbose": False}
    with pytest.raises(Own):
        getattr(trainer, entry)(module, loader(), **quietly)
    assert module.torn_down == [entry]
    assert module.training
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    right = Net()
    assert len(getattr(trainer, entry)(right, loader(), **quietly)) == (4 if entry == "predict" else 1)


class Diary(Callback):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.lines.append("setup")

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self.lines.append(type(exception).__name__)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.lines.append("teardown")


def test_callbacks_are_told_and_torn_down_once() -> None:
    diary = Diary()
    with pytest.raises(Own):
        quiet(callbacks=[diary]).fit(Failing(2), loader())
    assert diary.lines == ["setup", "Own", "teardown"]


def test_no_teardown_where_nothing_was_set_up() -> None:
    diary, module = Diary(), net(prepare_data=lambda self: (_ for _ in ()).throw(Own()))
    with pytest.raises(Own):
        quiet(callbacks=[diary]).fit(module, loader())
    assert diary.lines == ["Own"]
    assert (module.stages, module.torn_down) == ([], [])


def test_error_of_teardown_does_not_hide_the_first_one() -> None:
    def teardown(self: LightningModule, stage: str) -> None:
        raise RuntimeError("second")

    class Both(Failing):
        pass

    Both.teardown = teardown  # type: ignore[method-assign]
    with (
        pytest.warns(match=r"After Own\(\), another exception came from .*teardown: RuntimeError\('second'\)"),
        pytest.raises(Own),
    ):
        quiet().fit(Both(2), loader())


def test_error_of_teardown_alone_is_the_error_of_the_run() -> None:
    def teardown(self: LightningModule, stage: str) -> None:
        raise Own

    trainer = quiet()
    with pytest.raises(Own):
        trainer.fit(net(teardown=teardown), loader())
    assert trainer.interrupted
    trainer.fit_loop.max_epochs = 2
    trainer.fit(Net(), loader())
    assert trainer.state.finished


def test_model_is_not_left_in_eval_mode_by_a_validation_in_fit() -> None:
    module = Failing(3, "validation_step")
    with pytest.raises(Own):
        quiet().fit(module, loader(), loader())
    assert module.training
