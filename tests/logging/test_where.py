"""In which hooks `self.log` works, with which defaults, and where it is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fulgur import Callback, LightningModule
from fulgur.errors import MisconfigurationException

STEP_HOOKS = [
    "on_train_batch_start",
    "on_train_batch_end",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_before_zero_grad",
]
STEP_METHODS = ["training_step", "backward", "optimizer_step", "configure_gradient_clipping", "optimizer_zero_grad"]
EVAL_STEP_HOOKS = [
    "on_validation_batch_start",
    "on_validation_batch_end",
    "on_test_batch_start",
    "on_test_batch_end",
]
EPOCH_HOOKS = [
    "on_train_start",
    "on_train_epoch_start",
    "on_train_epoch_end",
    "on_validation_start",
    "on_validation_epoch_start",
    "on_validation_epoch_end",
    "on_test_start",
    "on_test_epoch_start",
    "on_test_epoch_end",
]
REFUSING_HOOKS = [
    "on_fit_start",
    "on_fit_end",
    "on_train_end",
    "on_validation_end",
    "on_test_end",
    "on_predict_start",
    "on_predict_end",
    "on_predict_epoch_start",
    "on_predict_epoch_end",
    "on_predict_batch_start",
    "on_predict_batch_end",
    "on_save_checkpoint",
    "on_load_checkpoint",
    "setup",
    "teardown",
]
REFUSING_METHODS = [
    "prepare_data",
    "configure_model",
    "configure_optimizers",
    "configure_callbacks",
    "train_dataloader",
    "val_dataloader",
    "test_dataloader",
    "predict_dataloader",
    "predict_step",
    "lr_scheduler_step",
    "on_before_batch_transfer",
    "transfer_batch_to_device",
    "on_after_batch_transfer",
    "state_dict",
    "load_state_dict",
    "on_validation_model_zero_grad",
    "on_validation_model_eval",
    "on_validation_model_train",
    "on_test_model_eval",
    "on_test_model_train",
    "on_predict_model_eval",
]
REFUSING_CALLBACK_HOOKS = [*REFUSING_HOOKS, "on_sanity_check_start", "on_sanity_check_end", "state_dict"]


def logging_in(base: Any, hook: str, **options: Any) -> Any:
    """A method that logs "x" and then does what `base` does."""

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.log("x", 3.0, **options)
        return getattr(base, hook)(self, *args, **kwargs) if hasattr(base, hook) else None

    method.__code__ = method.__code__.replace(co_name=hook)  # messages name the hook
    return method


class Everything(LightningModule):
    """A module that goes through every hook there is."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def forward(self, batch: Any) -> Any:
        return self.layer(batch)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layer(batch).mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None: ...

    def test_step(self, batch: Any, batch_idx: int) -> None: ...

    def train_dataloader(self) -> Any:
        return [torch.ones(1, 1), torch.ones(1, 1)]

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


def module_logging_in(hook: str, **options: Any) -> Any:
    return type("Logging", (Everything,), {hook: logging_in(Everything, hook, **options)})()


def callback_logging_in(hook: str, **options: Any) -> Any:
    return type("Logging", (Callback,), {hook: logging_in(Callback, hook, **options)})()


def run(trainer: Any, module: Any, hook: str) -> None:
    """Whatever runs `hook`."""
    if "test" in hook:
        trainer.test(module, verbose=False)
    elif "predict" in hook:
        trainer.predict(module)
    else:
        trainer.fit(module)
        if "save" in hook or "state_dict" in hook or "load" in hook:
            trainer.save_checkpoint("saved.ckpt")
            trainer.test(module, ckpt_path="saved.ckpt", verbose=False)


BY_MODULE = [(hook, "module") for hook in STEP_HOOKS + STEP_METHODS]
BY_CALLBACK = [(hook, "callback") for hook in STEP_HOOKS]


def both(make_trainer: Any, hook: str, owner: str, **options: Any) -> tuple[Any, Any]:
    """A Trainer and a module, one of which logs."""
    if owner == "module":
        return make_trainer(), module_logging_in(hook, **options)
    return make_trainer(callbacks=callback_logging_in(hook, **options)), Everything()


@pytest.mark.parametrize(("hook", "owner"), BY_MODULE + BY_CALLBACK)
def test_hooks_of_a_training_step_log_the_step_alone(hook: str, owner: str, make_trainer: Any, recorder: Any) -> None:
    trainer, module = both(make_trainer, hook, owner)
    trainer.fit(module)
    assert recorder.rows == [({"x": 3.0, "epoch": 0}, 0), ({"x": 3.0, "epoch": 0}, 1)]
    assert set(trainer.callback_metrics) == set(trainer.logged_metrics) == {"x"}


