"""What is wrong on a command line is said in one line that names the way out, with exit code 2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.cli.samples import QUIET, CliData, CliNet, Needy

from fulgur.cli import LightningCLI


def error_of(capsys: pytest.CaptureFixture[str], *words: str, cls: Any = CliNet) -> str:
    with pytest.raises(SystemExit) as exit_:
        LightningCLI(cls, CliData, args=list(words), trainer_defaults=QUIET)
    assert exit_.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    return printed.err


HELP = "`train.py fit --help`"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fit", "--model.widht=3"], f"There is no option --model.widht. Did you mean --model.width? {HELP} lists"),
        (["fit", "--trainer.max_epoch=3"], "There is no option --trainer.max_epoch. Did you mean --trainer.max_epochs"),
        (["fit", "--max_epochs", "3"], "There is no option --max_epochs. Did you mean --trainer.max_epochs"),
        (["fit", "--batchsize=3"], "Did you mean --data.batch_size?"),
        (["fit", "--xyzzy"], f"There is no option --xyzzy. {HELP} lists all of them."),
        (["fit", "3"], "'3' is no option. Options begin with --"),
        (["fit", "--model.width=wide"], "--model.width=wide is not of the expected type int."),
        (["fit", "--trainer.max_epochs=x"], "--trainer.max_epochs=x is not of the expected type int or null."),
        (["fit", "--trainer.uneven_loaders=no"], "--trainer.uneven_loaders=no is not of the expected type Literal"),
        (["fit", "--trainer.callbacks+=EarlyStoping"], "Did you mean EarlyStopping?"),
        (["fit", "--optimizer=SDG"], "--optimizer=SDG is not of the expected type Optimizer. Did you mean SGD?"),
        (["fit", "--optimizer=SGD", "--optimizer.lrr=1"], "--optimizer takes no 'lrr' here."),
        (["fit", "--config=nowhere.yaml"], "--config: File does not exist: "),
        ([], "Say what to do: one of fit, validate, test, predict. `train.py --help` tells more."),
        (["fti"], "There is no 'fti'. Did you mean 'fit'? It is one of fit, validate, test, predict."),
    ],
)
def test_what_is_wrong_is_named(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in error_of(capsys, *words)


def test_it_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert error_of(capsys, "fit", "--model.width=wide") == (
        "train.py fit: error: --model.width=wide is not of the expected type int.\n"
    )


def test_a_value_that_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert error_of(capsys, "fit", cls=Needy) == (
        "train.py: error: --model.width needs a value: on the command line, or in a file given with --config. "
        f"{HELP} describes each option.\n"
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("model: {widht: 3}", "There is no model.widht, which the configuration sets. Did you mean model.width"),
        ("modle: {width: 3}", "There is no modle"),
        ("model: {width: wide}", "--model.width=wide is not of the expected type int."),
    ],
)
def test_what_is_wrong_in_a_file(content: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.yaml").write_text(content)
    assert said in error_of(capsys, "fit", "--config=a.yaml")


def test_what_is_wrong_in_a_list(capsys: pytest.CaptureFixture[str]) -> None:
    said = error_of(capsys, "fit", "--model.width=1", "--model.sizes=[1,b]", cls=Needy)
    assert "--model.sizes=[1, 'b'] is not of the expected type Optional[list[int]]." in said


def test_without_exit_it_is_an_exception() -> None:
    from jsonargparse import ArgumentError

    with pytest.raises(ArgumentError, match=r"Did you mean --model\.width"):
        LightningCLI(CliNet, CliData, args=["--model.widht=3"], run=False, parser_kwargs={"exit_on_error": False})
