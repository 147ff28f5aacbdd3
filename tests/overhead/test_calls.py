"""Framework Python calls in a steady step: at most 12, 3 more for each log, 1 more for each hook overridden.

The exact numbers stand here too, so that a change of one is noticed and meant.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from tests.overhead.conftest import NEVER, Line, calls, fit, new_folder

from fulgur import Callback
from fulgur.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint, Timer
from fulgur.loggers import CSVLogger
from fulgur.testing import calls_per_step

pytestmark = pytest.mark.filterwarnings("ignore:`lr_scheduler.step:UserWarning")

# What runs once a run, and as often as its values have digits or its files have bytes.
ONCE_A_RUN = ("checkpoint/", "callbacks/displays.py")

STEP = {"on_step": True}
BOTH = {"on_step": True, "on_epoch": True}
EPOCH = {"on_step": False, "on_epoch": True}
BAR = {"prog_bar": True}


class WithScheduler(Line):
    interval = "step"

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 100)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": self.interval}}


class WithEpochScheduler(WithScheduler):
    interval = "epoch"


class WithOwnSchedulerStep(WithScheduler):
    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        scheduler.step()


class ReturnsDict(Line):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return {"loss": self.loss(batch)}


class Manual(Line):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        optimizer.step()


class TwoOptimizers(Line):
    def training_step(self, batch: Any, batch_idx: int, optimizer_idx: int) -> Any:
        return self.loss(batch)

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD([p], lr=0.01) for p in self.parameters()]


class WithOwnOptimizerStep(Line):
    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        optimizer.step(closure=optimizer_closure)


class WithOwnZeroGrad(Line):
    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        optimizer.zero_grad()


class WithOwnBackward(Line):
    def backward(self, loss: torch.Tensor) -> None:  # type: ignore[override]
        loss.backward()


class WithOwnClipping(Line):
    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Clip nothing."""


@dataclass(frozen=True)
class Case:
    """What is trained, and what a step may cost.

    Attributes:
        expected: Exact number of calls.
        build: Builds the module.
        arguments: Builds the Trainer's arguments.
        n_logs: Calls of ``self.log`` in a step.
        n_hooks: Hooks really overridden.
    """

    expected: float
    build: Callable[[], Line] = Line
    arguments: Callable[[], dict[str, Any]] = field(default=dict)
    n_logs: int = 0
    n_hooks: int = 0

    @property
    def budget(self) -> int:
        return 12 + 3 * self.n_logs + self.n_hooks

    def run(self, n_batches: int) -> None:
        fit(self.build(), n_batches, **self.arguments())


def check(case: Case) -> None:
    counted = calls(case.run)
    assert counted.total <= case.budget, f"over the budget of {case.budget}: {counted}"
    steady = sum(n for name, n in counted.by_function.items() if not name.startswith(ONCE_A_RUN))
    assert steady == case.expected, f"{steady:g} calls, and {case.expected:g} before: {counted}"


def logging_case(expected: float, *logs: dict[str, Any]) -> Case:
    return Case(expected, lambda: Line(logs), n_logs=len(logs))


CLIPPING = 9 if sys.version_info < (3, 12) else 8
"""A list comprehension is no call any more from Python 3.12 on."""
STEPS = {
    "bare": Case(5),
    "a dict as outputs": Case(6, ReturnsDict),
    "validation at the end of the epoch": Case(5, arguments=lambda: {"limit_val_batches": 2}),
    "validation within the epoch": Case(
        6, arguments=lambda: {"limit_val_batches": 2, "check_val_every_n_epoch": None, "val_check_interval": NEVER}
    ),
    "accumulation": Case(5.75, arguments=lambda: {"accumulate_grad_batches": 4}),
    "clipping by norm": Case(CLIPPING, arguments=lambda: {"gradient_clip_val": 1.0}),
    "clipping by value": Case(
        CLIPPING, arguments=lambda: {"gradient_clip_val": 1.0, "gradient_clip_algorithm": "value"}
    ),
    "bf16-mixed": Case(6, arguments=lambda: {"precision": "bf16-mixed"}),
    "bf16-true": Case(10, arguments=lambda: {"precision": "bf16-true"}),
    "64-true": Case(10, arguments=lambda: {"precision": "64-true"}),
    "a scheduler that steps with the optimizer": Case(7, WithScheduler),
    "a scheduler that steps each epoch": Case(5, WithEpochScheduler),
    "manual optimization": Case(12, Manual),
    "two optimizers": Case(12, TwoOptimizers),
}
LOGS = {
    "of the step": logging_case(7, STEP),
    "of the step, five": logging_case(15, *[STEP] * 5),
    "of step and epoch": logging_case(8, BOTH),
    "of step and epoch, five": logging_case(16, *[BOTH] * 5),
    "of the epoch": logging_case(8, EPOCH),
    "with the bar": logging_case(7, BAR),
    "with the bar, five": logging_case(15, *[BAR] * 5),
    "of the epoch's maximum": logging_case(8, EPOCH | {"reduce_fx": "max"}),
    "of the epoch's sum, five": logging_case(20, *[EPOCH | {"reduce_fx": "sum"}] * 5),
}
OWN_STEPS = {
    "lr_scheduler_step": Case(7, WithOwnSchedulerStep, n_hooks=1),
    "optimizer_step": Case(13, WithOwnOptimizerStep, n_hooks=1),
    "optimizer_zero_grad": Case(7, WithOwnZeroGrad, n_hooks=1),
    "backward": Case(7, WithOwnBackward, n_hooks=1),
    "configure_gradient_clipping": Case(7, WithOwnClipping, n_hooks=1),
}
HOOKS = {
    "on_train_batch_start": 5,
    "on_before_zero_grad": 9,
    "on_before_backward": 8,
    "on_after_backward": 8,
    "on_before_optimizer_step": 8,
    "on_train_batch_end": 6,
}