@pytest.mark.parametrize(("hook", "owner"), BY_MODULE + BY_CALLBACK)
def test_hooks_of_a_training_step_log_the_epoch_on_request(
    hook: str, owner: str, make_trainer: Any, recorder: Any
) -> None:
    trainer, module = both(make_trainer, hook, owner, on_epoch=True)
    trainer.fit(module)
    step_rows = [({"x_step": 3.0, "epoch": 0}, 0), ({"x_step": 3.0, "epoch": 0}, 1)]
    assert recorder.rows == [*step_rows, ({"x_epoch": 3.0, "epoch": 0}, 1)]


@pytest.mark.parametrize("owner", ["module", "callback"])
@pytest.mark.parametrize("hook", EVAL_STEP_HOOKS)
def test_hooks_of_an_evaluation_batch_log_the_epoch_alone(
    hook: str, owner: str, make_trainer: Any, recorder: Any
) -> None:
    trainer, module = both(make_trainer, hook, owner)
    run(trainer, module, hook)
    assert [set(row) for row, _ in recorder.rows] == [{"x", "epoch"}]


@pytest.mark.parametrize("step", ["validation_step", "test_step"])
def test_evaluation_steps_log_the_epoch_alone(step: str, make_trainer: Any, recorder: Any) -> None:
    run(make_trainer(), module_logging_in(step), step)
    assert [set(row) for row, _ in recorder.rows] == [{"x", "epoch"}]


@pytest.mark.parametrize("step", ["validation_step", "test_step"])
def test_evaluation_steps_log_the_batch_on_request(step: str, make_trainer: Any, recorder: Any) -> None:
    run(make_trainer(), module_logging_in(step, on_step=True, on_epoch=False), step)
    assert recorder.rows == [({"x": 3.0}, 0), ({"x": 3.0}, 1)]


@pytest.mark.parametrize("owner", ["module", "callback"])
@pytest.mark.parametrize("hook", EPOCH_HOOKS)
def test_hooks_of_an_epoch_log_the_epoch(hook: str, owner: str, make_trainer: Any, recorder: Any) -> None:
    trainer, module = both(make_trainer, hook, owner)
    run(trainer, module, hook)
    axis = 0 if "test" in hook else 1
    assert recorder.rows == [({"x": 3.0, "epoch": 0}, axis)]
    assert trainer.callback_metrics["x"] == 3.0


@pytest.mark.parametrize("options", [{"on_step": True}, {"on_step": True, "on_epoch": False}])
@pytest.mark.parametrize("hook", EPOCH_HOOKS)
def test_hooks_of_an_epoch_refuse_step_values(hook: str, options: Any, make_trainer: Any) -> None:
    with pytest.raises(MisconfigurationException, match=f"not possible in {hook}"):
        run(make_trainer(), module_logging_in(hook, **options), hook)


@pytest.mark.parametrize("hook", ["training_step", "validation_step", "on_train_epoch_end"])
def test_keeping_neither_step_nor_epoch_is_refused(hook: str, make_trainer: Any) -> None:
    module = module_logging_in(hook, on_step=False, on_epoch=False)
    with pytest.raises(MisconfigurationException, match="would keep nothing"):
        make_trainer().fit(module)


@pytest.mark.parametrize("hook", REFUSING_HOOKS + REFUSING_METHODS)
def test_module_cannot_log_elsewhere(hook: str, make_trainer: Any) -> None:
    with pytest.raises(MisconfigurationException, match=rf"self.log\('x', ...\) cannot be called in {hook}"):
        run(make_trainer(), module_logging_in(hook), hook)


@pytest.mark.parametrize("hook", REFUSING_CALLBACK_HOOKS)
def test_callback_cannot_log_elsewhere(hook: str, make_trainer: Any) -> None:
    trainer = make_trainer(callbacks=callback_logging_in(hook))
    with pytest.raises(MisconfigurationException, match=rf"self.log\('x', ...\) cannot be called in {hook}"):
        run(trainer, Everything(), hook)


def test_hooks_of_a_checkpoint_saved_at_the_epochs_end_cannot_log(make_trainer: Any) -> None:
    module = module_logging_in("on_save_checkpoint")
    with pytest.raises(MisconfigurationException, match="on_save_checkpoint"):
        make_trainer(enable_checkpointing=True, default_root_dir=".").fit(module)


