from __future__ import annotations

import copy
import gc
import inspect
import pickle
import weakref
from argparse import Namespace
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fulgur.errors import PossibleUserWarning
from fulgur.hparams import AttributeDict, HyperparametersMixin, build_init_kwargs, class_only, read_hparams_file


class Plain(HyperparametersMixin):
    def __init__(self, a: Any = 1, b: Any = "two", **kwargs: Any) -> None:
        self.save_hyperparameters()


class Module(HyperparametersMixin, nn.Module):
    """As a LightningModule is: a module with the mixin."""


# ------------------------------------------------------------------------------------------------- AttributeDict


def test_items_are_attributes() -> None:
    hparams = AttributeDict(lr=0.1)
    hparams.width = 3
    hparams["depth"] = 2
    del hparams.lr
    assert hparams == {"width": 3, "depth": 2}
    assert hparams.depth == 2


def test_a_missing_attribute_names_the_nearest() -> None:
    with pytest.raises(AttributeError, match=r"No hyperparameter 'learning_rat'\. Did you mean 'learning_rate'"):
        _ = AttributeDict(learning_rate=1).learning_rat
    with pytest.raises(AttributeError, match="It has: a"):
        del AttributeDict(a=1).b


def test_repr_is_sorted_and_aligned() -> None:
    assert repr(AttributeDict({"width": 3, "lr": 0.1, "my-key": None})) == '"lr":     0.1\n"my-key": None\n"width":  3'
    assert repr(AttributeDict()) == ""


def test_attribute_dicts_copy_and_pickle() -> None:
    hparams = AttributeDict(a=[1])
    for same in (copy.copy(hparams), copy.deepcopy(hparams), pickle.loads(pickle.dumps(hparams))):
        assert same == hparams
        assert type(same) is AttributeDict


# ------------------------------------------------------------------------------------------------- what is saved


def test_all_arguments_with_defaults_and_kwargs_are_saved() -> None:
    assert Plain(a=5, extra="x").hparams == {"a": 5, "b": "two", "extra": "x"}
    assert Plain()._hparams_name == "kwargs"


def test_star_args_are_left_out_and_keyword_only_arguments_kept() -> None:
    class Net(Module):
        def __init__(self, a: int, *rest: int, b: int, **more: int) -> None:
            super().__init__()
            self.save_hyperparameters()

    assert Net(1, 2, 3, b=4, c=5).hparams == {"a": 1, "b": 4, "c": 5}


def test_values_are_those_at_the_moment_of_the_call() -> None:
    class Net(Module):
        def __init__(self, a: int, b: int) -> None:
            super().__init__()
            a = a * 10
            local = 3
            self.save_hyperparameters()
            a = local
            self.sum = a + b

    assert Net(2, 1).hparams == {"a": 20, "b": 1}


def test_saving_works_before_the_base_constructor() -> None:
    class Net(Module):
        def __init__(self, width: int) -> None:
            self.save_hyperparameters()
            super().__init__()
            self.layer = nn.Linear(self.hparams.width, 1)

    assert Net(3).hparams.width == 3


def test_self_may_have_another_name_and_live_in_a_closure() -> None:
    class Net(Module):
        def __init__(this, a: int) -> None:  # noqa: N805
            super().__init__()
            this.get = lambda: this
            this.save_hyperparameters()

    assert Net(1).hparams == {"a": 1}


def test_names_choose_arguments() -> None:
    class Net(Module):
        def __init__(self, a: int, b: int, c: int) -> None:
            super().__init__()
            self.save_hyperparameters("a", "c")

    assert Net(1, 2, 3).hparams == {"a": 1, "c": 3}
    assert Net(1, 2, 3)._hparams_name == "kwargs"


@pytest.mark.parametrize("ignore", ["b", ["b"], ("b", "absent")])
def test_ignored_names_are_left_out(ignore: Any) -> None:
    class Net(Module):
        def __init__(self, a: int, b: int) -> None:
            super().__init__()
            self.save_hyperparameters(ignore=ignore)

    net = Net(1, 2)
    assert net.hparams == net.hparams_initial == {"a": 1}


@pytest.mark.parametrize("given", [{"lr": 1}, Namespace(lr=1), AttributeDict(lr=1)], ids=["dict", "namespace", "own"])
def test_the_content_of_one_argument_is_kept_under_its_name(given: Any) -> None:
    class Net(Module):
        def __init__(self, other: int, conf: Any) -> None:
            super().__init__()
            self.save_hyperparameters(conf)

    net = Net(1, given)
    assert net.hparams == {"lr": 1}
    assert type(net.hparams) is AttributeDict
    assert net._hparams_name == "conf"


def test_an_equal_copy_of_an_argument_goes_under_its_name_too() -> None:
    class Net(Module):
        def __init__(self, tensor: Any, conf: Any) -> None:
            super().__init__()
            self.save_hyperparameters(dict(conf))

    assert Net(torch.ones(2), {"lr": 1})._hparams_name == "conf"


