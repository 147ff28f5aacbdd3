"""What `configure_optimizers` may not return, and metrics that nobody logged."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.errors.conftest import Net, loader, net, quiet, refused
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

from fulgur.callbacks import EarlyStopping, ModelCheckpoint
from fulgur.errors import MisconfigurationException, PossibleUserWarning

FORMS = "Return an optimizer, a list of optimizers"


def sgd(module: Any) -> torch.optim.SGD:
    return torch.optim.SGD(module.parameters(), lr=0.1)


def returning(value: Any) -> Any:
    """A module whose configure_optimizers returns ``value(self, optimizer)``."""
    return net(configure_optimizers=lambda self: value(self, sgd(self)))


def configured(scheduler: Any, **config: Any) -> Any:
    return lambda self, o: {"optimizer": o, "lr_scheduler": {"scheduler": scheduler(o), **config}}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (lambda self, o: torch.optim.SGD, ("SGD'>", "Did you forget to call it?", FORMS)),
        (lambda self, o: "adam", ("'adam'", FORMS)),
        (lambda self, o: list(self.parameters()), ("a Parameter where an optimizer belongs", FORMS)),
        (lambda self, o: (o, StepLR(o, 1)), ("a StepLR where", "two lists: [optimizer], [scheduler]")),
        (lambda self, o: [o, StepLR(o, 1)], ("a StepLR where", "two lists: [optimizer], [scheduler]")),
        (lambda self, o: {}, ("the keys [] and no 'optimizer'",)),
        (
            lambda self, o: {"optimizer": o, "lr_scheduler": {"interval": "step"}},
            ("the keys ['interval']", "'scheduler'"),
        ),
        (configured(lambda o: StepLR(o, 1), interval="batch"), ("interval='batch'", "'epoch' or 'step'")),
        (configured(lambda o: StepLR(o, 1), frequency=0), ("frequency=0 of StepLR", "at least 1")),
        (lambda self, o: ([o], [StepLR(sgd(self), 1)]), ("StepLR belongs to an optimizer (SGD)", "did not return")),
        (configured(ReduceLROnPlateau), ("ReduceLROnPlateau steps on a metric", "'monitor': 'val_loss'")),
        (lambda self, o: [o, sgd(self)], ("returned 2 optimizers", "optimizer_idx", "automatic_optimization = False")),
        (lambda self, o: [{"optimizer": o}, {"optimizer": sgd(self)}], ("returned 2 optimizers", "optimizer_idx")),
    ],
)
def test_what_configure_optimizers_may_not_return(value: Any, words: tuple[str, ...]) -> None:
    trainer, module = quiet(), returning(value)
    refused(trainer, lambda: trainer.fit(module, loader()), MisconfigurationException, *words, module=module)


def test_scheduler_that_is_none() -> None:
    trainer, module = quiet(), returning(lambda self, o: {"optimizer": o, "lr_scheduler": object()})
    words = "no learning-rate scheduler", "no state_dict", "torch.optim.lr_scheduler"
    refused(trainer, lambda: trainer.fit(module, loader()), TypeError, *words, module=module)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (lambda self, o: None, "configure_optimizers of Net returned None, so nothing will be trained. Return the opt"),
        (lambda self, o: {"optimizer": o, "scheduler": StepLR(o, 1)}, "'scheduler'.*Did you mean 'lr_scheduler'"),
        (configured(lambda o: StepLR(o, 1), intervall="step"), "'intervall'.*Did you mean 'interval'"),
    ],
)
def test_slips_in_configure_optimizers_are_told(value: Any, words: str) -> None:
    with pytest.warns(PossibleUserWarning, match=words):
        quiet().fit(returning(value), loader())


def test_no_optimizer_on_purpose_is_not_commented_on() -> None:
    trainer = quiet()
    trainer.fit(returning(lambda self, o: []), loader())
    assert trainer.global_step == 4


# --------------------------------------------------------------------------------------------- monitors


def test_early_stopping_lists_the_metrics_there_are() -> None:
    trainer, module = quiet(callbacks=[EarlyStopping("val_los")]), Net()
    words = "EarlyStopping monitors 'val_los'", "'train_loss', 'val_loss'", "Did you mean 'val_loss'?", "strict=False"
    refused(
        trainer,
        lambda: trainer.fit(module, loader(), loader()),
        RuntimeError,
        *words,
        module=module,
        steps=4,
        refits=False,
    )


def test_model_checkpoint_lists_the_metrics_there_are() -> None:
    callback = ModelCheckpoint(monitor="val_los")
    trainer, module = quiet(enable_checkpointing=True, callbacks=[callback]), Net()
    words = "ModelCheckpoint(monitor='val_los')", "'train_loss', 'val_loss'", "Did you mean 'val_loss'?"
    refused(
        trainer,
        lambda: trainer.fit(module, loader(), loader()),
        MisconfigurationException,
        *words,
        module=module,
        steps=4,
        refits=False,
    )


def test_plateau_scheduler_lists_the_metrics_there_are() -> None:
    trainer, module = quiet(), returning(configured(ReduceLROnPlateau, monitor="val_los"))
    words = "ReduceLROnPlateau monitors 'val_los'", "['train_loss', 'val_loss']", "Did you mean 'val_loss'?"
    refused(
        trainer,
        lambda: trainer.fit(module, loader(), loader()),
        MisconfigurationException,
        *words,
        module=module,
        steps=4,
    )


def test_plateau_scheduler_that_is_not_strict_skips_its_step() -> None:
    module = returning(configured(ReduceLROnPlateau, monitor="val_los", strict=False))
    with pytest.warns(PossibleUserWarning, match="'val_los', which was not logged.*Its step is skipped"):
        quiet().fit(module, loader(), loader())