def test_logging_after_a_run_is_refused(make_trainer: Any) -> None:
    module = Everything()
    make_trainer().fit(module)
    with pytest.raises(MisconfigurationException, match="outside of the steps and hooks of a run"):
        module.log("x", 1.0)


def test_logging_after_a_failed_run_is_refused(make_trainer: Any) -> None:
    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        raise RuntimeError("broken")

    module = type("Broken", (Everything,), {"training_step": training_step})()
    with pytest.raises(RuntimeError, match="broken"):
        make_trainer().fit(module)
    with pytest.raises(MisconfigurationException, match="outside of the steps and hooks of a run"):
        module.log("x", 1.0)


def test_logging_without_a_trainer_does_nothing() -> None:
    module = Everything()
    module.log("x", 1.0)
    module.log_dict({"x": 1.0, "y": 2.0})


def test_logging_in_a_barebones_run_does_nothing(tiny: Any, loader: Any) -> None:
    from fulgur import Trainer

    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        self.log("x", 3.0, on_epoch=True, prog_bar=True)
        return self.layer(batch).mean()

    trainer = Trainer(accelerator="cpu", barebones=True, max_epochs=1)
    trainer.fit(tiny(training_step=training_step), loader())
    assert trainer.callback_metrics == trainer.logged_metrics == trainer.progress_bar_metrics == {}


@pytest.mark.parametrize("hook", ["training_epoch_end", "validation_epoch_end"])
def test_epoch_end_hooks_of_1x_may_log(hook: str, make_trainer: Any, recorder: Any) -> None:
    def validation_step(self: Any, batch: Any, batch_idx: int) -> Any:
        return batch

    def epoch_end(self: Any, outputs: Any) -> None:
        self.log("x", float(len(outputs)))

    module = type("Old", (Everything,), {hook: epoch_end, "validation_step": validation_step})()
    make_trainer().fit(module)
    assert recorder.rows == [({"x": 2.0, "epoch": 0}, 1)]


def test_module_inside_the_module_may_log(make_trainer: Any, recorder: Any) -> None:
    class Inner(LightningModule):
        def forward(self, batch: Any) -> Any:
            self.log("inner", 1.0)
            return batch

    class Outer(Everything):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.layer(self.inner(batch)).mean()

    make_trainer().fit(Outer())
    assert [row["inner"] for row, _ in recorder.rows] == [1.0, 1.0]


def test_log_of_a_callback_that_came_with_the_module_works(make_trainer: Any, recorder: Any) -> None:
    def configure_callbacks(self: Any) -> Any:
        return callback_logging_in("on_train_epoch_end")

    make_trainer().fit(type("Own", (Everything,), {"configure_callbacks": configure_callbacks})())
    assert recorder.rows == [({"x": 3.0, "epoch": 0}, 1)]


def test_callback_that_monitors_may_log_at_the_epochs_end(make_trainer: Any, recorder: Any) -> None:
    callback = callback_logging_in("on_train_epoch_end")
    type(callback).is_monitor = True
    trainer = make_trainer(callbacks=callback)
    trainer.fit(Everything())
    assert recorder.rows == [({"x": 3.0, "epoch": 0}, 1)]
    assert trainer.callback_metrics["x"] == 3.0


def test_optimizer_step_logs_apart_from_the_hooks_around_it(make_trainer: Any, recorder: Any) -> None:
    class Module(Everything):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            self.log("x", 1.0)

        def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            self.log("x", 2.0, prog_bar=True)
            super().optimizer_step(*args, **kwargs)
            self.log("after", 3.0, on_epoch=True)

        def on_after_backward(self) -> None:
            self.log("after", 4.0)

    make_trainer().fit(Module())
    assert [row["x"] for row, _ in recorder.rows if "x" in row] == [2.0, 2.0]


def test_manual_optimization_logs_in_training_step_after_a_step_of_the_optimizer(
    make_trainer: Any, recorder: Any
) -> None:
    class Manual(Everything):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            for value in (1.0, 3.0):
                self.log("x", value, on_epoch=True)
                optimizer = self.optimizers()
                optimizer.zero_grad()
                self.manual_backward(self.layer(batch).mean())
                optimizer.step()

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            pass

    make_trainer().fit(Manual())
    assert recorder.rows[-1] == ({"x_epoch": 2.0, "epoch": 0}, 1)
