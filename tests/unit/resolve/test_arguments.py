"""Arguments by position, from the environment, and unknown ones."""

from __future__ import annotations

from typing import Any

import pytest

from fulgur.errors import UnknownArgumentError
from fulgur.resolve import Arguments, apply_environment, build_arguments, name_positionals


def test_positional_values_take_the_names_in_order() -> None:
    assert name_positionals(("cpu", "ddp"), {"max_epochs": 1}) == {
        "accelerator": "cpu",
        "strategy": "ddp",
        "max_epochs": 1,
    }


def test_argument_by_name_and_position_is_an_error() -> None:
    with pytest.raises(TypeError, match="accelerator='gpu' is given by name and by position"):
        name_positionals(("cpu",), {"accelerator": "gpu"})


def test_too_many_positional_values_are_an_error() -> None:
    with pytest.raises(TypeError, match="Give them by name"):
        name_positionals((None,) * 100, {})


@pytest.mark.parametrize(
    ("text", "value"), [("3", 3), ("0.5", 0.5), ("True", True), ("[0, 1]", [0, 1]), ("gpu", "gpu"), ("1:2", "1:2")]
)
def test_environment_gives_literals_and_text(monkeypatch: pytest.MonkeyPatch, text: str, value: Any) -> None:
    monkeypatch.setenv("PL_TRAINER_MAX_EPOCHS", text)
    assert apply_environment({}) == {"max_epochs": value}


def test_given_argument_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_TRAINER_MAX_EPOCHS", "3")
    assert apply_environment({"max_epochs": None}) == {"max_epochs": None}


def test_empty_variable_counts_as_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_TRAINER_MAX_EPOCHS", "")
    assert apply_environment({}) == {}


def test_misspelt_argument_is_told_the_nearest() -> None:
    with pytest.raises(UnknownArgumentError, match=r"no argument 'max_epoch'\. Did you mean 'max_epochs'\?"):
        build_arguments({"max_epoch": 1})


def test_misspelt_older_argument_is_told_the_nearest_too() -> None:
    with pytest.raises(UnknownArgumentError, match="Did you mean 'resume_from_checkpoint'"):
        build_arguments({"resume_from_checkpoints": "x"}, also_known=["resume_from_checkpoint"])


def test_unknown_argument_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="Trainer has no argument 'qwertz'"):
        build_arguments({"qwertz": 1})


def test_known_arguments_are_taken() -> None:
    assert build_arguments({"max_epochs": 3}) == Arguments(max_epochs=3)
