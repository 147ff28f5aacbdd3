"""``self.log`` where it cannot be called, or with what cannot be logged."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.errors.conftest import Net, Words, loader, net, quiet, refused
from torch.utils.data import DataLoader

from fulgur import LightningModule
from fulgur.callbacks import Callback
from fulgur.errors import MisconfigurationException

# Each is called by name from a fit with validation; those of `test` and `predict` below.
FIT_HOOKS = [
    "setup",
    "prepare_data",
    "configure_model",
    "configure_optimizers",
    "configure_callbacks",
    "train_dataloader",
    "val_dataloader",
    "on_fit_start",
    "on_fit_end",
    "on_train_end",
    "on_validation_end",
    "on_before_batch_transfer",
    "transfer_batch_to_device",
    "on_after_batch_transfer",
    "on_validation_model_eval",
    "on_validation_model_train",
    "on_validation_model_zero_grad",
    "lr_scheduler_step",
    "state_dict",
    "on_save_checkpoint",
    "teardown",
]
TEST_HOOKS = ["test_dataloader", "on_test_end", "on_test_model_eval", "on_test_model_train"]
PREDICT_HOOKS = [
    "predict_dataloader",
    "on_predict_model_eval",
    "on_predict_start",
    "on_predict_epoch_start",
    "on_predict_batch_start",
    "predict_step",
    "on_predict_batch_end",
    "on_predict_epoch_end",
    "on_predict_end",
]


class Complete(Net):
    """Has every loader, and a scheduler."""

    def train_dataloader(self) -> Any:
        return loader()

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.01)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


def logging_in(hook: str, base: type[Net] = Complete) -> Any:
    """A module that logs in `hook` before it does what it does otherwise."""
    scope: dict[str, Any] = {"base": base}
    # The message names the hook by its frame, so the function must bear its name.
    exec(
        f"def {hook}(self, *args, **kwargs):\n    self.log('here', 1.0)\n    return base.{hook}(self, *args, **kwargs)",
        scope,
    )
    return net(base, **{hook: scope[hook]})


@pytest.mark.parametrize("hook", FIT_HOOKS)
def test_not_in_these_hooks_of_fit(hook: str) -> None:
    trainer, module = quiet(enable_checkpointing=True), logging_in(hook)
    with pytest.raises(MisconfigurationException) as caught:
        trainer.fit(module)
    assert f"self.log('here', ...) cannot be called in {hook}. It works in training_step" in str(caught.value)


@pytest.mark.parametrize("hook", TEST_HOOKS)
def test_not_in_these_hooks_of_test(hook: str) -> None:
    with pytest.raises(MisconfigurationException, match=rf"self.log\('here', ...\) cannot be called in {hook}\. "):
        quiet().test(logging_in(hook))


@pytest.mark.parametrize("hook", PREDICT_HOOKS)
def test_not_in_these_hooks_of_predict(hook: str) -> None:
    with pytest.raises(MisconfigurationException, match=rf"self.log\('here', ...\) cannot be called in {hook}\. "):
        quiet().predict(logging_in(hook))


@pytest.mark.parametrize("hook", ["on_sanity_check_start", "on_sanity_check_end", "on_fit_start", "on_train_end"])
def test_not_in_these_hooks_of_callbacks(hook: str) -> None:
    scope: dict[str, Any] = {}
    exec(f"def {hook}(self, trainer, pl_module):\n    self.log('here', 1.0)", scope)
    callback = type("Logs", (Callback,), {hook: scope[hook]})()
    with pytest.raises(MisconfigurationException, match=rf"cannot be called in {hook}\. "):
        quiet(callbacks=[callback]).fit(Complete())


def test_not_after_the_run() -> None:
    trainer, module = quiet(), Net()
    trainer.fit(module, loader())
    with pytest.raises(MisconfigurationException, match="outside of the steps and hooks of a run"):
        module.log("late", 1.0)


def test_without_a_trainer_nothing_happens() -> None:
    module = Net()
    module.log("early", 1.0)
    module.log_dict({"a": 1.0})
    module.training_step([torch.ones(2, 3)], 0)


def logging(log: Any) -> Any:
    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        self.n_steps += 1
        loss = self.loss(batch)
        log(self, loss)
        return loss

    return net(training_step=training_step)


NEEDED = "a tensor with one element, a number or a torchmetrics metric is needed"


@pytest.mark.parametrize(
    ("log", "words"),
    [
        (lambda self, loss: self.log("a", {"loss": loss}), ("'a'", "value is a dict", "self.log_dict")),
        (lambda self, loss: self.log_dict({"a": {"b": loss}}), ("'a'", "value is a dict")),
        (lambda self, loss: self.log("a", "high"), ("'high' of type str", NEEDED)),
        (lambda self, loss: self.log("a", None), ("None of type NoneType", NEEDED)),
        (lambda self, loss: self.log("a", [loss]), ("of type list", NEEDED)),
        (lambda self, loss: self.log("a", 1j), ("1j of type complex", NEEDED)),
        (lambda self, loss: self.log("a", np.ones(3)), ("of type ndarray", NEEDED)),
        (lambda self, loss: self.log("a", torch.ones(3)), ("shape (3,)", "value.mean()")),
        (lambda self, loss: self.log("a", torch.ones(0)), ("shape (0,)", "only one element")),
    ],
)
def test_what_cannot_be_logged(log: Any, words: tuple[str, ...]) -> None:
    trainer, module = quiet(), logging(log)
    refused(trainer, lambda: trainer.fit(module, loader()), ValueError, *words, module=module, steps=1)


def test_what_cannot_be_logged_is_found_at_a_later_call_too() -> None:
    trainer = quiet()
    module = logging(lambda self, loss: self.log("a", loss if self.n_steps < 3 else None))
    refused(trainer, lambda: trainer.fit(module, loader()), ValueError, "None of type NoneType", module=module, steps=3)


@pytest.mark.parametrize(
    ("log", "words"),
    [
        (lambda self, loss: self.log(3, loss), ("self.log(3, ...)", "the name comes first")),
        (lambda self, loss: self.log(loss.detach(), "a"), ("self.log(tensor(", "the name comes first")),
        (lambda self, loss: self.log_dict(loss), ("self.log_dict got a Tensor", "self.log('name', value)")),
        (lambda self, loss: self.log_dict([("a", loss)]), ("self.log_dict got a list",)),
    ],
)
def test_name_and_value_mixed_up(log: Any, words: tuple[str, ...]) -> None:
    trainer, module = quiet(), logging(log)
    refused(trainer, lambda: trainer.fit(module, loader()), TypeError, *words, module=module, steps=1)


@pytest.mark.parametrize(
    ("log", "words"),
    [
        (
            lambda self, loss: (self.log("a", loss), self.log("a", loss, prog_bar=True)),
            ("self.log('a', ...) was called twice in training_step", "prog_bar=False and prog_bar=True"),
        ),
        (
            lambda self, loss: (self.log("a", loss), self.log("a", loss, on_epoch=True, reduce_fx="sum")),
            ("on_epoch=None and on_epoch=True, reduce_fx='mean' and reduce_fx='sum'", "another name"),
        ),
        (
            lambda self, loss: self.log("a", loss, on_step=False, on_epoch=False),
            ("self.log('a', on_step=False, on_epoch=False)", "Set one of them to True"),
        ),
        (lambda self, loss: self.log("a", loss, reduce_fx="median"), ("'median'", "'mean', 'sum', 'min' or 'max'")),
        (lambda self, loss: self.log("a/dataloader_idx_0", loss), ("'a/dataloader_idx_0'", "add_dataloader_idx=False")),
    ],
)
def test_arguments_that_contradict(log: Any, words: tuple[str, ...]) -> None:
    trainer, module = quiet(), logging(log)
    refused(trainer, lambda: trainer.fit(module, loader()), MisconfigurationException, *words, module=module, steps=1)


@pytest.mark.parametrize(
    "hook",
    ["on_train_start", "on_train_epoch_start", "on_validation_start", "on_validation_epoch_start"],
)
def test_value_per_step_where_there_are_no_steps(hook: str) -> None:
    trainer, module = quiet(), net(**{hook: lambda self: self.log("a", 1.0, on_step=True)})
    words = f"is not possible in {hook}", "only on_step=False, on_epoch=True"
    refused(trainer, lambda: trainer.fit(module, loader(), loader()), MisconfigurationException, *words, module=module)


def test_same_name_for_two_loaders() -> None:
    def validation_step(self: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("a", self.loss(batch), add_dataloader_idx=False)

    trainer, module = quiet(), net(validation_step=validation_step)
    words = "two loaders in validation_step", "add_dataloader_idx=True"
    refused(
        trainer,
        lambda: trainer.validate(module, [loader(), loader()]),
        MisconfigurationException,
        *words,
        module=module,
    )


def test_batch_size_that_cannot_be_inferred() -> None:
    def training_step(self: LightningModule, batch: Any, batch_idx: int) -> Any:
        loss = self.layer.weight.sum()
        self.log("a", loss, on_epoch=True)
        return loss

    trainer, module = quiet(), net(training_step=training_step)
    words = "self.log('a', ...)", "the batch (a list) holds no tensor", "self.log('a', value, batch_size=n)"
    words_loader = DataLoader(Words(), 2, collate_fn=list)
    refused(trainer, lambda: trainer.fit(module, words_loader), MisconfigurationException, *words, module=module)


def test_metric_objects() -> None:
    torchmetrics = pytest.importorskip("torchmetrics")
    loose = torchmetrics.MeanMetric()
    trainer, module = quiet(), logging(lambda self, loss: self.log("a", loose))
    words = "a MeanMetric that is no submodule", "Assign it in __init__", "MeanMetric(...)"
    refused(trainer, lambda: trainer.fit(module, loader()), MisconfigurationException, *words, module=module, steps=1)

    trainer, module = quiet(), logging(lambda self, loss: self.log("a", self.metrics))
    module.metrics = torchmetrics.MetricCollection({"a": torchmetrics.MeanMetric()})
    words = "value is a MetricCollection", "self.log_dict"
    refused(trainer, lambda: trainer.fit(module, loader()), ValueError, *words, module=module, steps=1)


def test_reading_a_metric_that_was_not_logged_lists_those_there_are() -> None:
    trainer = quiet()
    trainer.fit(Net(), loader(), loader())
    with pytest.raises(
        KeyError, match=r"'val_los' was not logged. Logged so far: 'train_loss', 'val_loss'. Did you mean"
    ):
        _ = trainer.callback_metrics["val_los"]
    assert trainer.callback_metrics.get("val_los") is None
