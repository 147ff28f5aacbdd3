"""A LightningModule as a part of a run: its device and dtype, its Trainer, its modes, its copies."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from tests.trainer.conftest import Bare, Net, numbers, quiet
from torch import nn

from fulgur import LightningModule
from fulgur.strategies import SingleDeviceStrategy

# --------------------------------------------------------------------------------------------------- device and dtype


@pytest.mark.parametrize(
    ("convert", "dtype"),
    [
        (lambda m: m.double(), torch.float64),
        (lambda m: m.half(), torch.float16),
        (lambda m: m.bfloat16(), torch.bfloat16),
        (lambda m: m.float(), torch.float32),
        (lambda m: m.to(torch.float64), torch.float64),
        (lambda m: m.to(dtype=torch.float16), torch.float16),
        (lambda m: m.to(torch.zeros(1, dtype=torch.float64)), torch.float64),
        (lambda m: m.type(torch.float64), torch.float64),
        (lambda m: m.double().to("cpu"), torch.float64),
        (lambda m: m.to("meta", torch.float64), torch.float64),
    ],
)
def test_dtype_follows_every_way_to_convert(convert: Any, dtype: torch.dtype) -> None:
    model = convert(Bare())
    assert (model.dtype, model.layer.weight.dtype) == (dtype, dtype)


@pytest.mark.parametrize(
    "move", [lambda m: m.to("meta"), lambda m: m.to(device="meta"), lambda m: m.to_empty(device="meta")]
)
def test_device_follows_every_way_to_move(move: Any) -> None:
    model = move(Bare())
    assert (model.device, model.layer.weight.device) == (torch.device("meta"), torch.device("meta"))
    assert model.to_empty(device="cpu").device == torch.device("cpu")


def test_module_inside_a_module_follows_it() -> None:
    outer = nn.ModuleDict({"inner": Bare()}).double()
    assert outer["inner"].dtype is torch.float64


def test_child_that_is_converted_alone_leaves_its_parent_as_it_was() -> None:
    model = Bare()
    model.layer.double()
    assert model.dtype is torch.float32


def test_dtype_of_a_new_module_is_the_default() -> None:
    torch.set_default_dtype(torch.float64)
    model = Bare()
    torch.set_default_dtype(torch.float32)
    assert model.dtype is torch.float64


def test_device_and_dtype_cannot_be_assigned() -> None:
    model = Bare()
    with pytest.raises(AttributeError):
        model.device = torch.device("cpu")  # type: ignore[misc]
    with pytest.raises((AttributeError, RuntimeError)):
        model.dtype = torch.float64  # type: ignore[misc]


def test_device_is_known_in_setup_before_the_model_is_there() -> None:
    class Looks(Bare):
        def setup(self, stage: str) -> None:
            self.in_setup = (self.device, self.layer.weight.device)

    class Meta(SingleDeviceStrategy):
        def setup_module(self, module: Any) -> Any:
            raise StopHere

    class StopHere(Exception):
        pass

    model = Looks()
    trainer = quiet(strategy=Meta("meta"), accelerator="auto", max_epochs=1)
    with pytest.raises(StopHere):
        trainer.fit(model, numbers(1))
    assert model.in_setup == (torch.device("meta"), torch.device("cpu"))


@pytest.mark.parametrize(
    ("precision", "dtype"), [("64-true", torch.float64), ("bf16-true", torch.bfloat16), ("bf16-mixed", torch.float32)]
)
def test_dtype_in_a_run_is_that_of_the_precision(precision: str, dtype: torch.dtype) -> None:
    class Looks(Bare):
        def on_fit_start(self) -> None:
            self.found = (self.dtype, self.layer.weight.dtype)

    model = Looks()
    quiet(max_epochs=1, precision=precision).fit(model, numbers(1))
    assert model.found == (dtype, dtype)


@pytest.mark.parametrize("entry", ["fit", "validate", "test", "predict"])
def test_model_leaves_the_device_before_the_teardown_hooks(entry: str) -> None:
    order: list[str] = []

    class Leaves(SingleDeviceStrategy):
        def teardown(self) -> None:
            order.append("device")

    class Ends(Net):
        def teardown(self, stage: str) -> None:
            order.append("module")

    getattr(quiet(strategy=Leaves("cpu"), max_epochs=1), entry)(Ends(), numbers(1))
    assert order == ["device", "module"]


def test_on_gpu_is_false_on_the_host() -> None:
    assert Bare().on_gpu is False


# ---------------------------------------------------------------------------------------------------------- the Trainer


def test_module_without_a_trainer_says_when_there_is_one() -> None:
    with pytest.raises(RuntimeError, match="Bare is not attached to a Trainer"):
        _ = Bare().trainer


def test_module_without_a_trainer_answers_for_itself() -> None:
    model = Bare()
    assert (model.current_epoch, model.global_step, model.global_rank, model.local_rank) == (0, 0, 0, 0)
    assert (model.logger, model.loggers, model.fabric) == (None, [], None)
    model.log("ignored", 1.0)
    model.log_dict({"ignored": 1.0})


def test_trainer_reaches_modules_inside_modules() -> None:
    class Outer(Bare):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(Bare())

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.inner[0].log("inner", 3.0)
            return super().training_step(batch, batch_idx)

    model, trainer = Outer(), quiet(max_epochs=1)
    trainer.fit(model, numbers(1))
    assert model.inner[0].trainer is trainer
    assert trainer.callback_metrics["inner"] == 3.0


def test_trainer_reaches_modules_that_configure_model_makes() -> None:
    class Late(Bare):
        def configure_model(self) -> None:
            self.late = Bare()

    model, trainer = Late(), quiet(max_epochs=1)
    trainer.fit(model, numbers(1))
    assert model.late.trainer is trainer


def test_trainer_can_be_assigned() -> None:
    model, trainer = nn.Sequential(Bare()), quiet()
    model[0].trainer = trainer
    assert model[0].trainer is trainer
    model[0].trainer = None
    with pytest.raises(RuntimeError):
        _ = model[0].trainer


@pytest.mark.parametrize("duplicate", [copy.deepcopy, copy.copy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copy_of_an_attached_module_has_no_trainer_and_the_same_weights(duplicate: Any) -> None:
    model, trainer = Net(), quiet(max_epochs=1)
    trainer.fit(model, numbers(1))
    other = duplicate(model)
    with pytest.raises(RuntimeError):
        _ = other.trainer
    assert model.trainer is trainer
    assert torch.equal(other.layer.weight, model.layer.weight)
    assert (other.device, other.dtype) == (model.device, model.dtype)


def test_module_can_be_copied_within_its_own_run() -> None:
    class Copies(Bare):
        def on_train_epoch_end(self) -> None:
            self.twin = [copy.deepcopy(self)]

    model = Copies()
    quiet(max_epochs=1).fit(model, numbers(1))
    assert torch.equal(model.twin[0].layer.weight, model.layer.weight)


def test_callback_that_was_used_can_be_pickled() -> None:
    from fulgur.callbacks import EarlyStopping

    callback = EarlyStopping("val")
    quiet(max_epochs=1, callbacks=[callback]).fit(Net(), numbers(1), numbers(1))
    assert pickle.loads(pickle.dumps(callback)).monitor == "val"


# -------------------------------------------------------------------------------------------------------------- modes


class Mixed(Net):
    """Its frozen part stays in eval mode while the rest trains."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout()).eval()
        self.free = nn.Dropout()
        self.modes: dict[str, list[bool]] = {}

    def note(self, step: str) -> None:
        self.modes[step] = [self.training, self.frozen.training, self.frozen[0].training, self.free.training]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.note("training_step")
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.note("validation_step")

    def on_validation_end(self) -> None:
        self.note("on_validation_end")

    def on_train_epoch_end(self) -> None:
        self.note("on_train_epoch_end")


