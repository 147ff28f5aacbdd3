"""What a module lacks or does wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.errors.conftest import Bare, Manual, Net, loader, net, quiet, refused
from torch import Tensor, nn

from fulgur import LightningDataModule, LightningModule, Trainer
from fulgur.errors import MisconfigurationException, PossibleUserWarning


class OnlyStep(Bare):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss(batch)


class OnlyOptimizer(Bare):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


# ------------------------------------------------------------------------------------------------ what is not there


def test_no_training_step() -> None:
    trainer, module = quiet(), OnlyOptimizer()
    words = "OnlyOptimizer has no training_step", "Define training_step(self, batch, batch_idx)"
    refused(trainer, lambda: trainer.fit(module, loader()), MisconfigurationException, *words, module=module)
    assert module.stages == []


def test_no_training_step_names_the_method_that_was_meant() -> None:
    class Slip(OnlyOptimizer):
        def train_step(self, batch: Any, batch_idx: int) -> Any: ...

    trainer, words = quiet(), "It has train_step: rename that?"
    refused(trainer, lambda: trainer.fit(Slip(), loader()), MisconfigurationException, words)


def test_no_configure_optimizers() -> None:
    trainer, module = quiet(), OnlyStep()
    words = "OnlyStep has no configure_optimizers", "torch.optim.Adam(self.parameters(), lr=1e-3)", "[]"
    refused(trainer, lambda: trainer.fit(module, loader()), MisconfigurationException, *words, module=module)
    assert module.stages == []


def test_no_configure_optimizers_names_the_method_that_was_meant() -> None:
    class Slip(OnlyStep):
        def configure_optimizer(self) -> Any: ...

    trainer, words = quiet(), "It has configure_optimizer: rename that?"
    refused(trainer, lambda: trainer.fit(Slip(), loader()), MisconfigurationException, words)


@pytest.mark.parametrize(("entry", "step"), [("validate", "validation_step"), ("test", "test_step")])
def test_no_evaluation_step(entry: str, step: str) -> None:
    trainer, module = quiet(), Bare()
    words = f"Bare has no {step}", f"Define {step}(self, batch, batch_idx)"
    refused(
        trainer, lambda: getattr(trainer, entry)(module, loader()), MisconfigurationException, *words, module=module
    )
    assert module.stages == []


@pytest.mark.parametrize(
    ("entry", "step"), [("fit", "training_step"), ("validate", "validation_step"), ("test", "test_step")]
)
def test_step_that_is_set_to_none(entry: str, step: str) -> None:
    trainer, module = quiet(), net(**{step: None})
    words = f"Net sets to None its {step}. Define {step}(self, batch, batch_idx)."
    refused(trainer, lambda: getattr(trainer, entry)(module, loader()), MisconfigurationException, words, module=module)


def test_hook_that_is_set_to_none_is_not_called() -> None:
    module = net(validation_step=None, on_train_start=None, on_train_batch_end=None)
    quiet().fit(module, loader())
    assert module.n_steps == 4


def test_nothing_to_predict_with() -> None:
    trainer, module = quiet(), Bare()
    words = "Bare has neither predict_step nor forward", "Define one"
    refused(trainer, lambda: trainer.predict(module, loader()), MisconfigurationException, *words, module=module)
    assert module.stages == []


def test_validation_loader_without_validation_step_is_told() -> None:
    class Slip(OnlyStep, OnlyOptimizer):
        def validaton_step(self, batch: Any, batch_idx: int) -> None: ...

    with pytest.warns(PossibleUserWarning, match=r"Slip has no validation_step.*It has validaton_step: rename that\?"):
        quiet().fit(Slip(), loader(), loader())


def test_misspelt_validation_step_is_told_whoever_gives_the_loader() -> None:
    class Slip(OnlyStep, OnlyOptimizer):
        def valiation_step(self, batch: Any, batch_idx: int) -> None: ...

    class WithLoader(Slip):
        def val_dataloader(self) -> Any:
            return loader()

    class Data(LightningDataModule):
        def train_dataloader(self) -> Any:
            return loader()

        val_dataloader = train_dataloader

    said = r"{}\.val_dataloader\(\) gives a validation loader, and .* It has valiation_step: rename that\?"
    with pytest.warns(PossibleUserWarning, match=said.format("WithLoader")):
        quiet().fit(WithLoader(), loader())
    with pytest.warns(PossibleUserWarning, match=said.format("Data")):
        quiet().fit(Slip(), datamodule=Data())


def test_datamodule_may_have_a_validation_loader_that_a_module_does_not_want() -> None:
    class Plain(OnlyStep, OnlyOptimizer):
        pass

    class Data(LightningDataModule):
        def train_dataloader(self) -> Any:
            return loader()

        val_dataloader = train_dataloader

    quiet().fit(Plain(), datamodule=Data())


@pytest.mark.parametrize(
    ("slip", "meant"),
    [
        ("on_training_epoch_end", "on_train_epoch_end"),
        ("on_val_epoch_end", "on_validation_epoch_end"),
        ("on_train_begin", "on_train_start"),
        ("on_validation_epoch_ends", "on_validation_epoch_end"),
    ],
)
def test_method_all_but_named_like_a_hook_is_told(slip: str, meant: str) -> None:
    with pytest.warns(PossibleUserWarning, match=rf"Net defines {slip}, .*Did you mean {meant}\?"):
        quiet().fit(net(**{slip: lambda self: None}), loader())


def test_methods_with_names_of_their_own_are_not_commented_on() -> None:
    members = {name: lambda self: None for name in ("on_batch_seen", "on_curriculum_change", "on_epoch_start")}
    quiet().fit(net(**members), loader())


# -------------------------------------------------------------------------------------------------- not a module


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Net, ("got the class Net", "Pass an instance: Net()")),
        (nn.Linear(1, 1), ("got Linear, a plain nn.Module", "attribute of a LightningModule")),
        (loader(), ("got DataLoader", "The model comes first")),
        ("net.ckpt", ("got str",)),
        (None, ("called without a model", "Pass one")),
    ],
)
@pytest.mark.parametrize("entry", ["fit", "validate", "test", "predict"])
def test_what_is_no_module(entry: str, model: Any, words: tuple[str, ...]) -> None:
    trainer = quiet()
    refused(trainer, lambda: getattr(trainer, entry)(model, loader()), TypeError, f"trainer.{entry}", *words)


def test_super_init_forgotten() -> None:
    class Forgetful(Net):
        def __init__(self) -> None:
            self.rate = 0.1

    trainer, words = quiet(), ("Forgetful.__init__ did not call super().__init__()", "first line")
    refused(trainer, lambda: trainer.fit(Forgetful(), loader()), MisconfigurationException, *words)


def test_trainer_of_a_module_without_one() -> None:
    with pytest.raises(RuntimeError, match=r"Net is not attached to a Trainer.*Pass the module to trainer.fit"):
        _ = Net().trainer


# ------------------------------------------------------------------------------------------------------ signatures


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (lambda self: None, ("training_step(self)", "Write training_step(self, batch, batch_idx)")),
        (lambda self, batch_idx: None, ("takes batch_idx and no batch",)),
        (lambda self, batch, batch_idx, epoch: None, ("(self, batch, batch_idx, epoch)", "nobody gives epoch")),
    ],
)
def test_training_step_that_cannot_be_called(step: Any, words: tuple[str, ...]) -> None:
    trainer, module = quiet(), net(training_step=step)
    refused(trainer, lambda: trainer.fit(module, loader()), MisconfigurationException, *words, module=module)


@pytest.mark.parametrize("entry", ["validate", "test", "predict"])
def test_evaluation_step_that_cannot_be_called(entry: str) -> None:
    name = {"validate": "validation"}.get(entry, entry) + "_step"
    trainer, module = quiet(), net(**{name: lambda self, batch, batch_idx, epoch: None})
    words = f"{name}(self, batch, batch_idx, epoch)", "nobody gives epoch"
    refused(
        trainer,
        lambda: getattr(trainer, entry)(module, loader()),
        MisconfigurationException,
        *words,
        module=module,
        refits=False,
    )


@pytest.mark.parametrize("entry", ["validate", "test", "predict"])
def test_several_loaders_without_dataloader_idx(entry: str) -> None:
    name = {"validate": "validation"}.get(entry, entry) + "_step"
    trainer, module, words = quiet(), Net(), (name, "no argument dataloader_idx", "dataloader_idx=0)")
    refused(trainer, lambda: getattr(trainer, entry)(module, [loader(), loader()]), RuntimeError, *words, module=module)


@pytest.mark.parametrize("n_sanity", [0, 2])
def test_several_validation_loaders_without_dataloader_idx_in_fit(n_sanity: int) -> None:
    trainer, module = quiet(num_sanity_val_steps=n_sanity), Net()
    words = "validation_step", "no argument dataloader_idx"
    refused(trainer, lambda: trainer.fit(module, loader(), [loader(), loader()]), RuntimeError, *words, module=module)


@pytest.mark.parametrize("hook", ["on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer"])
def test_transfer_hook_that_returns_nothing(hook: str) -> None:
    # A function, so that the hook has its own name.
    def forgetful(self: Any, batch: Any, *rest: Any) -> None: ...

    forgetful.__name__ = hook
    trainer, module = quiet(), net(**{hook: forgetful})
    words = f"{hook} returned None", "`return batch`"
    refused(trainer, lambda: trainer.fit(module, loader()), TypeError, *words, module=module)


# ---------------------------------------------------------------------------------------------------------- losses

FORMS = "Return the loss as a scalar tensor, a dict with the loss under 'loss', or None"
NO_GRADIENT = ("has no gradient", ".detach()", "torch.no_grad()")


def returning(value: Any, base: type[Net] = Net, **members: Any) -> Any:
    """A module whose training_step returns ``value(loss)``."""

    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        self.n_steps += 1
        return value(self.loss(batch))

    return net(base, training_step=training_step, **members)


LOSSES = [
    (lambda loss: 1.5, ("training_step returned 1.5 of type float", FORMS)),
    (lambda loss: loss.item(), ("of type float", FORMS)),
    (lambda loss: True, ("True of type bool", FORMS)),
    (lambda loss: "loss", ("'loss' of type str", FORMS)),
    (lambda loss: [loss], ("of type list", FORMS)),
    (lambda loss: (loss, 1), ("of type tuple", FORMS)),
    (lambda loss: {}, ("without 'loss'", "its keys are []", FORMS)),
    (lambda loss: {"Loss": loss}, ("without 'loss'", "['Loss']", FORMS)),
    (lambda loss: {"loss": None}, ("None under 'loss'", FORMS)),
    (lambda loss: {"loss": 1.0}, ("1.0 of type float under 'loss'", FORMS)),
    (lambda loss: loss.expand(4), ("has shape (4,)", "loss.mean()")),
    (lambda loss: {"loss": loss.expand(2, 2)}, ("has shape (2, 2)", "loss.mean()")),
    (lambda loss: loss.detach(), NO_GRADIENT),
    (lambda loss: torch.tensor(loss.item()), NO_GRADIENT),
    (lambda loss: torch.tensor(1), NO_GRADIENT),
]


@pytest.mark.parametrize(("value", "words"), LOSSES)
def test_loss_that_is_no_loss(value: Any, words: tuple[str, ...]) -> None:
    trainer, module = quiet(), returning(value)
    refused(trainer, lambda: trainer.fit(module, loader()), MisconfigurationException, *words, module=module, steps=1)


OWN = {
    "backward": lambda self, loss: loss.backward(),
    "optimizer_step": lambda self, epoch, idx, optimizer, closure: optimizer.step(closure=closure),
}


@pytest.mark.parametrize("hook", list(OWN))
@pytest.mark.parametrize(("value", "words"), [LOSSES[0], LOSSES[10], LOSSES[12]])
def test_loss_that_is_no_loss_in_a_hook_of_the_users_own(hook: str, value: Any, words: tuple[str, ...]) -> None:
    trainer, module = quiet(), returning(value, **{hook: OWN[hook]})
    refused(trainer, lambda: trainer.fit(module, loader()), MisconfigurationException, *words, module=module, steps=1)


def test_loss_that_is_no_loss_within_a_window() -> None:
    trainer, module = quiet(accumulate_grad_batches=3), returning(lambda loss: loss.expand(4))
    words = "has shape (4,)", "loss.mean()"
    refused(trainer, lambda: trainer.fit(module, loader()), MisconfigurationException, *words, module=module, steps=1)


def test_all_parameters_frozen() -> None:
    trainer, module = quiet(), Net()
    module.freeze()
    words = "has no gradient", "frozen parameters"
    refused(trainer, lambda: trainer.fit(module, loader()), MisconfigurationException, *words, module=module, steps=1)


def test_other_error_of_backward_is_left_alone() -> None:
    def backward_twice(loss: Tensor) -> Tensor:
        loss.backward()
        return loss

    trainer, module = quiet(), returning(backward_twice)
    with pytest.raises(RuntimeError, match="backward through the graph a second time") as caught:
        trainer.fit(module, loader())
    assert caught.value.__cause__ is None


def test_return_forgotten_in_training_step_is_told() -> None:
    module = returning(lambda loss: None)
    with pytest.warns(
        PossibleUserWarning, match="returned None for all 4 batches of the epoch.*Return the loss"
    ) as told:
        quiet(max_epochs=1).fit(module, loader())
    assert len(told) == 1


def test_some_batches_without_a_loss_are_not_commented_on() -> None:
    class Skips(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None if batch_idx < 3 else self.loss(batch)

    trainer = quiet()
    trainer.fit(Skips(), loader())
    assert trainer.global_step == 1


# ---------------------------------------------------------------------------------------------- manual optimization


@pytest.mark.parametrize(
    ("use", "words"),
    [
        (lambda self, loss: self.manual_backward(loss.expand(4)), ("given to manual_backward has shape (4,)",)),
        (lambda self, loss: self.manual_backward(loss.detach()), ("given to manual_backward has no gradient",)),
        (lambda self, loss: self.manual_backward(1.0), ("1.0 of type float", "scalar tensor")),
        (lambda self, loss: 1.5, ("returned float 1.5", "a tensor, a dict or None")),
        (lambda self, loss: [loss], ("returned list", "a tensor, a dict or None")),
        (lambda self, loss: self.optimizers().step(loss), ("step(closure=", "a function without arguments")),
        (
            lambda self, loss: self.clip_gradients(self.optimizers(), 1.0, "l2"),
            ("'l2' is unknown", "'norm' or 'value'"),
        ),
    ],
)
def test_wrong_use_of_manual_optimization(use: Any, words: tuple[str, ...]) -> None:
    trainer, module = quiet(), net(Manual, use=use)
    refused(trainer, lambda: trainer.fit(module, loader()), MisconfigurationException, *words, module=module, steps=1)


def test_manual_backward_under_automatic_optimization() -> None:
    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        self.manual_backward(self.loss(batch))

    trainer, module = quiet(), net(training_step=training_step)
    words = "self.manual_backward(loss)", "self.automatic_optimization = False"
    refused(trainer, lambda: trainer.fit(module, loader()), MisconfigurationException, *words, module=module)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"accumulate_grad_batches": 2}, ("accumulate_grad_batches=2", "Manual", "Leave it out")),
        ({"gradient_clip_val": 0.5}, ("gradient_clip_val=0.5", "Manual", "self.clip_gradients")),
    ],
)
def test_manual_optimization_and_what_only_the_loop_can_do(arguments: Any, words: tuple[str, ...]) -> None:
    trainer, module = quiet(**arguments), Manual()
    refused(
        trainer, lambda: trainer.fit(module, loader()), MisconfigurationException, *words, module=module, refits=False
    )
    assert module.stages == []


def test_manual_optimization_and_a_schedule_of_accumulation() -> None:
    trainer, module = quiet(accumulate_grad_batches={0: 1, 1: 2}), Manual()
    words = "GradientAccumulationScheduler", "automatic_optimization=False", "accumulate in `training_step`"
    refused(trainer, lambda: trainer.fit(module, loader()), RuntimeError, *words, module=module)


# -------------------------------------------------------------------------------------------- hooks that go astray


@pytest.mark.parametrize(
    "step", [lambda self, *args: None, lambda self, epoch, idx, optimizer, closure: optimizer.step()]
)
def test_optimizer_step_without_its_closure(step: Any) -> None:
    trainer, module = quiet(), net(optimizer_step=step)
    words = "did not run its optimizer_closure", "optimizer.step(closure=optimizer_closure)"
    refused(trainer, lambda: trainer.fit(module, loader()), MisconfigurationException, *words, module=module)


def test_clipping_that_contradicts_the_trainer() -> None:
    def configure_gradient_clipping(self: Any, optimizer: Any, *given: Any, **more: Any) -> None:
        self.clip_gradients(optimizer, gradient_clip_val=3.0)

    trainer, module = quiet(gradient_clip_val=1.0), net(configure_gradient_clipping=configure_gradient_clipping)
    words = "gradient_clip_val=3.0", "Trainer(gradient_clip_val=1.0)", "Leave out one"
    refused(trainer, lambda: trainer.fit(module, loader()), MisconfigurationException, *words, module=module, steps=1)


def test_configure_callbacks_that_gives_something_else() -> None:
    trainer, module = quiet(), net(configure_callbacks=lambda self: ["EarlyStopping"])
    words = "'EarlyStopping'", "not a Callback"
    refused(trainer, lambda: trainer.fit(module, loader()), MisconfigurationException, *words, module=module)


def test_error_of_the_users_own_comes_through_unchanged() -> None:
    error = ZeroDivisionError("mine")

    def fail(self: LightningModule, *args: Any, **options: Any) -> Any:
        raise error

    for hook in ("setup", "configure_optimizers", "training_step", "on_train_batch_end", "validation_step"):
        trainer: Trainer = quiet()
        module = net(**{hook: fail})
        with pytest.raises(ZeroDivisionError) as caught:
            trainer.fit(module, loader(), loader())
        assert caught.value is error
        assert caught.value.__cause__ is None
        assert module.torn_down == ["fit"]