def test_a_dict_of_its_own_has_no_name() -> None:
    class Net(Module):
        def __init__(self, a: int) -> None:
            super().__init__()
            self.save_hyperparameters({"b": a})

    assert Net(1).hparams == {"b": 1}
    assert Net(1)._hparams_name is None


def test_the_fields_of_a_dataclass_argument_are_kept() -> None:
    @dataclass
    class Conf:
        lr: float = 0.1
        sizes: tuple[int, ...] = (1, 2)

    class Net(Module):
        def __init__(self, conf: Conf) -> None:
            super().__init__()
            self.save_hyperparameters(conf)

    assert Net(Conf()).hparams == {"lr": 0.1, "sizes": (1, 2)}


def test_a_module_that_is_a_dataclass_saves_its_fields() -> None:
    @dataclass(eq=False)
    class Net(Module):
        width: int
        sizes: list[int] = field(default_factory=lambda: [1, 2])

        def __post_init__(self) -> None:
            super().__init__()
            self.save_hyperparameters()

    assert Net(3).hparams == {"width": 3, "sizes": [1, 2]}


@pytest.mark.parametrize("empty", [{}, None, [], Namespace()], ids=repr)
def test_nothing_to_keep_is_fine(empty: Any) -> None:
    class Net(Module):
        def __init__(self, a: int) -> None:
            super().__init__()
            self.save_hyperparameters(empty)

    assert Net(1).hparams == {}


def test_without_saving_hparams_are_empty() -> None:
    assert Module().hparams == {}
    assert Module().hparams_initial == {}


# --------------------------------------------------------------------------------------------------- inheritance


class Parent(Module):
    def __init__(self, a: int, shared: int = 0, **kwargs: Any) -> None:
        super().__init__()
        self.save_hyperparameters()


class Child(Parent):
    def __init__(self, b: int, shared: int = 7) -> None:
        super().__init__(a=b + 1, shared=shared * 10, inner=True)


def test_a_base_class_saves_the_arguments_of_subclasses_whose_values_win() -> None:
    assert Child(1).hparams == {"a": 2, "b": 1, "shared": 7, "inner": True}