@pytest.mark.parametrize("name", STEPS)
def test_calls_of_a_step(name: str) -> None:
    check(STEPS[name])


@pytest.mark.parametrize("name", LOGS)
def test_calls_of_a_step_with_logs(name: str) -> None:
    check(LOGS[name])


@pytest.mark.parametrize("name", OWN_STEPS)
def test_calls_around_an_overridden_part_of_the_step(name: str) -> None:
    check(OWN_STEPS[name])


def _ignore(*arguments: Any) -> None:
    """A hook that does nothing; what it does is the user's."""


@pytest.mark.parametrize("name", HOOKS)
def test_calls_with_a_hook_of_the_module(name: str) -> None:
    module_class = type("WithHook", (Line,), {name: _ignore})
    check(Case(HOOKS[name], module_class, n_hooks=1))


@pytest.mark.parametrize("name", HOOKS)
def test_calls_with_a_hook_of_a_callback(name: str) -> None:
    callback_class = type("WithHook", (Callback,), {name: _ignore})
    check(Case(HOOKS[name], arguments=lambda: {"callbacks": [callback_class()]}, n_hooks=1))


def test_a_second_callback_with_the_same_hook_costs_no_call_of_the_framework() -> None:
    callback_class = type("WithHook", (Callback,), {"on_train_batch_end": _ignore})
    arguments = {"callbacks": [callback_class(), callback_class()]}
    check(Case(HOOKS["on_train_batch_end"], arguments=lambda: arguments, n_hooks=2))


def test_all_hooks_of_a_step_at_once() -> None:
    hooks = dict.fromkeys(HOOKS, _ignore)
    callback_class, module_class = type("WithHooks", (Callback,), hooks), type("WithHooks", (Line,), hooks)
    check(Case(13, module_class, lambda: {"callbacks": [callback_class()]}, n_hooks=2 * len(hooks)))


def around(**arguments: Any) -> dict[str, Any]:
    """What a Trainer brings by default: bar, summary, a CSV logger and checkpoints in a new folder."""
    return {
        "enable_progress_bar": True,
        "enable_model_summary": True,
        "enable_checkpointing": True,
        "logger": CSVLogger(new_folder()),
        "default_root_dir": new_folder(),
        **arguments,
    }


@pytest.mark.usefixtures("capsys")
def test_default_callbacks_cost_the_call_of_the_bar() -> None:
    check(Case(6, arguments=around, n_hooks=1))


@pytest.mark.usefixtures("capsys")
def test_default_callbacks_with_five_logs() -> None:
    check(Case(16, lambda: Line([BAR] * 5), around, n_logs=5, n_hooks=1))


@pytest.mark.usefixtures("capsys")
def test_flushes_every_fifty_steps_stay_within_the_budget_of_a_step() -> None:
    case = Case(0, lambda: Line([BAR] * 5), lambda: around(log_every_n_steps=50), n_logs=5, n_hooks=1)
    counted = calls_per_step(case.run, n_batches=50)
    assert counted.total <= case.budget, str(counted)


CALLBACKS: dict[str, tuple[float, Callable[[], dict[str, Any]]]] = {
    "EarlyStopping": (8, lambda: {"callbacks": [EarlyStopping("value_0")]}),
    "ModelCheckpoint that watches": (8, lambda: checkpoints(monitor="value_0")),
    "ModelCheckpoint every so many steps": (10, lambda: checkpoints(every_n_train_steps=1000)),
    "LearningRateMonitor": (11, lambda: {"callbacks": [LearningRateMonitor()], "logger": CSVLogger(new_folder())}),
    "Timer": (9, lambda: {"callbacks": [Timer("00:10:00:00")]}),
}


def checkpoints(**arguments: Any) -> dict[str, Any]:
    return {"callbacks": [ModelCheckpoint(new_folder(), **arguments)], "enable_checkpointing": True}


@pytest.mark.parametrize("name", CALLBACKS)
@pytest.mark.usefixtures("capsys")
def test_calls_with_a_callback_of_fulgur(name: str) -> None:
    expected, arguments = CALLBACKS[name]
    check(Case(expected, lambda: Line([EPOCH]), arguments, n_logs=1, n_hooks=1))


def test_the_first_epoch_costs_per_step_what_later_ones_do() -> None:
    def run(n_batches: int) -> None:
        fit(Line([BOTH]), n_batches, max_epochs=3)

    assert calls(run).total == 3 * LOGS["of step and epoch"].expected


@pytest.mark.skipif(sys.version_info < (3, 11), reason="code has no qualified name before Python 3.11")
def test_a_bare_step_is_these_functions() -> None:
    assert set(calls(STEPS["bare"].run).by_function) == {
        "data/fetch.py:Fetch._sized",
        "data/position.py:PlacedLoader._counted",
        "data/transfer.py:move_to_cpu",
        "loops/fit.py:FitLoop.plain_step.<locals>.step",
        "optim/gradients.py:gradient_clearer.<locals>.clear",
    }