EVAL, MIXED = [False] * 4, [True, False, False, True]


def test_every_submodule_gets_its_mode_back_after_validation() -> None:
    model = Mixed()
    quiet(max_epochs=1, num_sanity_val_steps=1).fit(model, numbers(1), numbers(1))
    assert model.modes == {
        "training_step": MIXED,
        "validation_step": EVAL,
        "on_validation_end": EVAL,
        "on_train_epoch_end": MIXED,
    }


@pytest.mark.parametrize("entry", ["validate", "test", "predict"])
def test_every_submodule_gets_its_mode_back_after_an_evaluation(entry: str) -> None:
    model = Mixed()
    getattr(quiet(), entry)(model, numbers(1))
    model.note("after")
    assert model.modes["after"] == MIXED


def test_fit_does_not_put_a_model_into_train_mode() -> None:
    model = Mixed().eval()
    quiet(max_epochs=1).fit(model, numbers(1))
    assert model.modes["training_step"] == EVAL


def test_overridden_mode_hooks_take_the_place_of_putting_modes_back() -> None:
    class Own(Mixed):
        def on_validation_model_eval(self) -> None:
            self.free.eval()

        def on_validation_model_train(self) -> None:
            self.train()

    model = Own()
    quiet(max_epochs=1).fit(model, numbers(1), numbers(1))
    assert model.modes["validation_step"] == [True, False, False, False]
    assert model.modes["on_train_epoch_end"] == [True] * 4


def test_freeze_and_unfreeze() -> None:
    model = Bare()
    assert model.freeze() is model
    assert (model.training, model.layer.weight.requires_grad) == (False, False)
    assert model.unfreeze() is model
    assert (model.training, model.layer.weight.requires_grad) == (True, True)


def test_module_stands_wherever_a_module_stands() -> None:
    inner = Bare()
    whole = nn.Sequential(inner, nn.ReLU())
    assert isinstance(inner, nn.Module)
    assert whole(torch.zeros(3, 2)).shape == (3, 1)
    assert list(whole.state_dict()) == ["0.layer.weight", "0.layer.bias"]


def test_module_of_another_base_class_too() -> None:
    class Mixin:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__()
            self.has_mixin = True

    class Both(Mixin, Bare):
        pass

    class Other(Bare, Mixin):
        pass

    for kind in (Both, Other):
        model = kind()
        quiet(max_epochs=1).fit(model, numbers(1))
        assert isinstance(model, LightningModule)