def test_another_object_under_construction_is_not_taken_for_a_subclass() -> None:
    class Outer(Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.inner = Child(b=width)

    assert "width" not in Outer(3).inner.hparams


def test_wrapped_constructors_are_found() -> None:
    class Net(Parent):
        def __init__(self, b: int) -> None:
            (lambda: super(Net, self).__init__(a=1))()

    assert Net(5).hparams["b"] == 5


def test_repeated_calls_add_up() -> None:
    class Net(Parent):
        def __init__(self, b: int) -> None:
            super().__init__(a=1)
            self.save_hyperparameters({"c": 3})

    assert Net(2).hparams == {"a": 1, "b": 2, "shared": 0, "c": 3}


def test_ignoring_removes_what_a_base_class_has_saved() -> None:
    class Net(Parent):
        def __init__(self, b: int) -> None:
            super().__init__(a=1)
            self.save_hyperparameters(ignore=["a", "shared"])

    net = Net(2)
    assert net.hparams == net.hparams_initial == {"b": 2}


def test_a_frame_can_be_given() -> None:
    class Base(Module):
        def __init__(self, a: int) -> None:
            super().__init__()
            save_for(self)

    def save_for(module: Base) -> None:
        frame = inspect.currentframe()
        assert frame is not None
        module.save_hyperparameters(frame=frame.f_back)

    assert Base(4).hparams == {"a": 4}


# ------------------------------------------------------------------------------------------------ life afterwards


def test_hparams_can_be_changed_and_the_initial_ones_stay() -> None:
    net = Plain(a=[1])
    net.hparams.a.append(2)
    net.hparams.new = 1
    assert net.hparams == {"a": [1, 2], "b": "two", "new": 1}
    assert net.hparams_initial == {"a": [1], "b": "two"}


def test_changing_the_initial_hparams_has_no_effect() -> None:
    net = Plain()
    net.hparams_initial["a"] = 9
    assert net.hparams_initial["a"] == 1


def test_values_that_cannot_be_copied_are_kept() -> None:
    generator = (i for i in range(3))
    assert Plain(a=generator).hparams_initial["a"] is generator


def test_a_module_is_kept_with_advice() -> None:
    layer = nn.Linear(1, 1)
    with pytest.warns(PossibleUserWarning, match=r"'a' is a Linear.*ignore=\['a'\]"):
        net = Plain(a=layer)
    assert net.hparams.a is layer
    assert net.hparams_initial.a is layer


def test_remove_ignored_hparams_takes_names_away() -> None:
    net = Plain()
    net.remove_ignored_hparams(["a", "absent"])
    assert net.hparams == net.hparams_initial == {"b": "two"}


@pytest.mark.parametrize("logger", [True, False])
def test_logger_says_whether_they_are_logged(logger: bool) -> None:
    class Net(Module):
        def __init__(self, a: int) -> None:
            super().__init__()
            self.save_hyperparameters(logger=logger)

    assert Net(1)._log_hyperparams is logger
    assert Module()._log_hyperparams is False


def test_assigning_hparams_saves_them() -> None:
    class Net(Module):
        def __init__(self, hparams: Any) -> None:
            super().__init__()
            self.hparams = hparams

    net = Net(Namespace(lr=1))
    assert net.hparams.lr == 1
    assert net._hparams_name == "hparams"


def test_saving_keeps_no_constructor_variables_alive() -> None:
    class Big:
        pass

    class Net(Module):
        def __init__(self, a: int) -> None:
            super().__init__()
            big = Big()
            self.ref = weakref.ref(big)
            self.save_hyperparameters()

    gc.disable()
    try:
        assert Net(1).ref() is None
    finally:
        gc.enable()


def test_a_module_with_hparams_copies_and_pickles() -> None:
    child = Child(1)
    assert copy.deepcopy(child).hparams == child.hparams
    assert pickle.loads(pickle.dumps(child)).hparams == child.hparams


# --------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("value", [5, 1.5, [1, 2], object()], ids=lambda value: type(value).__name__)
def test_a_value_that_is_no_mapping_is_refused(value: Any) -> None:
    class Net(Module):
        def __init__(self, a: Any) -> None:
            super().__init__()
            self.save_hyperparameters(a)

    with pytest.raises(ValueError, match="It takes names of arguments of __init__, or one dict"):
        Net(value)


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    class Net(Module):
        def __init__(self, learning_rate: float) -> None:
            super().__init__()
            self.save_hyperparameters("learning_rat")

    with pytest.raises(ValueError, match="Did you mean 'learning_rate'"):
        Net(1.0)


def test_several_mappings_are_refused() -> None:
    class Net(Module):
        def __init__(self, a: int) -> None:
            super().__init__()
            self.save_hyperparameters({"a": 1}, {"b": 2})

    with pytest.raises(ValueError, match="among several arguments"):
        Net(1)


def test_saving_outside_of_init_warns_that_there_is_nothing_to_save() -> None:
    with pytest.warns(PossibleUserWarning, match=r"outside of __init__.*give it a dict"):
        Module().save_hyperparameters()


def test_saving_a_dict_outside_of_init_is_fine() -> None:
    module = Module()
    module.save_hyperparameters({"a": 1})
    assert module.hparams == {"a": 1}


# ----------------------------------------------------------------------------------------------------- making again


class Takes:
    def __init__(self, a: int, b: int = 2) -> None:
        pass


class TakesMore:
    def __init__(self, a: int, **kwargs: Any) -> None:
        pass


class TakesConf:
    def __init__(self, conf: Any, a: int = 0) -> None:
        pass


def test_saved_arguments_are_overridden_and_unknown_ones_left_out() -> None:
    saved = {"a": 1, "b": 5, "old": 3}
    assert build_init_kwargs(Takes, saved, hparams_name="kwargs", overrides={"b": 6}) == {"a": 1, "b": 6}
    assert build_init_kwargs(TakesMore, saved, hparams_name=None, overrides={"n": 1}) == {**saved, "n": 1}


def test_a_named_argument_gets_all_hyperparameters_at_once() -> None:
    kwargs = build_init_kwargs(TakesConf, {"lr": 1}, hparams_name="conf", overrides={"lr": 2, "a": 3})
    assert kwargs == {"conf": {"lr": 2, "a": 3}, "a": 3}
    assert kwargs["conf"].lr == 2


def test_hyperparameters_are_read_from_yaml_and_csv(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("lr: 0.1\nnames: [a, b]\n")
    (tmp_path / "a.csv").write_text("key,value\r\nlr,0.1\r\nname,adam\r\n")
    assert read_hparams_file(tmp_path / "a.yaml") == {"lr": 0.1, "names": ["a", "b"]}
    assert read_hparams_file(tmp_path / "a.csv") == {"lr": 0.1, "name": "adam"}
    with pytest.raises(ValueError, match=r"ends in '.json'. Use a .yaml, .yml or .csv file"):
        read_hparams_file(tmp_path / "a.json")


def test_class_only_methods_refuse_an_instance_when_called() -> None:
    class Thing:
        @class_only
        def load(cls, a: int) -> tuple[type, int]:  # noqa: N805
            return cls, a

    class Special(Thing):
        pass

    assert Special.load(1) == (Special, 1)
    assert callable(Thing().load)
    with pytest.raises(TypeError, match=r"Call it on the class: `Thing.load"):
        Thing().load(1)
